"""Writing a video file: frames are encoded, sound is copied."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import IO, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.reformatter import Colorspace

from fassd.io.video.source import VideoError, VideoSource


class _Format(NamedTuple):
    muxer: str
    codecs: tuple[str, ...]  # the first of these that this PyAV has is used


_H264 = ("libx264", "libopenh264", "mpeg4")
FORMATS = {
    ".mp4": _Format("mp4", _H264),
    ".m4v": _Format("mp4", _H264),
    ".mov": _Format("mov", _H264),
    ".mkv": _Format("matroska", _H264),
    ".webm": _Format("webm", ("libvpx-vp9", "libvpx", "libsvtav1")),
}
"""Endings of the videos that can be written: formats that keep uneven timestamps."""

# Constant quality at which edges of classes stay sharp; fast, because the network needs the cores.
# No B frames: MP4 counts a track's length in the order of decoding, which with B frames and uneven
# times ends before the last frame is shown.
QUALITY = {
    "libx264": {"crf": "20", "preset": "veryfast", "bf": "0"},
    "libx265": {"crf": "23", "preset": "veryfast", "x265-params": "log-level=error:bframes=0"},
    "libvpx-vp9": {"crf": "30", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    "libsvtav1": {"crf": "30", "preset": "9"},
}
EXACT = "ffv1"  # encoder for labels
BITS_PER_PIXEL = 0.2  # for other codecs, whose quality is a bit rate
MPEG4_CLOCK = 65535  # MPEG-4 part 2 cannot divide a second more finely


def default_codec(suffix: str) -> str:
    """The default encoder of a file with that ending."""
    codecs = FORMATS[suffix].codecs
    return next((name for name in codecs if name in av.codecs_available), codecs[-1])


def check_codec(name: str, suffix: str) -> None:
    """Check that files with that ending can be written by that encoder.

    Raises:
        VideoError: this machine has no such encoder, or the container does not accept it.
    """
    try:
        known = av.Codec(name, "w").type == "video"
    except ValueError:  # unknown names
        known = False
    if not known:
        here = [each for each in (*QUALITY, "mpeg4", "ffv1") if each in av.codecs_available]
        raise VideoError(f"no video encoder {name!r} here; there are {', '.join(here)}, ...")
    with av.open(io.BytesIO(), "w", format=FORMATS[suffix].muxer) as container:
        if name not in container.supported_codecs:
            raise VideoError(f"a {suffix} file cannot hold what {name} encodes: change one")


def check_exact(name: str, suffix: str) -> None:
    """Check that labels keep their values in a file with that ending, by that encoder.

    Raises:
        VideoError: they do not.
    """
    if name != EXACT:
        raise VideoError(f"--view trainids is lossless and needs the codec {EXACT}, got {name}")
    check_codec(name, suffix)


class VideoWriter:
    """Encodes frames and copies sound into an open file.

    Sides are made even by repeating the last row or column, as 4:2:0 video requires. Colours are
    BT.709 and marked as such. Grey frames, whose levels are labels, are encoded without loss.

    Args:
        file: file to write to, open for writing and seekable.
        suffix: ending of the file: a key of `FORMATS`.
        size: height and width of the frames.
        source: video whose time base, rate, pixel aspect and sound are copied.
        codec: encoder; None for `default_codec`, or FFV1 for grey frames, which take no other.
        grey: True if frames are grey.

    Attributes:
        codec: name of the encoder.
        frames: number of frames written.
        silent: codecs of sound that the container cannot hold, which is left out.

    Raises:
        VideoError: the encoder refuses the settings, or cannot encode grey frames.
    """

    def __init__(
        self,
        file: IO[bytes],
        suffix: str,
        size: tuple[int, int],
        source: VideoSource,
        codec: str | None = None,
        *,
        grey: bool = False,
    ) -> None:
        self.codec = codec or (EXACT if grey else default_codec(suffix))
        if grey:
            check_exact(self.codec, suffix)
        self._grey = grey
        self.frames = 0
        self.silent: list[str] = []
        self._container = av.open(file, "w", format=FORMATS[suffix].muxer)
        self._time_base = source.time_base
        self._size = size
        self._stream = self._add_video(source)
        self._audio = [self._add_audio(template) for template in source.audio]
        try:
            self._container.start_encoding()
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.codec} cannot encode {size[0]}x{size[1]} as {self._stream.pix_fmt} "
                f"({error.strerror})"
            ) from error

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """Encode one frame, (H, W, 3) uint8 RGB or (H, W) grey; times in the source's time base."""
        if self._grey:
            frame = av.VideoFrame.from_ndarray(image, "gray")
        else:
            height, width = image.shape[:2]
            padded = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(padded, "rgb24")
            frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.duration, frame.time_base = pts, duration, self._time_base
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def copy(self, audio: Sequence[tuple[int, av.Packet]]) -> None:
        """Write packets of sound unchanged; the number is the position of their stream."""
        for place, packet in audio:
            stream = self._audio[place]
            if stream is not None:
                packet.stream = stream
                self._container.mux_one(packet)

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def abandon(self) -> None:
        """Release the file after an error, while it is still open."""
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()

    def _add_video(self, source: VideoSource) -> av.VideoStream:
        height, width = (side + side % 2 * (not self._grey) for side in self._size)
        options = QUALITY.get(self.codec, {})
        rate = source.rate.limit_denominator(1 << 20)
        stream = self._container.add_stream(self.codec, rate=rate, options=dict(options))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = height, width
        formats = [each.name for each in stream.codec.video_formats or ()]
        stream.pix_fmt = "yuv420p" if "yuv420p" in formats or not formats else formats[0]
        if self._grey:
            stream.pix_fmt = "gray"
        stream.bit_rate = 0 if options else round(BITS_PER_PIXEL * height * width * rate)
        clock = source.time_base
        if self.codec == "mpeg4" and clock.denominator > MPEG4_CLOCK:
            clock = Fraction(1, MPEG4_CLOCK)
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.sample_aspect_ratio = source.pixel_aspect
        context = stream.codec_context
        context.flags |= Flags.frame_duration  # otherwise the encoder invents the last duration
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 2 if self._grey else 1  # 0 to 255, 16 to 235
        return stream

    def _add_audio(self, template: av.AudioStream) -> av.AudioStream | None:
        try:
            return self._container.add_stream_from_template(template)
        except ValueError:  # the container cannot hold it
            self.silent.append(template.codec_context.name)
            return None
