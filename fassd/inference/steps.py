"""Work on a picture strip by strip: from file to file, and on from where it was cut off."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fassd.inference.fields import TILE, Field
from fassd.inference.maps import MapFile
from fassd.models.replacing import replacing

MEMORY = 2 << 30
"""Default number of bytes that a strip may take."""

NOTED = 5.0
"""Seconds after which the progress of a step is noted; its end is noted at once."""

JOURNAL = "journal.json"
"""Name of the file that says which strips are done."""


class Picture(Protocol):
    """Rows of a picture.

    Attributes:
        height, width: size in pixels.
        identity: value that distinguishes it from other pictures, of types that JSON has.
    """

    height: int
    width: int
    identity: Any

    def read(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Rows [first, last), (rows, width, 3) uint8 RGB."""
        ...


@dataclass
class Target:
    """A map that a step makes, and the number of rows of the step's input per row of it."""

    map: MapFile
    stride: int


@dataclass
class MapStep:
    """The work from one map to the next, strip by strip.

    Attributes:
        name: name of its result.
        targets: maps that it writes.
        height: number of rows of its input.
        field: receptive field of its layers; `stride` is the coarsest of the targets'.
        compute: function from (first, last), a range of input rows, to the rows of every target,
            (1, C, rows, W), the first of which belongs to row `first`.
        reads: maps that it reads.
        whole: True if it takes all rows at once.
    """

    name: str
    targets: Sequence[Target]
    height: int
    field: Field
    compute: Callable[[int, int], Sequence[Tensor]]
    reads: Sequence[MapFile] = ()
    whole: bool = False

    @property
    def align(self) -> int:
        """Number of input rows at multiples of which a strip may begin and end."""
        return TILE * self.field.stride

    @property
    def units(self) -> int:
        """Number of rows of the coarsest target, each with at least one row of every other."""
        return max(-(-t.map.height * t.stride // self.field.stride) for t in self.targets)

    def input_rows(self, first: int, last: int) -> tuple[int, int]:
        """Rows [begin, end) of the input that are read for units [first, last)."""
        if self.whole:
            return 0, self.height
        above = first * self.field.stride - self.field.reach
        below = last * self.field.stride + self.field.reach
        begin = max(0, above // self.align * self.align)
        return begin, min(self.height, -(-below // self.align) * self.align)

    def units_within(self, values: float, rows: int | None, height: int) -> int:
        """Number of units in a strip of at most `values` values, or of `rows` picture rows.

        At least one; `least_values` are its values. `height` is that of the picture.
        """
        if self.whole:
            return self.units
        if rows is not None:
            return max(1, rows * self.height // (height * self.field.stride))
        around = 2 * (self.field.reach + self.align)
        fit = int(values / self.field.values) - around
        # A picture that is no higher than that has fewer rows around a strip.
        if self.height * self.field.values <= values:
            return self.units
        return max(1, min(self.units, fit // self.field.stride))

    def least_rows(self) -> int:
        """Number of input rows of the smallest strip away from the borders."""
        rows = 2 * (self.field.reach + self.align) + self.field.stride
        return self.height if self.whole else min(rows, self.height)

    def least_values(self) -> float:
        """Number of values in the smallest strip."""
        return self.field.values * self.least_rows()

    def do(self, first: int, last: int) -> None:
        """Make units [first, last)."""
        begin, end = self.input_rows(first, last)
        for target, strip in zip(self.targets, self.compute(begin, end), strict=True):
            top = first * self.field.stride // target.stride
            bottom = min(last * self.field.stride // target.stride, target.map.height)
            if last == self.units:
                bottom = target.map.height
            skipped = begin // target.stride
            target.map.write(top, strip[:, :, top - skipped : bottom - skipped])


def run(
    steps: Sequence[MapStep],
    folder: Path,
    identity: str,
    *,
    memory: int = MEMORY,
    rows: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Do the steps, from where an earlier run of the same work in this folder ended.

    The folder must be `fassd.io.files.locked`. What the journal says is done is on the disk, so
    that it also holds through a crash of the machine, which loses the last `NOTED` seconds.

    Args:
        steps: steps of a `StripPlan`; the targets of the last one stay, all other maps are deleted
            when the last step that reads them is done.
        folder: folder of the maps.
        identity: text that distinguishes this work from other work.
        memory: bytes that the values of a strip may take.
        rows: rows of the picture in a strip, in place of `memory`.
        progress: function called after each strip with the share of the work that is done.

    Raises:
        OSError: the maps do not fit on the disk.
    """
    height = steps[-1].height
    done = _journal(folder, identity)
    _check_space(steps, folder, done)
    costs = [step.height * step.field.values for step in steps]
    for index, step in enumerate(steps):
        begun = first = done.get(step.name, 0)
        if first < step.units:
            for target in step.targets:
                target.map.create()
        count = step.units_within(memory / _itemsize(step), rows, height)
        noted = time.monotonic()
        try:
            while first < step.units:
                last = min(first + count, step.units)
                with torch.inference_mode():
                    step.do(first, last)
                done[step.name] = first = last
                if time.monotonic() > noted + NOTED:
                    _note(step, folder, identity, done)
                    noted = time.monotonic()
                progress((sum(costs[:index]) + costs[index] * last / step.units) / sum(costs))
        finally:
            if first > begun:
                _note(step, folder, identity, done)
        later = {each.path for other in steps[index + 1 :] for each in other.reads}
        for each in step.reads:
            if each.path not in later:
                each.path.unlink(missing_ok=True)


def _itemsize(step: MapStep) -> int:
    """Size in bytes of the largest values that a step reads or writes."""
    return max(each.dtype.itemsize for each in (*step.reads, *(t.map for t in step.targets)))


def check_memory(steps: Sequence[MapStep], memory: int) -> None:
    """Raise ValueError where the smallest strip of a step does not fit in memory."""
    for step in steps:
        least = step.least_values() * _itemsize(step)
        if least > memory:
            raise ValueError(
                f"memory of {memory:,.0f} bytes is not enough for a strip: the smallest one of "
                f"{step.name}, {step.least_rows()} rows of its input, takes {least:,.0f} bytes"
            )


def _check_space(steps: Sequence[MapStep], folder: Path, done: dict[str, int]) -> None:
    maps = [target.map for step in steps for target in step.targets if step.name not in done]
    needed, free = sum(each.bytes for each in maps), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: the maps of this picture take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} "
            "GB are free there; give another folder for them"
        )


def _journal(folder: Path, identity: str) -> dict[str, int]:
    """Number of finished units of each step; maps that other work has left are removed."""
    try:
        found = json.loads((folder / JOURNAL).read_text())
        if found["identity"] == identity:
            return {str(name): int(units) for name, units in found["done"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    for left in folder.glob("*.raw"):
        left.unlink()
    return {}


def _note(step: MapStep, folder: Path, identity: str, done: dict[str, int]) -> None:
    """Note what is done, once the results of the last step are on the disk."""
    for target in step.targets:
        target.map.sync()
    with replacing(folder / JOURNAL, durable=True) as file:
        file.write(json.dumps({"identity": identity, "done": done}).encode())
