"""Decoding, the network and encoding side by side, each in a thread of its own."""

from __future__ import annotations

import contextlib
import functools
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fassd.io.files import replacing
from fassd.io.palette import Draw, drawing, palette
from fassd.io.video.source import Frame, ReadStats, VideoError, VideoSource
from fassd.io.video.writer import FORMATS, VideoWriter
from fassd_kernels.reference.upsample import Measure

View = Literal["overlay", "labels", "side-by-side", "trainids"]

DEPTH = 4  # maximum number of frames waiting between two stages
POLL = 0.1  # seconds after which a waiting stage checks if it should stop


class Labeller(Protocol):
    """The interface of `fassd.Segmenter` for frames: uint8 RGB (H, W, 3) to class indices (H, W),
    or to a tuple of these and their certainty."""

    def predict(self, image: npt.NDArray[np.uint8]) -> Any: ...


Label = Callable[[npt.NDArray[np.uint8]], Any]


@dataclass
class Summary:
    """The progress or result of labelling a video.

    frames: number of frames labelled so far; in the end, number of frames written.
    size: height and width of a frame.
    seconds: time since the start of decoding the first frame.
    busy: seconds that each stage worked: "decode", "network", "encode".
    dropped: number of a live source's frames that came while the network was busy.
    trouble: problems met while reading.
    codec: name of the encoder.
    silent: codecs of sound that was left out, because the container cannot hold it.
    interrupted: True if Ctrl-C stopped it.
    """

    frames: int = 0
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    busy: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "network", "encode"), 0.0)
    )
    dropped: int = 0
    trouble: ReadStats = field(default_factory=ReadStats)
    codec: str = ""
    silent: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def fps(self) -> float:
        """Frames per second from end to end."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's share of the work, from 0 to 1; the sum is 1."""
        total = sum(self.busy.values()) or 1.0
        return {stage: seconds / total for stage, seconds in self.busy.items()}


def segment_video(
    source: VideoSource,
    output: Path | str,
    segmenter: Labeller,
    *,
    view: View = "overlay",
    opacity: float = 0.5,
    colors: npt.NDArray[np.uint8] | None = None,
    limit: int | None = None,
    confidence: Measure | None = None,
    min_confidence: float | None = None,
    on_frame: Callable[[Summary], object] | None = None,
) -> Summary:
    """Label a video frame by frame and write the result as another video.

    The file gets its name only when it is complete, even after Ctrl-C, which ends the video early
    (a second one discards it). A live source never waits: if the network is slower, the oldest
    waiting frame is dropped, so that the delay stays within `DEPTH` frames for each queue. Memory
    does not depend on the length.

    Args:
        source: source of the frames; closed at the end.
        output: path of the file to write, with an ending of `FORMATS`.
        segmenter: segmenter that labels a frame.
        view: view to draw: "overlay" lays the colours over the frame; "labels" shows only them;
            "side-by-side" puts the frame to the left of them; "trainids" is grey, its levels being
            the labels themselves, without loss (FFV1, for at most 256 classes).
        opacity: strength of the colours in the overlay.
        colors: (classes, 3) uint8 RGB; by default the segmenter's `palette`, else Cityscapes'.
        limit: maximum number of frames to label.
        confidence, min_confidence: as in `fassd.Segmenter.predict`; the overlay fades where labels
            are uncertain.
        on_frame: function called after each frame with the summary so far.

    Raises:
        VideoError: no frame can be decoded, or the encoder cannot be used.
        KeyboardInterrupt: Ctrl-C came before the first frame, or for a second time.
    """
    output = Path(output)
    if output.suffix.lower() not in FORMATS:
        raise VideoError(f"{output}: must end in {', '.join(FORMATS)}, got {output.suffix!r}")
    if colors is None:
        colors = getattr(segmenter, "palette", palette())
    draw = drawing(view, opacity, colors)
    label: Label = segmenter.predict
    if confidence is not None:
        certain: Any = {"confidence": confidence, "min_confidence": min_confidence}
        label = functools.partial(label, **certain)
    run = _Run(source, limit, on_frame or (lambda _: None))
    with _first_ctrl_c(run.interrupt):
        return run(output, label, draw)


@contextlib.contextmanager
def _first_ctrl_c(interrupt: Callable[[], object]) -> Iterator[None]:
    """Call `interrupt` at the first Ctrl-C instead of raising, if signals come to this thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """One video being labelled: a thread decodes, this one runs the network, a third encodes."""

    def __init__(
        self, source: VideoSource, limit: int | None, on_frame: Callable[[Summary], object]
    ) -> None:
        self.source, self.limit, self.on_frame = source, limit, on_frame
        self.summary = Summary(trouble=source.trouble)
        self.stop = threading.Event()
        self.decoded: queue.Queue[Frame | Exception | None] = queue.Queue(DEPTH)
        self.labelled: queue.Queue[tuple[Frame, Any] | None] = queue.Queue(DEPTH)
        self.failure: Exception | None = None  # failure of the encoder
        self.started = time.perf_counter()

    def interrupt(self) -> None:
        self.summary.interrupted = True
        self._stop_reading()

    def __call__(self, output: Path, label: Label, draw: Draw) -> Summary:
        threading.Thread(target=self._decode, daemon=True).start()
        try:
            frames = self._frames()
            first = self._first(frames)
            labels = self._label(label, first.image)
            shape = draw(first.image, *labels).shape
            with replacing(output) as file:
                suffix = output.suffix.lower()
                writer = VideoWriter(file, suffix, shape[:2], self.source, grey=len(shape) == 2)
                self.summary.size = first.image.shape[:2]
                self.summary.codec, self.summary.silent = writer.codec, writer.silent
                encoder = threading.Thread(target=self._encode, args=(writer, draw), daemon=True)
                encoder.start()
                self._hand_over((first, labels))
                self._label_all(frames, label)
                self._hand_over(None)
                while encoder.is_alive():  # in steps, so that a second Ctrl-C is noticed everywhere
                    encoder.join(POLL)
                if self.failure is not None:
                    raise self.failure
        finally:
            self._stop_reading()
        self.summary.frames = writer.frames
        self.summary.seconds = time.perf_counter() - self.started
        return self.summary

    def _stop_reading(self) -> None:
        self.stop.set()
        self.source.stopped.set()

    # ------------------------------------------------------------------------------------ decoding

    def _decode(self) -> None:
        busy, end = self.summary.busy, None
        try:
            frames = iter(self.source)
            while not self.stop.is_set():
                started, waited = time.perf_counter(), self.source.waited
                frame = next(frames, None)
                waited = self.source.waited - waited
                busy["decode"] += time.perf_counter() - started - waited
                if frame is None:
                    break
                if self.source.live:
                    self._make_room()
                self._put(self.decoded, frame)
        except Exception as error:
            end = error
        finally:
            self.source.close()
        self._put(self.decoded, end)

    def _make_room(self) -> None:
        """Drop the frame that has waited longest, if the queue is full; its sound is kept."""
        with self.decoded.mutex:
            waiting: Any = self.decoded.queue
            if len(waiting) == DEPTH:
                oldest = waiting.popleft()
                waiting[0] = waiting[0]._replace(audio=oldest.audio + waiting[0].audio)
                self.summary.dropped += oldest.image is not None

    def _put(self, to: queue.Queue[Any], item: Any) -> None:
        """Wait for room in the queue, unless the run is stopped."""
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                return to.put(item, timeout=POLL)

    # ------------------------------------------------------------------------------------- network

    def _frames(self) -> Iterator[Frame]:
        """Decoded frames, until their end or until the run is stopped."""
        while not self.stop.is_set():
            try:
                item = self.decoded.get(timeout=POLL)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _first(self, frames: Iterator[Frame]) -> Any:
        """The first frame with a picture, and all sound before it."""
        audio: list[Any] = []
        for frame in frames:
            audio += frame.audio
            if frame.image is not None:
                return frame._replace(audio=audio)
        if self.summary.interrupted:
            raise KeyboardInterrupt
        skipped = self.summary.trouble.skipped
        damaged = f" ({skipped} damaged)" if skipped else ""
        raise VideoError(f"{self.source.name}: holds no frame that can be decoded{damaged}")

    def _label(self, label: Label, image: npt.NDArray[np.uint8]) -> tuple[Any, ...]:
        """Labels and, if the segmenter returns it, their certainty."""
        started = time.perf_counter()
        try:
            labels = label(image)
        except ValueError as error:
            raise VideoError(f"{self.source.name}: {error}") from error
        self.summary.busy["network"] += time.perf_counter() - started
        self.summary.frames += 1
        self.summary.seconds = time.perf_counter() - self.started
        self.on_frame(self.summary)
        return labels if isinstance(labels, tuple) else (labels,)

    def _label_all(self, frames: Iterator[Frame], label: Label) -> None:
        while self.limit is None or self.summary.frames < self.limit:
            frame = next(frames, None)
            if frame is None or self.failure is not None:
                return
            labels = None if frame.image is None else self._label(label, frame.image)
            self._hand_over((frame, labels))

    def _hand_over(self, item: tuple[Frame, Any] | None) -> None:
        """Pass a frame, or the end, to the encoder, which finishes even after Ctrl-C."""
        while self.failure is None:
            with contextlib.suppress(queue.Full):
                return self.labelled.put(item, timeout=POLL)

    # ------------------------------------------------------------------------------------ encoding

    def _encode(self, writer: VideoWriter, draw: Draw) -> None:
        busy = self.summary.busy
        try:
            while (item := self.labelled.get()) is not None:
                started = time.perf_counter()
                frame, labels = item
                writer.copy(frame.audio)
                if frame.image is not None:
                    writer.write(draw(frame.image, *labels), frame.pts, frame.duration)
                busy["encode"] += time.perf_counter() - started
            started = time.perf_counter()
            writer.close()
            busy["encode"] += time.perf_counter() - started
        except Exception as error:
            writer.abandon()
            self.failure = error
