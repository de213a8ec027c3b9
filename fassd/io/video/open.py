"""Opening a video by its name, whatever its kind; numbered pictures as a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

from fassd.io.find import SEQUENCE, URL, sequence_files
from fassd.io.images import MAX_PIXELS, ImageError, examine_image, resized
from fassd.io.levels import Range, as_range, told
from fassd.io.video.reader import VideoReader
from fassd.io.video.source import DEFAULT_FPS, Frame, VideoError, VideoSource


def open_video(
    source: str,
    *,
    fps: Fraction | None = None,
    timeout: float = 10.0,
    range: Range = None,
    max_pixels: int = MAX_PIXELS,
) -> VideoSource:
    """Open a video file, `camera:N`, an address, or a numbered sequence (frame%04d.png).

    Args:
        source: video to open.
        fps: frame rate of a sequence, which has none of its own (25 by default), and the rate
            requested from a camera.
        timeout: seconds after which a stream or camera that sends nothing counts as disconnected.
        range, max_pixels: options for reading a sequence's pictures (`fassd.io.images.read_image`).

    Raises:
        VideoError: the source does not exist, cannot be opened, or has no video.
    """
    if SEQUENCE.search(source) and not URL.fullmatch(source) and not os.path.exists(source):
        return ImageSequence(source, fps or DEFAULT_FPS, range, max_pixels)
    return VideoReader(source, fps=fps, timeout=timeout)


class ImageSequence(VideoSource):
    """Pictures named by a pattern such as frame%04d.png, in the order of their numbers.

    They are read like `fassd.io.images.read_image` does. A missing number leaves a gap in time: the
    frame before it is shown for longer.

    Args:
        pattern: pattern of the file names.
        fps: frames, or numbers, per second.
        range, max_pixels: options for reading the pictures, as in `fassd.io.images.read_image`.

    Raises:
        VideoError: no file matches the pattern.
    """

    def __init__(
        self,
        pattern: str,
        fps: Fraction,
        range: Range = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(pattern)
        self.range, self.max_pixels = as_range(range), max_pixels
        self.files = sequence_files(pattern)
        if not self.files:
            raise VideoError(f"{pattern}: no file matches this numbered pattern")
        self.rate = fps
        self.time_base = 1 / fps
        self.expected = len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        first, size = self.files[0][0], None
        for number, path in self.files:
            try:
                reading = examine_image(path, self.range, self.max_pixels)
            except ImageError as error:
                self.trouble.skipped += 1
                self.trouble.note(f"skipped: {error}")
                continue
            image = reading.pixels
            for remark in reading.remarks:
                self.trouble.note(remark)
            if reading.range is not None:
                self.trouble.note(told(self.range, reading.range))
            size = size or image.shape[:2]
            if image.shape[:2] != size:
                self.trouble.resized += 1
            yield Frame(resized(image, size), number - first, 1, [])

    def close(self) -> None:
        pass  # each file is closed as soon as it has been read
