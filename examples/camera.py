"""A camera loop: label the newest frame, act on the labels, never fall behind.

    python examples/camera.py 0                          # the first webcam
    python examples/camera.py rtsp://camera/stream --model fassd_net_l2
    python examples/camera.py drive.mp4 --save last.png --frames 100

A thread keeps only the latest frame: a network that is slower than the camera skips frames in place
of lagging. (In a file, every frame is labelled.) `fassd predict camera:0 -o out.mp4` does the same
and writes a video; start from here where your program needs the labels themselves. On an NVIDIA GPU
see also `fassd_kernels.Runner`.
"""

from __future__ import annotations

import argparse
import threading
import time

import cv2
import numpy as np

import fassd
from fassd.io.images import write_image
from fassd.io.palette import overlay


class Latest:
    """The latest frame of a camera, a stream or a file, BGR (H, W, 3) uint8."""

    def __init__(self, source: str) -> None:
        self.capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
        if not self.capture.isOpened():
            raise SystemExit(
                f"cannot open {source!r}: give a camera's number, a file or an address"
            )
        self.live = source.isdigit() or "://" in source
        self.frame: np.ndarray | None = None
        self.ended = False
        self.changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self.ended:
            found, frame = self.capture.read()
            with self.changed:
                if not self.live:
                    self.changed.wait_for(lambda: self.frame is None)
                self.frame, self.ended = frame if found else self.frame, self.ended or not found
                self.changed.notify()
        self.capture.release()

    def next(self) -> np.ndarray | None:
        """The newest frame that was not given yet; None when the source has ended."""
        with self.changed:
            self.changed.wait_for(lambda: self.frame is not None or self.ended)
            frame, self.frame = self.frame, None
            self.changed.notify()
            return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="camera's number, video file or address")
    parser.add_argument("--model", default="fassd_net_l2", help="network, or a file of fassd train")
    parser.add_argument("--weights", default="streets", help="weights of a network given by name")
    parser.add_argument("--frames", type=int, help="stop after this many labelled frames")
    parser.add_argument("--save", metavar="PNG", help="write the last frame with its labels")
    options = parser.parse_args()

    weights = options.weights if options.model in fassd.list_models() else None
    segmenter = fassd.Segmenter(options.model, weights=weights)
    names = [info.name for info in segmenter.classes]
    camera, count, began = Latest(options.source), 0, time.perf_counter()
    frame = labels = None
    try:
        while count != options.frames and (newest := camera.next()) is not None:
            frame = newest
            labels = segmenter.predict(frame, order="BGR")  # (H, W) uint8, class indices
            count += 1

            # Your program goes here. As an example: what fills the lower middle of the picture?
            height, width = labels.shape
            ahead = labels[height // 2 :, width // 3 : 2 * width // 3]
            share = np.bincount(ahead.ravel(), minlength=len(names)) / ahead.size
            rate = count / (time.perf_counter() - began)
            print(f"{rate:5.1f} frames/s  ahead: {names[share.argmax()]} {share.max():.0%}")
    except KeyboardInterrupt:
        pass
    camera.ended = True
    if options.save and frame is not None and labels is not None:
        write_image(options.save, overlay(frame[..., ::-1], labels, colors=segmenter.palette))


if __name__ == "__main__":
    main()
