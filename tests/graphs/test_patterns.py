"""What of anybody's networks runs on the fused operators, by Dynamo's graphs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs.networks import ACTIVATIONS, FORMS, Block, Everything, agree, compiled, shaken
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fassd_kernels.graphs import steps
from fassd_kernels.graphs.backend import FusedGraph


@FORMS
def test_each_pattern_is_one_step() -> None:
    model = shaken(Everything())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 34, 46))
    assert recorded.kinds == ["Step"] * 4 + ["UpsampleStep", "Step", "Upsample"]


@FORMS
def test_weights_are_kept_once() -> None:
    """In the layout that is read; the weight that the kernels get has a shape and no memory."""
    model = shaken(Everything())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 34, 46))
    for step in recorded.graphs[0].steps:
        assert step.tensors["weight"].untyped_storage().nbytes() == 4
        assert not isinstance(step, steps.Step) or len(step.others[1]) == 1


class Activated(nn.Module):
    """Two convolutions with batch norm and an activation; its result is of the order of 1."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 17, 1, bias=False), nn.BatchNorm2d(17)
        self.second, self.activation = nn.Conv2d(17, 6, 3, padding=1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.norm(self.first(8 * x)))))


# However it is written, in one form; in the others, each as a module.
WRITTEN = [(0, name) for name in ACTIVATIONS]
WRITTEN += [(form, name) for form in (1, -1) for name in list(ACTIVATIONS)[:10]]


@pytest.mark.parametrize(("form", "name"), WRITTEN, indirect=["form"])
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


@FORMS
def test_what_is_written_in_place_is_what_is_read_afterwards() -> None:
    class Before(nn.Module):
        """The addend is what ReLU has left of it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
            self.block = Block(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).clone()
            z = self.second(y.relu_())
            z.add_(y)
            result: Tensor = self.block(z) + y.mul_(2)
            return result

    model = shaken(Before())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(1, 3, 9, 11))
    assert recorded.kinds.count("Step") == 4


class Gated(nn.Module):
    """Squeeze-and-excitation; with `reads`, something reads the image before or after it."""

    def __init__(self, reads: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        early = y[:, :, 1:] if self.reads else y
        z: Tensor = self.last(y * self.gate(y.mean((2, 3), keepdim=True)))
        return z if self.reads is None else z + self.reads(y, early)


@FORMS
@pytest.mark.parametrize(
    "reads",
    [None, lambda y, early: y[:, :5], lambda y, early: early.mean()],
    ids=["nothing", "later", "a view"],
)
def test_a_gate_multiplies_in_place_what_nothing_else_reads(reads: Any) -> None:
    model = shaken(Gated(reads))
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 9, 11))
    assert ("mul_" in recorded.kinds) == (reads is None)


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
            y: Tensor = self.conv(x.relu_())
            return y

    class Operator(Views):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            torch.ops.aten.relu_.default(y)
            return y + 1

    class Power(Views):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.conv(x)
            y = z
            y **= 2
            return y + z

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
    assert recorded.kinds == ["Step", "GroupedStep"]


class Normalized(nn.Module):
    """Batch norms without a convolution before them, as in pre-activated blocks and decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (3, 5, 8)))
        self.up = nn.ConvTranspose2d(3, 5, 3, 2, 1, 1)
        self.head, self.prelu = nn.Conv2d(8, 5, 1), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.norms[0](x)))
        z = F.relu(self.norms[1](y) + y)
        wide = F.interpolate(x, scale_factor=2.0)
        return self.head(self.prelu(self.norms[2](torch.cat([z, wide], 1))))


@FORMS
def test_batch_norms_behind_no_convolution() -> None:
    model = shaken(Normalized())
    fast, recorded = compiled(model)
    agree(fast, model, torch.randn(2, 3, 13, 9))
    assert recorded.kinds == [
        *("GroupedStep", "y", "GroupedStep", "wide", "cat", "GroupedStep", "Step")
    ]
    with torch.no_grad():
        model.norms[1].running_mean.data += 1  # type: ignore[union-attr, operator]
    agree(fast, model, torch.randn(2, 3, 13, 9))


def test_a_batch_norm_of_another_type_stays_pytorchs() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(1), nn.BatchNorm2d(4)))
    model[0].bfloat16()
    fast, recorded = compiled(model)
    x = torch.randn(1, 3, 6, 7).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
    assert recorded.kinds == ["Step", "input_2", "input_3"]  # pooling and the batch norm


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


def test_on_a_gpu_memory_bounds_what_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depthwise convolutions and pooling; of other groups and large kernels PyTorch has the best.

    Nothing is timed there: the host's clock tells nothing of a GPU.
    """
    image = SimpleNamespace(is_cuda=True, shape=(1, 8, 5, 7), device="cuda", dtype=torch.float16)
    monkeypatch.setattr(steps.ops, "operator", lambda *name: lambda *_, **__: name)
    monkeypatch.setattr(steps, "choose", lambda *_, **__: "cuda")
    monkeypatch.setattr(steps, "fastest_of", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(steps.Step, "by_pytorch", lambda *_: "PyTorch's")
    step = steps.GroupedStep(None, None, None, None, (1, 1), (1, 1), "relu")
    step.backend, ours = "cuda", ("grouped_conv_act", "cuda")
    for groups, size, expected in (
        (8, (8, 1, 3, 3), ours),
        (8, (8, 1, 1, 1), "PyTorch's"),
        (8, (16, 1, 3, 3), "PyTorch's"),
        (2, (8, 4, 3, 3), "PyTorch's"),
        (1, (8, 8, 7, 7), "PyTorch's"),
    ):
        step.groups, step.tensors = (
            groups,
            {"weight": torch.zeros(size), "bias": None, "slope": None},
        )
        assert step([image]) == expected
    assert steps.MaxPool((3, 3), (2, 2), (1, 1))(image) == ("max_pool", "cuda")
