"""Labels as PNG and as run lengths, and the share of the picture that each class has."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def to_png(labels: npt.NDArray[np.uint8], certainty: npt.NDArray[np.uint8] | None = None) -> bytes:
    """(H, W) class indices as an 8-bit greyscale PNG: the grey level is the index.

    With their certainty, an RGB PNG: red is the index, green 255 times the certainty.
    """
    buffer = io.BytesIO()
    pixels = labels
    if certainty is not None:
        pixels = np.stack([labels, certainty, np.zeros_like(labels)], 2)
    # Level 1: 2.4 ms for a street of 512x1024, compared with 3.6 by default; half as large again.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def run_lengths(labels: npt.NDArray[np.uint8]) -> list[list[int]]:
    """(H, W) class indices as runs of equal ones.

    Returns:
        [label, length] of every run, row by row from the top left; a run continues from the end of
        a row at the beginning of the next. The lengths add up to H * W.
    """
    flat = labels.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(starts, append=flat.size)
    return np.stack([flat[starts], lengths], axis=1).tolist()


def shares(labels: npt.NDArray[np.uint8], num_classes: int) -> list[float]:
    """The share of the pixels, 0 .. 1, of each class."""
    return (np.bincount(labels.ravel(), minlength=num_classes) / labels.size).tolist()


def certainties(
    labels: npt.NDArray[np.uint8], certainty: npt.NDArray[np.uint8], num_classes: int
) -> list[float]:
    """The mean certainty, 0 .. 1, of each class's pixels; 0 for a class without pixels."""
    counts = np.bincount(labels.ravel(), minlength=num_classes)
    sums = np.bincount(labels.ravel(), certainty.ravel() / 255, minlength=num_classes)
    return (sums / np.maximum(counts, 1)).tolist()
