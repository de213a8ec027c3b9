"""The time model of Triton: the launches of a network, and the minimum and expected time of each.

The *floor* of a launch is the minimum for any kernel: every byte moved once at the memory's full
bandwidth, or every operation that contributes to the result at the full rate, whichever takes
longer. The *prediction* adds the actual costs of these kernels: padded channels and pixels, inputs
read from the last cache once per tap and per block of output channels, and the gap between two
launches of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fassd.bench.costs import DRAM_EFFICIENCY, LAUNCH_S
from fassd_kernels.triton.aot import Source, source_of
from fassd_kernels.triton.configurations import EFFICIENCY, L2_PER_DRAM
from fassd_kernels.triton.device import Device, assuming
from fassd_kernels.triton.program import Launch, Program, recording
from fassd_kernels.tuning import calls
from fassd_kernels.tuning.calls import OperatorCall


@dataclass(frozen=True)
class TritonLaunch:
    """A launch of a network, with its program."""

    program: Program
    launch: Launch

    @property
    def label(self) -> str:
        """Its purpose, with its channels."""
        problem = self.launch.problem
        if problem is None:
            return self.launch.label
        inputs = "+".join(map(str, problem.in_channels))
        return f"{self.launch.label} {inputs}>{problem.out_channels}"

    @property
    def source(self) -> Source:
        """The source of its binary."""
        return source_of(self.program, self.launch)

    def floor(self, device: Device) -> float:
        """Minimum seconds for any kernel."""
        work = self.launch.work
        return max(work.bytes / device.bandwidth, work.operations / self.rate(device))

    def predicted(self, device: Device) -> float:
        """Expected seconds of this kernel."""
        work = self.launch.work
        memory = work.bytes / (device.bandwidth * DRAM_EFFICIENCY)
        cache = work.loaded / (device.bandwidth * L2_PER_DRAM)
        products = (work.issued or work.operations) / (self.rate(device) * EFFICIENCY)
        return max(memory, cache, products) + LAUNCH_S

    def rate(self, device: Device) -> float:
        return device.rates[0 if self.program.dtype.itemsize == 2 else 1]


def record_network(
    name: str,
    height: int,
    width: int,
    device: Device,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    **settings: Any,
) -> tuple[list[OperatorCall], list[Program]]:
    """Record the operator calls of a network, and the launches of each through Triton on a GPU.

    Nothing is computed, and this machine need not have the GPU. The other arguments are those of
    :func:`fassd_kernels.tuning.calls.record_network`.
    """
    with assuming(device), recording() as programs:
        recorded = calls.record_network(name, height, width, batch=batch, dtype=dtype, **settings)
    return recorded, programs


def plan_network(*arguments: Any, **keywords: Any) -> list[TritonLaunch]:
    """The launches of the programs of :func:`record_network`, which takes the same arguments."""
    _, programs = record_network(*arguments, **keywords)
    return [TritonLaunch(program, launch) for program in programs for launch in program.launches]
