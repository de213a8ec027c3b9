"""What a run writes down: CSV files that a resumed run continues, and TensorBoard.

The CSV files hold nothing that depends on the clock, so that an interrupted and resumed run leaves
the same bytes as one that ran through.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fassd.io.files import regular, replacing

__all__ = ["CSVLog", "TensorBoardLog"]


class CSVLog:
    """Rows with a header; the first column is the step.

    Args:
        path: of the file.
        columns: of the header.
        after: rows of later steps, left by a run that was cut off, are removed. 0 begins anew.
    """

    def __init__(self, path: Path, columns: Sequence[str], after: int) -> None:
        self.path = path
        self.columns = list(columns)
        kept = [row for row in self._rows() if row and int(row[0]) <= after] if after else []
        self.waiting: list[Sequence[Any]] = []
        with replacing(path) as file:
            file.write(_lines([self.columns, *kept]))

    def _rows(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        # A line that was cut off while it was written has fewer cells.
        return [row for row in rows if len(row) == len(self.columns) and row[0].isdigit()]

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows; they are on the disk when this returns.

        Raises:
            OSError: they could not be written; they will be with the next rows.
        """
        self.waiting += rows
        size = self.path.stat().st_size
        try:
            with open(self.path, "ab", opener=regular) as file:
                file.write(_lines(self.waiting))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with open(self.path, "r+b", opener=regular) as file:
                file.truncate(size)  # half a row would stay otherwise
            raise
        self.waiting = []


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class TensorBoardLog:
    """Scalars and pictures for TensorBoard; does nothing, after one warning, without that package.

    Args:
        folder: of the event files.
        after: what an earlier part of the run logged behind this step is hidden.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                "no TensorBoard logs: the package tensorboard is missing "
                "(pip install 'fassd-net[train]')",
                stacklevel=2,
            )
            return
        # A link of its name would be followed: none can be where nobody foresees the name.
        try:
            self.writer = SummaryWriter(
                str(folder),
                purge_step=after + 1 if after else None,
                filename_suffix=f".{secrets.token_hex(4)}",
            )
        except UnicodeEncodeError:
            warnings.warn(
                f"no TensorBoard logs: it takes no name that is not UTF-8: {folder}", stacklevel=2
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """`image` is (H, W, 3) uint8 RGB."""
        if self.writer is not None:
            self.writer.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Write out what is waiting."""
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
