"""``python -m fassd_kernels.tune --backends``: the fastest backend for each call of a network.

Every backend that can run a call of an accelerated network is timed on it. The medians are written
to the table from which :mod:`fassd_kernels.choices` chooses.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fassd_kernels import ops
from fassd_kernels.accelerate import FUSED
from fassd_kernels.backends import backends, refusal
from fassd_kernels.choices import Medians, fastest, read_table, user_path, write_table
from fassd_kernels.modules.conv import FusedConvLayer
from fassd_kernels.modules.fused import Plan
from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.device import Device
from fassd_kernels.tuning import trials
from fassd_kernels.tuning.calls import OperatorCall
from fassd_kernels.tuning.trials import Repeats, TuningCase, TuningTrial

PLANS: dict[str, Callable[[Any, dict[str, Any]], list[Plan]]] = {
    fused.operator: fused.plan for fused in FUSED.values()
} | {"upsample_conv1x1": FusedConvLayer.plan}


def plans_of(call: OperatorCall) -> list[Plan]:
    """The weights that a backend lays out in its own way, as in the fused modules."""
    arguments = call.complete
    if call.operator == "upsample_conv1x1":
        arguments["low_channels"] = sum(x.shape[1] for x in arguments["low"])
    plan = PLANS.get(call.operator)
    return plan(None, arguments) if plan else []  # it does not use the module


def packed_for(call: OperatorCall, backend: str) -> dict[str, Any]:
    """The weights of a call in a backend's layout, as the operator takes them."""
    if not call.packs:
        return {}
    plans = [] if backend == "reference" else plans_of(call)
    pack = ops.packer(backend)
    packed = [pack(weight, stride=s, dilation=d) for weight, s, d in plans]
    return {"packed": (packed[0] if call.operator == "conv_act" else packed) if packed else None}


@dataclass
class BackendCase(TuningCase[str]):
    """A call of a network, and the backends that can run it."""

    subject = "call"
    verdict = "chosen"

    _packed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def medians(self) -> Medians:
        """The row of the table, in microseconds."""
        return {t.candidate: None if t.reason else t.seconds * 1e6 for t in self.trials}

    @property
    def best(self) -> str | None:
        """The backend that will be chosen."""
        return fastest(self.medians, list(self.medians))

    def compute(self, candidate: str) -> Tensor:
        if candidate not in self._packed:
            self._packed[candidate] = packed_for(self.call, candidate)
        return self.call.through(candidate, **self._packed[candidate])

    def repeats(self, candidate: str, calls: Sequence[OperatorCall]) -> Repeats:
        packed = self._packed[candidate]
        return [functools.partial(call.through, candidate, **packed) for call in calls]

    def describe(self, candidate: str) -> dict[str, str]:
        return {"backend": candidate}

    def save(self) -> None:
        path = table_path(self.device)
        known = read_table(path) if path.exists() else {}
        facts = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
        write_table(path, self.device.name, {**known, self.key: self.medians}, facts)
        self._packed.clear()


def table_path(device: Device) -> Path:
    """Path of the user's table."""
    return user_path(device.name)


def candidates_for(call: OperatorCall) -> list[str]:
    """The backends that can run a call, in the default order."""
    image = call.images[0]
    able = [b for b in backends() if not refusal(b, image.device, call.operator, image.dtype)]
    return [backend.name for backend in able]


def recorder(place: torch.device, dtype: torch.dtype) -> str:
    """The first backend with kernels for a whole network, on which its calls are recorded.

    Raises:
        ValueError: there is no such backend.
    """
    needed = set(OPERATORS) - {"asymmetric_conv"}
    for backend in backends():
        refused = any(refusal(backend, place, operator, dtype) for operator in needed)
        if backend.name != "reference" and not refused:
            return backend.name
    raise ValueError("no backend has kernels for a whole network; python -m fassd_kernels says why")


def cases_of(
    calls: Sequence[OperatorCall],
    device: Device,
    candidates: Callable[[OperatorCall], Sequence[str]] = candidates_for,
) -> list[BackendCase]:
    """The distinct calls that more than one backend can run.

    Args:
        calls: calls of a network.
        device: GPU to measure on.
        candidates: function that returns the backends to compare for a call, the default first.
    """
    distinct = {call.key: call for call in calls}
    named = [(key, call, candidates(call)) for key, call in distinct.items()]
    return [
        BackendCase(key, call, [TuningTrial(name) for name in names], device)
        for key, call, names in named
        if len(names) > 1
    ]


def tune(
    cases: Sequence[BackendCase],
    device: Device,
    budget: float,
    timer: trials.Timer = trials.time_in_turns,
) -> list[BackendCase]:
    """Measure until the time is up; write the table.

    Returns:
        The measured cases.
    """
    return trials.measure_until(time.monotonic() + budget, cases, timer)
