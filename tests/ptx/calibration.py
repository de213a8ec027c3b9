"""The figures of ``csrc/plan/instructions.def``, from what launches of every kind execute."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from conformance import cases
from conformance.harness import Call
from ptx import executor
from ptx.build import CSRC
from ptx.count import Counted, count_calls
from torch import Tensor

from fassd.bench.costs.cuda import HALF, Model
from fassd_kernels import ops
from fassd_kernels.triton.device import SHARED, device_named
from fassd_kernels.tuning.calls import record_network

VARIABLE = "FASSD_KERNELS_CUDA_VARIANT"
FUSION = "FASSD_KERNELS_CUDA_FUSION"
COPIES = "FASSD_KERNELS_CUDA_COPIES"
TABLE = CSRC / "plan" / "instructions.def"
UNIT = re.compile(r"^UNIT\((\w+), (\w+), ([\d.]+)\)", re.M)
# A small picture on a GPU of few multiprocessors is cut into blocks as a large one on a large GPU.
# The backend asks for its GPU once, so that PTX_SETTINGS have to say it.
SETTINGS = {"capability": 90, "multiprocessors": 4}
SIZE = (128, 256)
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


def model_of(dtype: torch.dtype = torch.float16) -> Model:
    """The model of the executor's GPU, as `SETTINGS` have it."""
    capability, multiprocessors = (executor.DEFAULTS[name] for name in SETTINGS)
    device = replace(
        device_named("h200"),
        multiprocessors=multiprocessors,
        arch=capability,
        shared=SHARED[capability] * 1024,
    )
    return Model(device, dtype)


def pairs_of(name: str, size: tuple[int, int]) -> list[Pair]:
    """Every launch of a network, planned and executed."""
    found = []
    for call, launches in count_calls(partial(record_network, name, *size, backend="cuda")):
        for answer, launch in zip(model_of().answer(call), launches, strict=True):
            assert launch.kernel.startswith(answer["kernel"] + "<"), (answer, launch)
            found.append(Pair(answer, launch))
    return found


def as_kernels_leave_it(image: Tensor) -> Tensor:
    """Pixels a multiple of eight channels apart, zeros behind the last channel."""
    if image.dim() != 4 or not image.is_floating_point():
        return image
    batch, channels, height, width = image.shape
    padded = image.new_zeros(batch, height, width, -(-channels // 8) * 8).permute(0, 3, 1, 2)
    return padded[:, :channels].copy_(image)


def pairs_of_call(call: Call, dtype: torch.dtype = torch.float16) -> list[Pair]:
    """What an operator's call launches, planned and executed."""
    call = call.to(dtype).map(as_kernels_leave_it)
    ((made, launches),) = count_calls(
        lambda: ops.operator(call.operator, "cuda")(*call.positional, **call.keywords)
    )
    answers = model_of(dtype).answer(made)
    return [Pair(*both) for both in zip(answers, launches, strict=True)]


# What no network launches, or few.
OTHERS = (
    cases.conv_act(1, (8,) * 10, 16, (64, 128), activation="relu"),
    cases.conv_act(1, (24,), 24, (64, 128), pool=2, activation="relu"),
    cases.conv_act(1, (24,), 24, (64, 128), residual=True),
    *(cases.conv_act(1, (24,), 24, (64, 128), activation=name) for name in ("hardswish", "silu")),
    *(cases.grouped_conv_act(1, 64, 64, 1, (64, 128), side) for side in (3, 5, 7)),
    cases.grouped_conv_act(1, 64, 8, 1, (32, 64)),
    cases.max_pool(1, 64, (64, 128)),
    cases.normalize_conv_act(1, 16, (128, 256), stride=(2, 2), activation="relu"),
    cases.upsample(1, 19, (32, 64), (128, 256)),
    *(cases.upsample_argmax(1, n, (32, 64), (128, 256)) for n in (7, 19, 40)),
    cases.upsample_argmax(1, 19, (16, 24), (64, 96)),
    *(cases.upsample_confidence(1, n, (32, 64), (128, 256)) for n in (7, 19, 40)),
)
# What every compiled kernel is asked to compute, where it fits.
FORCED = (
    cases.conv_act(1, (16,), 24, (32, 128), activation="relu"),
    cases.conv_act(1, (64, 40), 48, (32, 128), activation="relu"),
    cases.conv_act(1, (24,), 32, (64, 64), stride=(2, 2), activation="relu"),
    cases.conv_act(1, (96,), 64, (64, 128), (1, 1), activation="prelu"),
    cases.conv_act(1, (59,), 59, (32, 128), (3, 1), dilation=(4, 1), activation="prelu"),
    cases.conv_act(1, (59,), 59, (32, 128), (1, 3), dilation=(1, 4), activation="prelu"),
    cases.hardblock(1, 48, (10, 18, 10, 28), (32, 128)),
    cases.mda(1, 63, 31, (32, 128)),
    cases.asymmetric_conv(1, 96, 96, 96, (32, 64), 8),
    cases.dapf(1, 96, 48, 96, (32, 64), (4, 8, 12)),
)


def compiled() -> list[str]:
    """The kernels of 16-bit values, as the environment variable names them."""
    rows = [
        row
        for kernel in ("convolution_kernel", "pair_kernel")
        for row in torch.ops.fassd_kernels_plan.variants(HALF, kernel).tolist()
    ]
    return sorted({",".join(map(str, row)) for row in rows})


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


def is_set() -> bool:
    """Whether the executor is the GPU of `SETTINGS`."""
    return all(executor.DEFAULTS[name] == value for name, value in SETTINGS.items())


def calibrate(path: Path = TABLE) -> str:
    """Write what is counted to the table; what changed, and how far launches are from it."""
    text = path.read_text()
    before = {name: float(figure) for name, _, figure in UNIT.findall(text)}
    units = {name: part for name, part, _ in UNIT.findall(text)}
    pairs = []
    for name in NETWORKS:
        for fusion in ("always", "never"):
            with mock.patch.dict(os.environ, {FUSION: fusion}):
                pairs += pairs_of(name, SIZE)
    for call in OTHERS:
        pairs += pairs_of_call(call)
    # Whatever the plans take today, tomorrow's figures decide among all kernels.
    for variant, copies in itertools.product(compiled(), ("", "threads")):
        forced = {VARIABLE: variant, FUSION: "always", COPIES: copies}
        with mock.patch.dict(os.environ, forced):
            for call in FORCED:
                pairs += pairs_of_call(call)
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
