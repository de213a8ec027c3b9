"""A network's maps in files, for pictures whose maps do not fit into memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class MapFile:
    """A map of a network in a file: (height, width, channels), row by row.

    Args:
        path: path of the file, which is created if it does not exist.
        shape: shape (height, width, channels).
        dtype: dtype of the values.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.height = shape[0]
        self._row = shape[1] * shape[2] * dtype.itemsize
        self.bytes = self.height * self._row

    def create(self) -> None:
        with self.path.open("ab") as file:
            file.truncate(self.bytes)

    def write(self, first: int, strip: Tensor) -> None:
        """Write a strip, (1, channels, rows, width), at row `first`."""
        rows = strip[0].permute(1, 2, 0).contiguous().cpu()
        with self.path.open("r+b", buffering=0) as file:
            file.seek(first * self._row)
            left = rows.flatten().view(torch.uint8).numpy().data
            while left:
                left = left[file.write(left) :]

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())

    def read(self, first: int, last: int) -> Tensor:
        """Rows [first, last), (1, channels, rows, width), channels_last."""
        values = np.empty((last - first) * self._row, np.uint8)
        left = values.data
        with self.path.open("rb", buffering=0) as file:
            file.seek(first * self._row)
            while left:
                count = file.readinto(left)
                if not count:
                    raise OSError(f"{self.path}: ends before row {last}")
                left = left[count:]
        rows = torch.from_numpy(values).view(self.dtype)
        return rows.view(last - first, *self.shape[1:]).permute(2, 0, 1)[None]
