"""Labels a picture with OpenCV alone: its `dnn` module reads the ONNX file of `fassd export`.

    fassd export fassd_net_l2 -o net.onnx --size 512x1024 --preprocess --output labels
    python examples/opencv_dnn.py net.onnx street.jpg labels.png --size 512x1024

Neither PyTorch nor this project is imported. OpenCV 5 is needed: the importer of 4 does not take
the file's Resize.
"""

from __future__ import annotations

import argparse
import sys

import cv2
import numpy as np


def label(network: cv2.dnn.Net, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of every pixel.

    Args:
        network: network from uint8 RGB (1, H, W, 3) to uint8 labels (1, H, W).
        picture: (height, width, 3) uint8 BGR, as OpenCV reads it.
        size: (H, W) that the network takes.

    Returns:
        (height, width) uint8.
    """
    height, width = size
    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    network.setInput(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)[None])
    labels = network.forward()[0]
    return cv2.resize(labels, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="net.onnx, exported with --preprocess --output labels")
    parser.add_argument("picture")
    parser.add_argument("output", help="labels.png: grey levels are class indices")
    parser.add_argument("--size", default="512x1024", help="HxW that it was exported for")
    given = parser.parse_args()
    height, _, width = given.size.partition("x")
    picture = cv2.imread(given.picture)
    if picture is None:
        sys.exit(f"{given.picture}: cannot be read as a picture")
    try:
        network = cv2.dnn.readNetFromONNX(given.network)
        labels = label(network, picture, (int(height), int(width)))
    except (cv2.error, ValueError) as error:
        sys.exit(f"{given.network}: {error}")
    if not cv2.imwrite(given.output, labels):
        sys.exit(f"{given.output}: cannot be written")


if __name__ == "__main__":
    main()
