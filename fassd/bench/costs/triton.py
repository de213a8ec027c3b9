"""The time model: what a network launches, and what each launch must and may take.

The *floor* of a launch is what no kernel can go below: every byte moved once at the memory's full
bandwidth, or every operation that reaches the result at the full rate, whichever takes longer. The
*prediction* adds what these kernels really do: padded channels and pixels, inputs read once per tap
and per block of output channels from the last cache, and the gap between two launches of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import fassd
from fassd.bench.costs import DRAM_EFFICIENCY, LAUNCH_S
from fassd_kernels.accelerate import accelerate
from fassd_kernels.modules.network import Output
from fassd_kernels.triton.aot import Source, source_of
from fassd_kernels.triton.configurations import EFFICIENCY, L2_PER_DRAM
from fassd_kernels.triton.device import Device, assuming
from fassd_kernels.triton.program import Launch, Program, recording
from fassd_kernels.tuning.tiles import Calls, RecordedCall


@dataclass(frozen=True)
class Planned:
    """A launch of a network, with the program it belongs to."""

    program: Program
    launch: Launch

    @property
    def label(self) -> str:
        return self.launch.label

    @property
    def source(self) -> Source:
        """What its binary is made from."""
        return source_of(self.program, self.launch)

    def floor(self, device: Device) -> float:
        """Seconds that no kernel can go below."""
        work = self.launch.work
        return max(work.bytes / device.bandwidth, work.operations / self.rate(device))

    def predicted(self, device: Device) -> float:
        """Seconds expected of this kernel."""
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
    output: Output = "labels",
    classes: int = 19,
    alpha: int = 2,
) -> tuple[list[RecordedCall], list[Program]]:
    """The operator calls of a variant of the family, and what each launches through Triton.

    Args:
        name: a variant, as ``fassd list`` shows them.
        height, width: size of the picture.
        device: the GPU to plan for, which need not be in this machine.
        batch: number of pictures at once.
        dtype: type of the network.
        output: ``labels`` or ``logits``.
        classes, alpha: number of classes, and the network's parameter alpha.
    """
    model = fassd.create_model(name, num_classes=classes, alpha=alpha).eval()
    picture = torch.empty(batch, 3, height, width, dtype=dtype)
    with torch.no_grad(), assuming(device), recording() as programs, Calls() as calls:
        fast = accelerate(model, dtype=dtype, backend="triton", output=output, inplace=True)
        fast(picture)
    return [call for call in calls.seen if call.name != "pack_weight"], programs


def plan_network(*arguments: Any, **keywords: Any) -> list[Planned]:
    """The launches of the programs of :func:`record_network`, which takes the same arguments."""
    _, programs = record_network(*arguments, **keywords)
    return [Planned(program, launch) for program in programs for launch in program.launches]
