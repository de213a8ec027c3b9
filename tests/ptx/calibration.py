"""The figures of ``csrc/plan/instructions.def``, from what launches of every kind execute."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ptx import executor
from ptx.build import CSRC
from ptx.count import Counted, count_calls

from benchmarks.variants import FUSION, setting
from fassd.bench.costs.cuda import Model
from fassd_kernels.triton.device import SHARED, device_named
from fassd_kernels.tuning.calls import record_network

TABLE = CSRC / "plan" / "instructions.def"
UNIT = re.compile(r"^UNIT\((\w+), (\w+), ([\d.]+)\)", re.M)
# A small picture on a GPU of few multiprocessors is cut into blocks as a large one on a large GPU.
MULTIPROCESSORS, SIZE = 4, (128, 256)
NETWORKS = ("fassd_net", "baseline_aspp")
EXACT = {"products": 1.0}
"""Units that are instructions, and not fitted."""


@dataclass(frozen=True)
class Pair:
    """A launch as it was planned, see ``csrc/plan/launches.h``, and as it was executed."""

    answer: dict[str, Any]
    counted: Counted

    @property
    def ratio(self) -> float:
        """Executed over planned instructions."""
        return self.counted.instructions / sum(self.answer["instructions"].values())


@contextmanager
def a_gpu_of(multiprocessors: int, dtype: torch.dtype = torch.float16) -> Iterator[Model]:
    """The executor's GPU with so many multiprocessors, and its model."""
    capability = executor.DEFAULTS["capability"]
    device = replace(
        device_named("h200"),
        multiprocessors=multiprocessors,
        arch=capability,
        shared=SHARED[capability] * 1024,
    )
    before = executor.DEFAULTS["multiprocessors"]
    # Settings that others change and restore keep it.
    executor.DEFAULTS["multiprocessors"] = multiprocessors
    try:
        with executor.settings(multiprocessors=multiprocessors):
            yield Model(device, dtype)
    finally:
        executor.DEFAULTS["multiprocessors"] = before
        executor.change(**executor.DEFAULTS)


def pairs_of(name: str, size: tuple[int, int], multiprocessors: int) -> list[Pair]:
    """Every launch of a network, planned and executed."""
    found = []
    with a_gpu_of(multiprocessors) as model:
        for call, launches in count_calls(partial(record_network, name, *size, backend="cuda")):
            for answer, launch in zip(model.answer(call), launches, strict=True):
                assert launch.kernel.startswith(answer["kernel"] + "<"), (answer, launch)
                found.append(Pair(answer, launch))
    return found


def fitted(pairs: Sequence[Pair], units: dict[str, str]) -> dict[str, float]:
    """Instructions of a unit, those of each part by least squares of the launches' relative errors.

    Args:
        pairs: launches.
        units: the part of each unit.
    """
    found = dict(EXACT)
    for part in sorted(set(units.values())):
        names = [n for n in units if units[n] == part and n not in EXACT]
        names = [n for n in names if any(n in pair.answer["work"] for pair in pairs)]
        while names:
            rows, right = [], []
            for pair in pairs:
                work, total = pair.answer["work"], pair.counted.instructions
                known = sum(work.get(n, 0) * EXACT[n] for n in EXACT if units[n] == part)
                rows.append([work.get(n, 0) / total for n in names])
                right.append((pair.counted.parts[part] - known) / total)
            solution = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
            negative = [n for n, x in zip(names, solution, strict=True) if x < 0]
            if not negative:
                found |= dict(zip(names, map(float, solution), strict=True))
                break
            found |= dict.fromkeys(negative, 0.0)
            names = [n for n in names if n not in negative]
    return found


def calibrate(path: Path = TABLE) -> str:
    """Write what is counted to the table; what changed, and how far launches are from it."""
    text = path.read_text()
    before = {name: float(figure) for name, _, figure in UNIT.findall(text)}
    units = {name: part for name, part, _ in UNIT.findall(text)}
    pairs = []
    for name in NETWORKS:
        for fusion in ("always", "never"):
            with setting(FUSION, fusion):
                pairs += pairs_of(name, SIZE, MULTIPROCESSORS)
    found = fitted(pairs, units)
    found = {name: round(found.get(name, before[name])) for name in units}

    def line(match: re.Match[str]) -> str:
        return f"UNIT({match[1]}, {match[2]}, {found[match[1]]})"

    path.write_text(UNIT.sub(line, text))
    errors: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        planned = sum(found[n] * amount for n, amount in pair.answer["work"].items())
        errors[pair.answer["label"]].append(pair.counted.instructions / planned)
    lines = [f"{name}: {before[name]:g} -> {found[name]}" for name in units]
    lines += [
        f"{label}: executed over planned {min(each):.2f} to {max(each):.2f}"
        for label, each in errors.items()
    ]
    return "\n".join(lines)
