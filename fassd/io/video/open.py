"""Opening a video by its name, whatever kind it is."""

from __future__ import annotations

import os
from fractions import Fraction

from fassd.io.find import SEQUENCE, URL
from fassd.io.images import MAX_PIXELS
from fassd.io.levels import Range
from fassd.io.video.reader import VideoReader
from fassd.io.video.sequence import ImageSequence
from fassd.io.video.source import DEFAULT_FPS, VideoSource

__all__ = ["open_video"]


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
        source: which.
        fps: frame rate of a sequence, which has none of its own (25 if not given), and what a
            camera is asked for.
        timeout: seconds after which a stream or camera that sends nothing counts as dropped.
        range, max_pixels: how the pictures of a sequence are read (`fassd.io.images.read_image`).

    Raises:
        VideoError: it does not exist, cannot be opened, or holds no video.
    """
    if SEQUENCE.search(source) and not URL.fullmatch(source) and not os.path.exists(source):
        return ImageSequence(source, fps or DEFAULT_FPS, range, max_pixels)
    return VideoReader(source, fps=fps, timeout=timeout)
