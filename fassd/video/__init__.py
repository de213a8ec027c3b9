"""Videos in, segmented videos out; needs PyAV, which brings FFmpeg's libraries along.

>>> from fassd.video import open_video, segment_video
>>> segment_video(open_video("drive.mp4"), "out.mp4", fassd.Segmenter("fassd_net"))

`reader` reads files, cameras and streams, `sequence` numbered pictures, `writer` writes; `pipeline`
runs them beside the network.
"""

from __future__ import annotations

try:
    import av  # noqa: F401
except ImportError as error:
    raise ImportError(f"videos need PyAV ({error}): pip install 'fassd-net[video]'") from error

from fassd.video.pipeline import VIEWS, Summary, View, segment_video
from fassd.video.reader import VideoReader
from fassd.video.sequence import ImageSequence
from fassd.video.source import VideoError, VideoSource, open_video
from fassd.video.writer import FORMATS, VideoWriter

__all__ = [
    "FORMATS",
    "VIEWS",
    "ImageSequence",
    "Summary",
    "VideoError",
    "VideoReader",
    "VideoSource",
    "VideoWriter",
    "View",
    "open_video",
    "segment_video",
]
