"""Networks in the fastest form of plain PyTorch: folded weights and merged layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


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


class CudnnConvReLU(nn.Module):
    """A convolution and the ReLU after it as one call of cuDNN.

    Shape: (N, in_channels, H, W) to the convolution's.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return torch.ops.aten.cudnn_convolution_relu(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


def with_cudnn_relus(folded: fx.GraphModule) -> fx.GraphModule:
    """`folded`, changed in place: convolutions that go directly into a ReLU are merged with it."""
    for node in folded.graph.nodes:
        if node.target is not F.relu and not isinstance(layer_of(folded, node), nn.ReLU):
            continue
        source = node.args[0]
        conv = layer_of(folded, source)
        if isinstance(conv, nn.Conv2d) and len(source.users) == 1:
            folded.set_submodule(source.target, CudnnConvReLU(conv))
            node.replace_all_uses_with(source)
            folded.graph.erase_node(node)
    folded.recompile()
    return folded


def layer_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None
