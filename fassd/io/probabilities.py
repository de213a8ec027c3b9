"""Probabilities of all classes as a file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from fassd.io.files import replacing


def write_probabilities(
    path: str | os.PathLike[str], probabilities: npt.NDArray[np.floating[Any]], names: Sequence[str]
) -> None:
    """Write probabilities; the file gets its final name when it is complete.

    Args:
        path: path of a .npz, compressed: ``probabilities``, (classes, H, W) float16, and
            ``classes``, their names; or of a .tif: a 16-bit page for each class, 65535 for a
            probability of 1, with the class's name in its description.
        probabilities: (classes, H, W), 0 to 1.
        names: names of the classes.

    Raises:
        OSError: the file cannot be written.
        ValueError: the ending is another.
    """
    path = Path(path)
    if path.suffix.lower() not in (".npz", ".tif"):
        raise ValueError(f"{path}: probabilities are written as .npz or .tif")
    with replacing(path) as file:
        if path.suffix.lower() == ".npz":
            halves = probabilities.astype(np.float16)
            np.savez_compressed(file, probabilities=halves, classes=np.array(names))
            return
        levels = np.rint(probabilities * 65535).astype(np.uint16)
        content = io.BytesIO()  # Pillow reads back what it has written when there are several pages
        with TiffImagePlugin.AppendingTiffWriter(content) as pages:
            for level, name in zip(levels, names, strict=True):
                kind = {"compression": "tiff_adobe_deflate", "description": name}
                Image.fromarray(level).save(pages, "TIFF", **kind)
                pages.newFrame()
        file.write(content.getbuffer())
