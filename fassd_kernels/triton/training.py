"""Would fused training kernels pay? The time model's answer, in bytes.

A convolution with batch norm and activation moves, per step of training, so many times its input X
and its output Y (16-bit activations, everything larger than the cache):

* forward: the convolution X + Y, statistics Y, normalise and activate 2 Y;
* backward: reductions 2 Y, the gradient through both 3 Y, data gradient X + Y, weight gradient
  X + Y.

PyTorch op by op runs batch norm and activation apart, forward and backward: 5 Y more. Inductor
fuses them: 3 X + 11 Y in all. Statistics in the convolution's epilogue save one reading of Y; the
backward pass needs its sums before it can begin, so nothing is to be had there. What is left to win
is one Y in 3 X + 11 Y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fassd.models import create_model
from fassd_kernels.triton.device import Device

# Readings and writings of X and of Y in one step, forward and backward.
PASSES = {"eager": (3, 16), "Inductor": (3, 11), "fused statistics": (3, 10)}
RATE = 0.5  # of the data sheet's, that a training library's convolutions reach


@dataclass(frozen=True)
class TrainingStep:
    """What one picture of a training step takes.

    Attributes:
        inputs, outputs: bytes of all convolutions' inputs and outputs.
        operations: of forward and backward convolutions.
    """

    inputs: int
    outputs: int
    operations: int

    def seconds(self, way: str, device: Device) -> float:
        """Memory and arithmetic one after the other: kernels of the one bound hide little of the
        other."""
        of_input, of_output = PASSES[way]
        moved = of_input * self.inputs + of_output * self.outputs
        return moved / device.bandwidth + self.operations / (device.rates[0] * RATE)


def training_step(name: str, height: int, width: int) -> TrainingStep:
    """Count a variant of the family at one picture of a size, 16-bit activations."""
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
