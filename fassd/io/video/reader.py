"""Reading files, cameras and streams with PyAV."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata import sidedata

from fassd.io.find import CAMERA, URL
from fassd.io.video.source import DEFAULT_FPS, Frame, VideoError, VideoSource

DELAYS = (0.5, 1, 2, 4, 8, 15, 15, 15)
"""Seconds before each attempt to reconnect; after the last one, about a minute, it gives up."""

DAMAGED_IN_A_ROW = 64  # number of unreadable places in a row after which a file is given up
BEFORE = 10  # seconds that are read again after reconnecting, to include a whole frame
JUMP = 1  # seconds back in time that are a new start and not disorder
AUDIO_HELD = 256  # largest number of packets of sound that wait for a frame


def _unnamed(kinds: Any, number: int) -> Any:
    """A kind of side data for a number of FFmpeg's that PyAV has no name for, such as EXIF's."""
    kind = object.__new__(kinds)
    kind._name_, kind._value_ = f"UNNAMED_{number}", number
    return kind


# Without it, PyAV refuses to list the side data of a frame because of one such kind.
_Kinds: Any = sidedata.Type
_Kinds._missing_ = classmethod(_unnamed)


class _DroppedError(Exception):
    """The connection was lost; the message says how."""


class VideoReader(VideoSource):
    """A video file, `camera:N`, or an address (rtsp, rtmp, http, udp, ...).

    * Rotation and mirroring that the file asks for are applied, a frame's own EXIF taking
      precedence over its track; more than 8 bits become 8.
    * A frame that differs in size from the first is resized to it.
    * Timestamps are the file's own. A timestamp that is missing or does not rise is set one frame,
      or one unit, after the one before; after a leap back they continue from there.
    * Damaged frames and places are skipped and counted.
    * A network stream or camera that ends early, fails or is silent for `timeout` seconds is opened
      again, after longer and longer pauses (`delays`). A file from a web server continues after its
      last frame; live sources continue with the time that has passed.

    Args:
        source: video to read.
        fps: frame rate requested from a camera.
        timeout: seconds of silence permitted; ignored for files on disk.
        delays: seconds before each attempt to reconnect.

    Raises:
        VideoError: the source does not exist, cannot be opened, or has no video.
    """

    def __init__(
        self,
        source: str,
        *,
        fps: Fraction | None = None,
        timeout: float = 10.0,
        delays: tuple[float, ...] = DELAYS,
    ) -> None:
        super().__init__(source)
        self._camera = CAMERA.fullmatch(source) is not None
        self._remote = self._camera or URL.fullmatch(source) is not None
        self._fps, self._timeout, self._delays = fps, timeout, delays
        if not self._remote:
            _check_file(source)
        started = time.monotonic()
        try:
            self._open()
        except av.FFmpegError as error:
            reason = self._reason(error)
            # A header that does not arrive looks like a damaged one.
            if self._remote and time.monotonic() - started >= timeout:
                reason = f"no video came for {timeout:g} seconds"
            raise VideoError(f"{source}: {reason}") from error
        stream, duration = self._video, self._container.duration
        # Packets from a web server without a length may never end, like those of a camera.
        self.live = self._remote and not duration
        self.time_base = stream.time_base or Fraction(1, 90000)
        self.rate = stream.average_rate or stream.guessed_rate or fps or DEFAULT_FPS
        length = Fraction(duration, av.time_base) if duration else Fraction(0)
        if stream.duration:
            length = stream.duration * self.time_base
        self.expected = stream.frames or round(length * self.rate) or None
        self.audio = _templates(self._audio)
        self._end = (stream.start_time or 0) * self.time_base + length if length else None
        # Frame threads decode ahead, which delays a live source.
        stream.thread_type = "SLICE" if self.live else "AUTO"
        self._step = max(1, round(1 / (self.rate * self.time_base)))
        self._attempts = 0  # number of attempts to reconnect since the last frame
        self._last: int | None = None  # pts of the last frame
        self._arrived = 0.0  # time when it arrived
        self._offset: int | None = 0  # added to timestamps; None until known, after reconnecting
        self._heard: dict[int, Fraction] = {}  # seconds of the last packet of each stream of sound
        self._size: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Frame]:
        while True:
            try:
                yield from self._frames()
                return
            except _DroppedError as drop:
                if not self._reconnect(str(drop)):
                    return

    def close(self) -> None:
        self._container.close()

    # ------------------------------------------------------------------------------- connection

    def _open(self) -> None:
        file, kind, options = _address(self.name, self._fps)
        limit = (self._timeout, self._timeout) if self._remote else None
        # Titles and the like, which are not used here, need not be UTF-8.
        self._container = av.open(
            file, format=kind, options=options, timeout=limit, metadata_errors="replace"
        )
        video = self._container.streams.best("video")
        if not isinstance(video, av.VideoStream):
            self._container.close()
            raise VideoError(f"{self.name}: holds no video")
        if video.codec_context is None:
            self._container.close()
            raise VideoError(f"{self.name}: this FFmpeg has no decoder for its codec")
        self._video = video
        self._awaited: set[int] = set()  # pts of packets whose frames have not arrived yet ...
        self._lost: set[int] = set()  # ... and never will
        self._audio = [each for each in self._container.streams.audio if each.codec_context]

    def _reason(self, error: Exception) -> str:
        """Message for an error of FFmpeg's."""
        if isinstance(error, av.ExitError):
            return f"nothing came for {self._timeout:g} seconds"
        if isinstance(error, av.InvalidDataError):
            return "is damaged, truncated or no video that FFmpeg reads"
        return getattr(error, "strerror", None) or str(error) or type(error).__name__

    def _reconnect(self, reason: str) -> bool:
        """Open the source again; True if that succeeded before the delays ran out."""
        self._container.close()
        while self._attempts < len(self._delays):
            self._attempts += 1
            if self.stopped.wait(self._delays[self._attempts - 1]):
                return False
            try:
                self._open()
            except (av.FFmpegError, VideoError):
                continue
            if self.live:
                self._video.thread_type = "SLICE"
                self._offset = None
            else:
                self._video.thread_type = "AUTO"
                with contextlib.suppress(av.FFmpegError):  # otherwise it is read from its beginning
                    early = (self._last or 0) - round(BEFORE / self.time_base)
                    self._container.seek(max(0, early), stream=self._video)
            return True
        self.trouble.note(f"lost, and {self._attempts} attempts to reconnect failed ({reason})")
        return False

    # ------------------------------------------------------------------------------------ packets

    def _packets(self) -> Iterator[av.Packet]:
        """Packets of picture and sound; those that cannot be read are skipped.

        Raises:
            _DroppedError: a camera or stream was lost.
        """
        failures = 0
        streams = (self._video, *self._audio)
        while True:
            started = time.perf_counter()
            try:
                for packet in self._container.demux(streams):
                    self.waited += time.perf_counter() - started if self.live else 0.0
                    failures = 0
                    yield packet
                    if self.stopped.is_set():
                        return
                    started = time.perf_counter()
                break
            except av.InvalidDataError:
                self.trouble.skipped += 1
                failures += 1
                if failures == DAMAGED_IN_A_ROW:
                    self.trouble.note("cannot be read to its end")
                    break
            except av.FFmpegError as error:
                if self._remote:
                    raise _DroppedError(self._reason(error)) from error
                self.trouble.note(f"cannot be read to its end ({self._reason(error)})")
                break
        early = self._missing() > 0.5
        if self.live or (
            self._remote and early and not self._attempts
        ):  # otherwise it ended here before
            raise _DroppedError("the stream ended")
        if early:
            self.trouble.note(f"ends {self._missing():.1f} s before the end that it announces")

    def _missing(self) -> float:
        """Seconds that the file announces and that did not arrive."""
        if self._end is None or self._last is None:
            return 0.0
        return float(self._end - (self._last + self._step) * self.time_base)

    def _frames(self) -> Iterator[Frame]:
        audio: list[tuple[int, av.Packet]] = []
        places = {stream.index: place for place, stream in enumerate(self._audio)}
        for packet in self._packets():
            if packet.stream_index in places:
                self._keep_sound(places[packet.stream_index], packet, audio)
                if len(audio) == AUDIO_HELD:
                    yield Frame(None, 0, 0, audio)
                    audio = []
                continue
            for decoded in self._decode(packet):
                pts = self._stamp(decoded)
                if pts is None:
                    continue
                scale = (decoded.time_base or self.time_base) / self.time_base
                yield Frame(self._image(decoded), pts, round(decoded.duration * scale), audio)
                audio = []
        if not self.stopped.is_set():
            self.trouble.skipped += len(self._awaited)
        if audio:
            yield Frame(None, 0, 0, audio)

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """The frames of a packet; frames lost to damage are counted."""
        if packet.pts is not None and not packet.is_discard:
            back = max(self._awaited, default=packet.pts) - packet.pts
            if back > JUMP / self.time_base:
                self._awaited, self._lost = set(), set()
            self._awaited.add(packet.pts)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self.trouble.skipped += packet.pts is None and packet.size > 0
            return []
        whole = []
        for frame in frames:
            # Decoders do not report frames that they hold back until the next whole one. Frames
            # come in the order in which they are shown: any that are due before one that came are
            # lost, and one that comes later is too late.
            if frame.pts in self._awaited:
                lost = {pts for pts in self._awaited if pts < frame.pts}
                self._awaited -= lost | {frame.pts}
                self._lost |= lost
                self.trouble.skipped += len(lost) + frame.is_corrupt
            if not frame.is_corrupt and frame.pts not in self._lost:
                whole.append(frame)
        return whole

    def _keep_sound(
        self, place: int, packet: av.Packet, audio: list[tuple[int, av.Packet]]
    ) -> None:
        """Keep a packet of sound, unless it came before, or its time is not known yet."""
        if packet.dts is None or self._offset is None or place >= len(self.audio):
            return
        if self._offset:
            shift = round(self._offset * self.time_base / packet.time_base)
            packet.dts += shift
            packet.pts = None if packet.pts is None else packet.pts + shift
        seconds = packet.dts * packet.time_base
        if seconds > self._heard.get(place, seconds - 1):
            self._heard[place] = seconds
            audio.append((place, packet))

    # -------------------------------------------------------------------------------------- frames

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """The frame's time in units of `time_base`; None for a frame that came before."""
        now = time.monotonic()
        if frame.pts is None:
            own = None if self._last is None else self._last - (self._offset or 0) + self._step
        else:
            own = round(frame.pts * (frame.time_base or self.time_base) / self.time_base)
        own = own or 0
        if self._offset is None:  # a live source has reconnected
            passed = round(Fraction(now - self._arrived) / self.time_base)
            self._offset = (self._last or 0) + max(self._step, passed) - own
        pts = own + self._offset
        if self._last is not None and pts <= self._last:
            if self._remote and not self.live and (self._attempts or self.trouble.reconnections):
                return None
            if self._last - pts > JUMP / self.time_base:  # the clock was reset
                self._offset += self._last + self._step - pts
                pts = self._last + self._step
            else:
                pts = self._last + 1
        self.trouble.reconnections += self._attempts > 0
        self._last, self._arrived, self._attempts = pts, now, 0
        return pts

    def _image(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """The frame upright, in the size of the first one, (H, W, 3) uint8 RGB."""
        a, b, c, d = _matrix(frame)
        turned = abs(b) > abs(a)
        upright = (frame.width, frame.height) if turned else (frame.height, frame.width)
        if self._size is None:
            self._size = upright
            self._first(frame, turned)
        if upright != self._size:
            self.trouble.resized += 1
        height, width = self._size[::-1] if turned else self._size
        image = frame.to_ndarray(format="rgb24", height=height, width=width)
        # The matrix takes a pixel at x, y to a*x + c*y, b*x + d*y.
        if turned:
            image = image.swapaxes(0, 1)
            image = image[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
        else:
            image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
        return np.ascontiguousarray(image)

    def _first(self, frame: av.VideoFrame, turned: bool) -> None:
        bits = max(component.bits for component in frame.format.components)
        if bits > 8:
            self.trouble.note(f"{bits} bits per channel become 8")
        aspect = self._video.sample_aspect_ratio or Fraction(1)
        self.pixel_aspect = 1 / aspect if turned else aspect


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The frame's rotation and mirroring: a, b, c, d of its display matrix."""
    # `frame.side_data` would keep its result in a cycle, and with it the frame until garbage
    # collection, some hundred frames later: 0.3 GB at 512x1024.
    side: Any = sidedata.SideDataContainer
    matrix = side(frame).get("DISPLAYMATRIX")
    a, b, _, c, d = (1, 0, 0, 0, 1) if matrix is None else np.frombuffer(matrix, "=i4")[:5]
    return int(a), int(b), int(c), int(d)


def _templates(streams: list[av.AudioStream]) -> list[av.AudioStream]:
    """Copies of the descriptions of streams, which outlive a connection."""
    holder = av.open(io.BytesIO(), "w", format="nut")
    return [holder.add_stream_from_template(stream) for stream in streams]


def _check_file(source: str) -> None:
    try:
        kind = os.stat(source)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise VideoError(f"{source}: {reason}") from error
    if not stat.S_ISREG(kind.st_mode):  # reading a pipe may block for ever
        what = "a folder" if stat.S_ISDIR(kind.st_mode) else "a pipe, socket or device"
        raise VideoError(f"{source}: must be a file, is {what}")
    if kind.st_size == 0:
        raise VideoError(f"{source}: is empty")


def _address(source: str, fps: Fraction | None) -> tuple[str, str | None, dict[str, str]]:
    """The file, device or address that PyAV opens, its format, and options."""
    camera = CAMERA.fullmatch(source)
    if camera is None:
        # Over TCP a camera's packets arrive complete and in order.
        rtsp = source.lower().startswith("rtsp")
        if URL.fullmatch(source):
            return source, None, {"rtsp_transport": "tcp"} if rtsp else {}
        # An absolute path is never mistaken for an address.
        return str(Path(source).absolute()), None, {}
    number = int(camera[1])
    rate = {} if fps is None else {"framerate": str(fps)}
    if sys.platform == "darwin":
        return str(number), "avfoundation", rate or {"framerate": "30"}
    if sys.platform == "win32":
        cameras = [
            device.name
            for device in av.device.enumerate_input_devices("dshow")
            if "video" in device.media_types
        ]
        if number >= len(cameras):
            raise VideoError(f"{source}: there are {len(cameras)} cameras, counted from 0")
        return f"video={cameras[number]}", "dshow", rate
    return f"/dev/video{number}", "v4l2", rate
