"""Networks with random weights, and with folded ones: the fastest form of plain PyTorch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give `module` seeded weights that keep the variance of activations; set it to evaluation.

    Batch-norm statistics and PReLU slopes are random, too, so that errors in folding show.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                normal(layer.weight, (2 / layer.weight[0].numel()) ** 0.5)
                if layer.bias is not None:
                    normal(layer.bias, 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                uniform(layer.weight, 0.8, 1.2)
                normal(layer.bias, 0.1)
                normal(layer.get_buffer("running_mean"), 0.1)
                uniform(layer.get_buffer("running_var"), 0.5, 1.5)
            elif isinstance(layer, nn.PReLU):
                uniform(layer.weight, 0.1, 0.4)
    return module.eval()


def fold_batch_norms(module: nn.Module) -> fx.GraphModule:
    """A copy of `module` whose batch norms are folded into the convolutions before them.

    Folding is done in float64, the result is float32. Batch norms before a convolution's padding
    (MDA's first and last) cannot be folded and stay.
    """
    from torch.fx.experimental.optimization import fuse  # warns when imported

    folded = fuse(copy.deepcopy(module).eval().double(), inplace=True)
    assert isinstance(folded, fx.GraphModule)
    return folded.float()
