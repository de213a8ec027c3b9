"""The possible gain of fused training kernels, by the time model: ``docs/how/training.md``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fassd.models import create_model
from fassd_kernels.triton.device import Device

# Number of times that a step, forward and backward, moves a convolution's inputs and outputs.
PASSES = {"eager": (3, 16), "Inductor": (3, 11), "fused statistics": (3, 10)}
RATE = 0.5  # fraction of the data sheet's rate that a training library's convolutions reach


@dataclass(frozen=True)
class TrainingStep:
    """The work of a training step for one picture.

    Attributes:
        inputs, outputs: bytes of all convolutions' inputs and outputs.
        operations: number of multiplications and additions of the convolutions, forward and
            backward.
    """

    inputs: int
    outputs: int
    operations: int

    def seconds(self, kernels: str, device: Device) -> float:
        """Seconds of a step run in one of the `PASSES`.

        Memory and arithmetic one after the other: kernels that are bound by one hide little of the
        other.
        """
        of_input, of_output = PASSES[kernels]
        moved = of_input * self.inputs + of_output * self.outputs
        return moved / device.bandwidth + self.operations / (device.rates[0] * RATE)


def training_step(name: str, height: int, width: int) -> TrainingStep:
    """Count a variant of the family at one picture of that size, with 16-bit activations."""
    model = create_model(name).to("meta")
    totals = [0, 0, 0]

    def count(conv: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        totals[0] += inputs[0].numel() * 2
        totals[1] += output.numel() * 2
        # Forward, and the two gradients.
        totals[2] += 3 * 2 * output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)  # type: ignore[arg-type]
    with torch.no_grad():
        model(torch.empty(2, 3, height, width, device="meta"))
    return TrainingStep(*(total // 2 for total in totals))
