"""Reading and writing videos; needs PyAV, which includes FFmpeg's libraries.

>>> from fassd.inference.video import segment_video
>>> from fassd.io.video import open_video
>>> segment_video(open_video("drive.mp4"), "out.mp4", fassd.Segmenter("fassd_net"))
"""

from __future__ import annotations

try:
    import av  # noqa: F401
except ImportError as error:
    raise ImportError(f"videos need PyAV ({error}): pip install 'fassd-net[video]'") from error

from fassd.io.video.open import ImageSequence, open_video
from fassd.io.video.reader import VideoReader
from fassd.io.video.source import VideoError, VideoSource
from fassd.io.video.writer import FORMATS, VideoWriter

__all__ = [
    "FORMATS",
    "ImageSequence",
    "VideoError",
    "VideoReader",
    "VideoSource",
    "VideoWriter",
    "open_video",
]
