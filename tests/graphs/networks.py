"""Networks to capture, and whether what runs in their place computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd_kernels.graphs.backend import FusedGraph, compile_graph

FORMS = pytest.mark.parametrize(
    "form", [0, 1, -1], ids=["ours", "PyTorch's", "by phases"], indirect=True
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        repr(module): module
        for module in (
            nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardswish(), nn.Hardsigmoid(),
            nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(),
            nn.ReLU6(True), nn.Hardtanh(0.0, 6.0, True), nn.Hardswish(True), nn.Hardsigmoid(True),
            nn.SiLU(True), nn.LeakyReLU(0.3, True),
        )
    },
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh in place": lambda x: F.hardtanh(x, max_val=6, min_val=0, inplace=True),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "F.hardswish": F.hardswish,
    "F.hardsigmoid": F.hardsigmoid,
    "F.sigmoid": F.sigmoid,
    "F.silu": F.silu,
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.leaky_relu in place": lambda x: F.leaky_relu(x, negative_slope=-0.5, inplace=True),
    "F.leaky_relu_": F.leaky_relu_,
    "torch.sigmoid": torch.sigmoid,
    "torch.sigmoid_": torch.sigmoid_,
    "torch.clamp": lambda x: torch.clamp(x, 0, 6),
    "torch.clamp_": lambda x: torch.clamp_(x, 0, 6),
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "Tensor.sigmoid_": lambda x: x.sigmoid_(),
    "Tensor.clamp": lambda x: x.clamp(min=0, max=6),
    "Tensor.clamp_": lambda x: x.clamp_(0, 6),
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """Batch norms and PReLUs that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
            if isinstance(module, nn.PReLU):
                shape = module.weight.shape
                module.weight.copy_(torch.rand(shape, generator=generator) / 2)
    return model.eval()


CALLS = 3
"""Calls until one is repeated: the first one measures ways and packs weights, another is taped."""


def agree(fast: nn.Module, model: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Whether a compiled model computes what the plain one does in float64; its result.

    It is called first with other values: what is taped then is repeated.
    """
    exact = copy.deepcopy(model).double()
    others = [x.clone().copy_(x.flip(-1)) for x in inputs]
    with torch.no_grad():
        for _ in range(CALLS):
            fast(*others)
        result: Tensor = fast(*inputs)
        expected = exact(*(x.double() for x in inputs))
    assert result.shape == expected.shape
    if not result.is_floating_point():
        assert result.dtype == model(*inputs).dtype and result.equal(expected.to(result.dtype))
    elif expected.numel():
        assert (result.double() - expected).norm() <= tolerance * expected.norm()
    return result


class Recorded:
    """`compile_graph`, and what it gave."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(compile_graph(module, inputs))
        return self.graphs[-1]  # type: ignore[no-any-return]

    @property
    def kinds(self) -> list[str]:
        """What stands in the only graph, in its order."""
        (graph,) = self.graphs
        assert isinstance(graph, FusedGraph)
        nodes = graph.fused.graph.nodes
        called = [node for node in nodes if node.op not in ("placeholder", "output")]
        module = graph.fused.get_submodule
        return [
            type(module(n.target)).__name__ if n.op == "call_module" else n.name for n in called
        ]


def compiled(model: nn.Module) -> tuple[Any, Recorded]:
    recorded = Recorded()
    return torch.compile(model, backend=recorded), recorded


class Everything(nn.Module):
    """Each of the patterns, once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.tall = nn.Conv2d(8, 12, (3, 1), padding=(2, 0), dilation=(2, 1))
        self.prelu = nn.PReLU(12)
        self.wide = nn.Conv2d(20, 8, (1, 3), padding="same")
        self.down = nn.Conv2d(8, 16, 1)
        self.up = nn.Conv2d(24, 10, 1)
        self.one = nn.PReLU()
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(input=F.dropout(input=self.norm(self.stem(x)), training=False))
        z = self.prelu(self.tall(y))
        w = self.wide(torch.cat([y, z], 1)) + y  # a virtual concatenation, an addition
        low = F.avg_pool2d(torch.relu(self.down(w)), 2)
        big = F.interpolate(input=low, size=w.shape[2:], mode="bilinear", align_corners=True)
        v = self.head(self.one(self.up(torch.cat([w, big], 1))))
        return F.interpolate(v, size=x.shape[2:], mode="bilinear", align_corners=True)


class Block(nn.Module):
    """A residual block that writes in place, as ResNet's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.norm(self.first(x))))
        y += x
        return self.relu(y)  # type: ignore[no-any-return]
