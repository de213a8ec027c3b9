"""Numbered pictures as a video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from PIL import Image

from fassd.io.find import sequence_files
from fassd.io.images import MAX_PIXELS, ImageError, examine_image
from fassd.io.levels import Range, as_range, told
from fassd.io.video.source import Frame, VideoError, VideoSource

__all__ = ["ImageSequence"]


class ImageSequence(VideoSource):
    """Pictures named by a pattern such as frame%04d.png, in the order of their numbers.

    They are read as `fassd.io.images.read_image` does. A number that is missing leaves a gap in
    time: the frame before it stays for longer.

    Args:
        pattern: the files.
        fps: numbers per second.
        range, max_pixels: as there.

    Raises:
        VideoError: no file fits the pattern.
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
            raise VideoError(f"{pattern}: no file fits this numbered pattern")
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
                resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
                image = np.asarray(resized)
            yield Frame(image, number - first, 1, [])

    def close(self) -> None:
        pass  # each file is closed as soon as it is read
