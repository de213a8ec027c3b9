"""Anybody's networks on the fused operators, by Dynamo's graphs."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fassd_kernels import accelerate
from fassd_kernels.graphs import steps
from fassd_kernels.graphs.backend import FusedGraph, compile_graph
from fassd_kernels.graphs.captured import Captured

FORMS = pytest.mark.parametrize(
    "form", [0, 1, -1], ids=["ours", "PyTorch's", "by phases"], indirect=True
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which way a convolution is computed, which is measured otherwise."""
    form = getattr(request, "param", 0)
    monkeypatch.setattr(steps, "fastest_way", lambda ways: range(len(ways))[form])
    monkeypatch.setattr(steps, "fastest", {})


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


def agree(fast: nn.Module, model: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Whether a compiled model computes what the plain one does in float64; its result."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
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


# --- what is fused -------------------------------------------------------------------------------


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


@FORMS
def test_each_pattern_is_one_step() -> None:
    model = shaken(Everything())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 34, 46))
    assert recorded.kinds == ["Step"] * 4 + ["UpsampleStep", "Step", "Upsample"]


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


class Activated(nn.Module):
    """Two convolutions with batch norm and an activation; its result is of the order of 1."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 17, 1, bias=False), nn.BatchNorm2d(17)
        self.second, self.activation = nn.Conv2d(17, 6, 3, padding=1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.norm(self.first(8 * x)))))


@FORMS
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    model = shaken(Activated(ACTIVATIONS[name]))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 9, 14))
    assert recorded.kinds == ["mul", "Step", "Step"]


@pytest.mark.parametrize(
    "activation",
    [nn.Hardtanh(), nn.Hardtanh(0, 5), nn.ELU(), lambda x: x.clamp(min=0), torch.tanh],
    ids=["hardtanh", "up to 5", "elu", "clamp", "tanh"],
)
def test_other_activations_stay_pytorchs(activation: Callable[[Tensor], Tensor]) -> None:
    model = shaken(Activated(activation))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 9, 14))
    assert len(recorded.kinds) == 5


def test_a_pair_with_an_activation_of_one_convolution_is_two_steps() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, (3, 1), padding=(1, 0)), nn.SiLU(),
        nn.Conv2d(5, 4, (1, 3), padding=(0, 1)), nn.SiLU(),
    ).eval()  # fmt: skip
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 9, 14))
    assert recorded.kinds == ["Step", "Step"]


def test_labels_are_those_of_argmax() -> None:
    class Labelled(Everything):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    model = shaken(Labelled())
    fast, recorded = compiled(model)
    x = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        labels, expected = fast(x), model(x)
    assert labels.dtype == torch.int64
    assert (labels == expected).float().mean() > 0.999
    assert recorded.kinds[-1] == "Labels"


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


@FORMS
def test_what_is_written_in_place_is_what_is_read_afterwards() -> None:
    class Before(nn.Module):
        """The addend is what ReLU has left of it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
            self.block = Block(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = self.second(y.relu_())
            z.add_(y)
            return self.block(z) + y.mul_(2)  # type: ignore[no-any-return]

    model = shaken(Before())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(1, 3, 9, 11))
    assert recorded.kinds.count("Step") == 4


def test_what_writes_into_shared_memory_runs_as_it_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            first, second = y.chunk(2, 1)
            first.relu_()
            return torch.cat([y, second], 1)

    class Input(Views):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.relu_())  # type: ignore[no-any-return]

    class Operator(Views):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            torch.ops.aten.relu_.default(y)
            return y + 1  # type: ignore[no-any-return]

    class Power(Views):
        def forward(self, x: Tensor) -> Tensor:
            y = z = self.conv(x)
            y **= 2
            return y + z  # type: ignore[no-any-return]

    for kind in (Views, Input, Operator, Power):
        model = kind().eval()
        fast, recorded = compiled(model)
        x = torch.randn(1, 4, 6, 6)
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            theirs, ours = x.clone(), x.clone()
            assert fast(ours).equal(model(theirs)) and ours.equal(theirs)
        words = r"runs as it stands: (relu_|relu_.default|ipow) writes in"
        assert re.search(words, caplog.text)
        assert not isinstance(recorded.graphs[0], FusedGraph)
        caplog.clear()


def test_a_result_read_twice_is_written() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.norm(y).relu()

    model = shaken(Twice())
    fast, recorded = compiled(model)
    x = torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        for ours, theirs in zip(fast(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert recorded.kinds[:2] == ["Step", "batch_norm"]


class NonBottleneck1D(nn.Module):
    """The block of ERFNet (Romera et al., T-ITS 2018), and of those that followed it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        d = dilation
        self.first = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.second = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.third = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.fourth = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.norm, self.last = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        y = self.last(self.fourth(F.relu(self.third(y))))
        return F.relu(self.dropout(y) + x)


@FORMS
def test_asymmetric_convolutions() -> None:
    model = shaken(nn.Sequential(NonBottleneck1D(6, 2), NonBottleneck1D(6, 40)))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 6, 17, 21))
    assert recorded.kinds == ["PairStep", "Step", "Step"] * 2


class Inverted(nn.Module):
    """A stem with max pooling, and a block of MobileNets (Sandler et al., CVPR 2018)."""

    def __init__(self, side: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 7, 2, 3, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.wide, self.narrow = nn.Conv2d(6, 18, 1), nn.Conv2d(18, 6, 1)
        self.deep = nn.Conv2d(18, 18, side, stride, side // 2, groups=18, bias=False)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (6, 18)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norms[0](self.stem(x))))
        y = F.hardswish(self.norms[1](self.deep(F.relu(self.wide(x)))), inplace=True)
        y = self.narrow(y)
        return F.relu(self.grouped(y) + y)


@FORMS
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_and_grouped_convolutions(side: int, stride: int) -> None:
    model = shaken(Inverted(side, stride))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 70, 61))
    grouped = "GroupedStep"
    assert recorded.kinds == [grouped, "MaxPool", "Step", grouped, "Step", grouped]


@FORMS
@pytest.mark.parametrize("dilation", [2, 3, 7, 20])
def test_dilated_convolutions(dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SMALLEST_PHASE", 0)

    class Dilated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, padding=dilation, dilation=dilation)
            self.second = nn.Conv2d(9, 6, 3, padding=dilation, dilation=dilation)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return F.relu(self.second(torch.cat([x, y], 1)) + y)

    model = Dilated().eval()
    agree(compiled(model)[0], model, torch.randn(2, 3, 15, 23))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 9, padding=4, groups=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, (5, 3), padding=(2, 1)),
        nn.MaxPool2d(2, ceil_mode=True),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        nn.BatchNorm2d(4, track_running_stats=False),
    ],
    ids=[
        *("9x9", "no padding", "reflection", "5x3", "pooling to the ceiling"),
        *("computed weight", "statistics of the batch"),
    ],
)
def test_what_no_operator_has_stays_pytorchs(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    fast, recorded = compiled(model)
    x = torch.randn(2, 3, 12, 13)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
    assert recorded.kinds.count("Step") == 2


class Resizes(nn.Module):
    """A head behind a resizing of its own, of `options`."""

    def __init__(self, labels: bool = False, **options: Any) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.options, self.labels = {"mode": "bilinear", **options}, labels

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.head(self.conv(x)), **self.options)
        return y.argmax(1) if self.labels else y


@FORMS
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"size": (21, 34), "align_corners": False}, True),
        ({"size": (21, 34)}, True),
        ({"scale_factor": 2}, True),
        ({"scale_factor": (3, 1.5)}, True),
        ({"scale_factor": 1.7, "recompute_scale_factor": True}, True),
        ({"scale_factor": 1.7, "align_corners": True}, True),
        ({"scale_factor": 1.7}, False),  # positions of 1.7 and not of 17 / 10
        ({"size": (3, 4), "antialias": True}, False),
        ({"size": (21, 34), "mode": "nearest"}, False),
    ],
    ids=str,
)
def test_resizing(options: dict[str, Any], fused: bool, labels: bool) -> None:
    model = shaken(Resizes(labels, **options))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 7, 10))
    kind = "Labels" if labels else "Upsample"
    assert (kind in recorded.kinds) == fused


# --- random graphs -------------------------------------------------------------------------------


class Random(nn.Module):
    """Convolutions, additions, concatenations, resizes and poolings as they come."""

    def __init__(self, plan: list[tuple[int, int, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.plan, self.layers = plan, nn.ModuleList()
        widths = [3]
        for kind, first, second in plan:
            a, b = widths[first % len(widths)], widths[second % len(widths)]
            wide = 1 + (first + second) % 9
            layer: nn.Module = nn.Identity()
            if kind == 0:
                d = 1 + second % 3
                layer = nn.Sequential(
                    nn.Conv2d(a, wide, 3, 1 + first % 2, d, d, bias=False), nn.BatchNorm2d(wide)
                )
            elif kind == 1:
                layer = nn.Conv2d(a + b, wide, 1)
            elif kind == 2:
                d = 1 + second % 2
                layer = nn.Sequential(
                    nn.Conv2d(a, a, (3, 1), padding=(2, 0), dilation=(2, 1)),
                    nn.PReLU(a) if second % 3 else nn.Hardswish(),
                    nn.Conv2d(a, a, (1, 3), padding=(0, d), dilation=(1, d)),
                    nn.PReLU(a) if second % 3 else nn.LeakyReLU(0.1),
                )
            elif kind == 5:
                side = 3 + 2 * (first % 3)
                deep = nn.Conv2d(a, a, side, 1 + second % 2, side // 2, groups=a, bias=False)
                layer = nn.Sequential(deep, nn.BatchNorm2d(a), nn.Hardswish())
            self.layers.append(layer)
            widths.append(wide if kind in (0, 1) else a)

    def forward(self, x: Tensor) -> Tensor:
        found, activations = [x], list(ACTIVATIONS.values())
        for (kind, first, second), layer in zip(self.plan, self.layers, strict=True):
            a, b = found[first % len(found)], found[second % len(found)]
            size = (max(a.shape[2], b.shape[2]), max(a.shape[3], b.shape[3]))

            corners = bool(second % 2)

            def fit(y: Tensor, size: tuple[int, int] = size, corners: bool = corners) -> Tensor:
                if y.shape[2:] == size:
                    return y
                return F.interpolate(y, size=size, mode="bilinear", align_corners=corners)

            if kind == 1:
                y = activations[(3 * first + second) % len(activations)](
                    layer(torch.cat([fit(a), fit(b)], 1))
                )
            elif kind == 2:
                y = layer(a) + a
                y = y.relu_() if first % 2 else y
            elif kind == 3:
                y = F.avg_pool2d(a, 2) if min(a.shape[2:]) > 3 else a * 0.5
            elif kind == 4:
                y = (
                    (a + fit(b)).relu()
                    if a.shape[1] == b.shape[1] and a.shape == fit(b).shape
                    else -a
                )
            elif kind == 6:
                y = F.max_pool2d(a, 3, 2, 1)
            else:
                y = layer(a)
            found.append(y)
        return torch.cat([y.mean((2, 3)) for y in found] + [found[-1].flatten(1)], 1)


@FORMS
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(0, 11)),
        min_size=2,
        max_size=9,
    ),
    st.integers(0, 99),
)
def test_random_graphs(plan: list[tuple[int, int, int]], seed: int) -> None:
    torch._dynamo.reset()
    model = shaken(Random(plan, seed))
    agree(torch.compile(model, backend=compile_graph), model, torch.randn(2, 3, 15, 18))


# --- types, sizes and gradients ------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-12)],
)
def test_types(dtype: torch.dtype, tolerance: float) -> None:
    model = shaken(Everything()).to(dtype)
    fast, _ = compiled(model)
    agree(fast, model, torch.randn(1, 3, 32, 40).to(dtype), tolerance=tolerance)


def test_sizes_come_and_go() -> None:
    model = shaken(Everything())
    fast, recorded = compiled(model)
    for shape in ((1, 3, 32, 40), (2, 3, 33, 40), (1, 3, 64, 34), (3, 3, 32, 40), (0, 3, 32, 40)):
        agree(fast, model, torch.randn(shape))
    assert len(recorded.graphs) < 5  # sizes are free from the second on


def test_autocast_is_pytorchs() -> None:
    model = shaken(Everything())
    fast, _ = compiled(model)
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).equal(model(x))


def test_gradients_are_the_models() -> None:
    model = shaken(Everything())
    fast, _ = compiled(model)
    ours, theirs = (
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) for _ in "ab"
    )
    fast(ours.requires_grad_()).square().sum().backward()
    weights = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(theirs.requires_grad_()).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(weights, [parameter.grad for parameter in model.parameters()])


def test_complex_and_quantised_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).to(torch.complex64)
    fast, _ = compiled(model.eval())
    x = torch.randn(1, 3, 6, 6, dtype=torch.complex64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    quantised = torch.quantize_per_tensor(torch.randn(1, 3, 6, 6), 0.1, 0, torch.qint8)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).eval()
    read = torch.compile(lambda x: plain(x.dequantize()), backend=compile_graph)
    with torch.no_grad():
        torch.testing.assert_close(read(quantised), plain(quantised.dequantize()))


# --- weights that change -------------------------------------------------------------------------


EDITS: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m.stem.weight.mul_(-1),
    "through data": lambda m: m.norm.running_var.data.add_(1),
    "loaded": lambda m: m.load_state_dict({k: v + 0.5 for k, v in m.state_dict().items()}),
    "another tensor": lambda m: setattr(m.up, "weight", nn.Parameter(-m.up.weight)),
    "another layer": lambda m: setattr(m, "head", nn.Conv2d(10, 5, 3, padding=1)),
    "a setting": lambda m: setattr(m.norm, "eps", 0.5),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    "through", [compiled, lambda model: (accelerate(model, inplace=True), None)]
)
def test_edits_are_seen(through: Any, edit: str) -> None:
    model = shaken(Everything())
    twin = copy.deepcopy(model)
    fast, _ = through(model)
    x = torch.randn(1, 3, 32, 40)
    agree(fast, twin, x)
    with torch.no_grad():
        for each in (model, twin):
            torch.manual_seed(5)
            EDITS[edit](each)
    agree(fast, twin, x)


def test_threads() -> None:
    model = shaken(Everything())
    fast = accelerate(model)
    inputs = [torch.randn(1, 3, 32, 40) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        fast(inputs[0])
    failures: list[str] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                if not torch.allclose(fast(inputs[index]), expected[index], 1e-4, 1e-5):
                    failures.append(str(index))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- accelerate ----------------------------------------------------------------------------------


def test_a_captured_model_is_the_model() -> None:
    model = shaken(Everything())
    fast: Any = accelerate(model)
    assert isinstance(fast, Captured) and isinstance(fast, Everything)
    assert type(model) is Everything
    assert list(fast.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 3, 32, 40)
    first = agree(fast, model, x)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is type(fast)
        assert agree(copied, model, x).equal(first)
    same = accelerate(model, inplace=True)
    assert same is model and isinstance(model, Captured)


def test_training_and_hooks_run_the_models_own() -> None:
    model = shaken(Everything())
    fast = accelerate(model).train()
    x = torch.randn(2, 3, 32, 40)
    fast(x).sum().backward()
    assert fast.stem.weight.grad is not None
    assert not fast.norm.running_mean.equal(model.norm.running_mean)
    fast = accelerate(model)
    agree(fast, model, x)
    seen: list[str] = []
    handle = fast.tall.register_forward_hook(lambda *_: seen.append("tall"))
    agree(fast, model, x)
    handle.remove()
    agree(fast, model, x)
    assert seen == ["tall"]


def test_weights_that_are_lent_for_one_call() -> None:
    model = shaken(Everything())
    fast = accelerate(model)
    x = torch.randn(1, 3, 32, 40)
    own = agree(fast, model, x)
    others = {name: value + 0.25 for name, value in model.state_dict().items()}
    with torch.no_grad():
        lent = torch.func.functional_call(fast, others, x)
        expected = torch.func.functional_call(model, others, x)
    torch.testing.assert_close(lent, expected, rtol=1e-4, atol=1e-4)
    assert agree(fast, model, x).equal(own)


def test_control_flow_is_told_once() -> None:
    class Branching(Everything):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if y.mean() > 0:
                y = -y
            return torch.sigmoid(y)

    model = shaken(Branching())
    fast = accelerate(model)
    x = torch.randn(1, 3, 32, 40)
    with pytest.warns(RuntimeWarning, match="Branching is captured in parts"):
        agree(fast, model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(fast, model, -x)


def test_many_models_in_one_process() -> None:
    """More than the graphs that Dynamo keeps for one piece of code."""
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4 + seed, 3, padding=1), nn.Conv2d(4 + seed, 2, 1)
        ).eval()
        agree(accelerate(model), model, torch.randn(1, 3, 8, 9))
    assert counted["unique_graphs"] - before == 10


def test_lists_and_dictionaries_of_modules_are_not_called() -> None:
    class Called(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            return self["b"](self["a"](x))  # type: ignore[no-any-return]

    model = shaken(Called({"a": Block(4), "b": Block(4)}))
    fast: Any = accelerate(model)
    assert isinstance(fast, Captured)
    agree(fast, model, torch.randn(1, 4, 6, 6))
    parts: Any = accelerate(nn.ModuleList([Block(4), nn.ModuleDict({"a": Block(4)})]))
    assert isinstance(parts[0], Captured) and isinstance(parts[1]["a"], Captured)
    assert not isinstance(parts, Captured) and not isinstance(parts[1], Captured)


def test_parts_of_a_model_that_has_fused_modules() -> None:
    from fassd.models import MDA

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.mda = Block(8), MDA(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.mda(self.block(x))  # type: ignore[no-any-return]

    model = shaken(Mixed())
    fast: Any = accelerate(model)
    assert type(fast) is Mixed and isinstance(fast.block, Captured)
    agree(fast, model, torch.randn(1, 8, 12, 10))
