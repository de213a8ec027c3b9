"""Writes calls with their results into a file for the driver: ``python -m aarch64.cases FILE``.

The calls are those of the conformance suite: rows of its tables, in every dtype, and drawn ones.
What is right comes from the float64 reference. The file is all that a machine needs beside the
driver: ``driver FILE`` says which results are wrong.
"""

from __future__ import annotations

import argparse
import importlib
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from aarch64 import calls
from conformance import definition, harness
from conformance.harness import Call
from hypothesis import settings
from torch import Tensor

import fassd_kernels
from fassd_kernels import reference


class Recorder:
    """What a conformance test takes for an operator on a backend: it is always right, and writes.

    Attributes:
        count: calls written.
    """

    device = "cpu"
    dtypes = harness.DTYPES

    def __init__(self, operator: str, file: IO[bytes]) -> None:
        self.operator = operator
        self.target = harness.Target(fassd_kernels.backends()["cpu"], "cpu")
        self.file = file
        self.count = 0

    def __call__(self, call: Call) -> Tensor:
        schema = getattr(torch.ops.fassd_kernels, call.operator).default._schema
        right = harness.expected(call)
        dtype = call.arguments.get("dtype") or call.floating[0].dtype
        self.file.write(calls.text(f"{call.operator}, {dtype}, {described(call)}"))
        self.file.write(calls.call(schema, call.positional, call.keywords))
        self.file.write(judged(call, right, harness.TOLERANCES[dtype]))
        self.count += 1
        if call.row.gives_labels:
            return right.contiguous()
        return right.to(dtype).contiguous(memory_format=torch.channels_last)


def described(call: Call) -> str:
    shapes = [tuple(x.shape) for x in call.tensors]
    plain = {k: v for k, v in call.keywords.items() if not isinstance(v, torch.dtype)}
    return f"{shapes}, {plain}"


def judged(call: Call, right: Tensor, tolerance: float) -> bytes:
    """How the driver judges a result: as `harness.check_result` does."""
    if not call.row.gives_labels:
        return b"c" + calls.tensor(right.contiguous()) + struct.pack("<d", tolerance)
    exact = call.to(torch.float64)
    size = {key: exact.arguments[key] for key in ("size", "align_corners") if key in call.arguments}
    logits = reference.upsample(exact.arguments["input"], **size).contiguous()
    allowed = 4 * tolerance * logits.abs().max().item() if logits.numel() else 0.0
    levels, off = torch.empty(0, dtype=torch.uint8), 0.0
    if right.dim() == 4:
        levels = right[:, 1].contiguous()
        largest = logits.abs().max().item() if logits.numel() else 0.0
        off = 1 + 255 * tolerance * largest / exact.arguments.get("temperature", 1.0)
    head = b"l" + calls.tensor(logits) + struct.pack("<d", allowed)
    return head + calls.tensor(levels) + struct.pack("<d", off)


@dataclass(frozen=True)
class Standard:
    """The tests of an operator that `definition.standard_tests` made: rows, and what draws more."""

    operator: str
    table: Sequence[definition.Row]
    draw: Any


def standards() -> Iterator[Standard]:
    for path in sorted(Path(definition.__file__).parent.glob("test_*.py")):
        module: Any = importlib.import_module(f"conformance.{path.stem}")
        if not hasattr(module, "test_drawn"):
            continue
        marks = [*module.test_table.pytestmark, getattr(module, "pytestmark", None)]
        named = {mark.name: mark.args for mark in reversed(marks) if mark is not None}
        for operator in named["operators"]:
            yield Standard(operator, named["parametrize"][1], module.test_drawn)


def write(file: IO[bytes], every: int, drawn: int) -> int:
    """Write one row in `every` of the tables and `drawn` calls of each operator; return how many.

    Before any module of the suite is imported: that is when its tests are made.
    """
    definition.drawn = settings(definition.drawn, max_examples=drawn)
    count = 0
    found = list(standards())
    assert {standard.operator for standard in found} == set(harness.OPERATORS)
    for standard in found:
        recorder = Recorder(standard.operator, file)
        subject: Any = recorder
        for i, row in enumerate(standard.table[::every]):
            # Where rows are left out, dtypes are dealt over those that stay.
            dtypes = harness.DTYPES if every == 1 else harness.DTYPES[i % 4 :][:1]
            for dtype in dtypes:
                call = definition.call_of(subject, row)
                definition.check(subject, call, dtype, row["layout"])
        standard.draw(subject=subject)
        print(f"{standard.operator}: {recorder.count} calls", file=sys.stderr)
        count += recorder.count
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m aarch64.cases")
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=int, default=8, help="one row in so many of the tables")
    parser.add_argument("--drawn", type=int, default=72, help="drawn calls of each operator")
    asked = parser.parse_args()
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = asked.file.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        count = write(file, asked.every, asked.drawn)
    unfinished.rename(asked.file)
    print(f"{asked.file}: {count} calls, {asked.file.stat().st_size >> 20} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
