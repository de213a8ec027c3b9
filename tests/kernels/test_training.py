"""Batch norm with an activation as one operator: PyTorch's numbers, in training mode on a CPU."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fassd
import fassd_kernels
from fassd.models.layers import COMPUTING, apply_norm_act, interpolate
from fassd_kernels import backends
from fassd_kernels.modules import training
from fassd_kernels.modules.training import kernels_used, norm_act

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ACTIVATIONS = ["relu", "module", "prelu", "one slope"]

pytestmark = pytest.mark.skipif(
    not backends()["cpu"].available, reason=backends()["cpu"].reason or "it is available"
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def layers(channels: int, activation: str) -> tuple[nn.BatchNorm2d, Any]:
    """A batch norm with parameters of its own, and an activation."""
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    slopes = {"prelu": channels, "one slope": 1}
    if activation in slopes:
        prelu = nn.PReLU(slopes[activation])
        nn.init.uniform_(prelu.weight, -0.5, 0.5)
        return norm, prelu
    return norm, nn.ReLU(inplace=True) if activation == "module" else "relu"


def run(
    function: Any, x: Tensor, norm: nn.Module, activation: Any, gradient: Tensor
) -> dict[str, Tensor]:
    """Result, gradients and running statistics of a step."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x, norm, activation)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    parts = {"norm": norm} | ({"act": activation} if isinstance(activation, nn.Module) else {})
    for name, part in parts.items():
        found |= {f"{name}.{key}": p.grad for key, p in part.named_parameters()}
        found |= {f"{name}.{key}": b for key, b in part.named_buffers()}
    return found


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations of the operator's calls."""
    seen: list[str] = []
    apply = training._NormAct.apply

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return apply(*arguments)

    monkeypatch.setattr(training._NormAct, "apply", watched)
    return seen


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 10, 9, 7), (3, 31, 40, 53), (4, 16, 1, 1), (2, 1, 5, 3)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_float64(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
    activation: str,
    calls: list[str],
) -> None:
    x = (torch.randn(shape) * 2 + 3).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn(shape).to(dtype)
    norm, act = layers(shape[1], activation)
    if dtype == torch.float64:
        norm.double()
    if isinstance(act, nn.PReLU):
        act.to(dtype)
    plain = copy.deepcopy((norm, act))
    expected = run(apply_norm_act, x.double(), *(_double(p) for p in plain), gradient.double())
    found = run(norm_act, x, norm, act, gradient)
    assert calls == ["prelu" if "slope" in activation or activation == "prelu" else "relu"]
    assert found["y"].dtype == dtype and found["y"].stride() == x.stride()
    for name, truth in expected.items():
        if name == "norm.num_batches_tracked":
            assert found[name] == truth == 1
        else:
            # Of a single channel, the gradients of parameters are one sum with cancellation.
            slack = 10 if found[name].dim() == 1 and shape[1] == 1 else 1
            assert error(found[name], truth) <= slack * TOLERANCE[dtype], name


def _double(part: Any) -> Any:
    return part.double() if isinstance(part, nn.Module) else part


@pytest.mark.parametrize("shape", [(4, 18, 90, 120), (2, 59, 64, 90)])
def test_many_pieces_far_from_zero(shape: tuple[int, ...]) -> None:
    """The sums of an image that is read piece by piece, of a mean a thousand deviations away."""
    x = (torch.randn(shape) + 1000).contiguous(memory_format=torch.channels_last)
    norm, act = layers(shape[1], "prelu")
    plain = copy.deepcopy(norm).double(), copy.deepcopy(act).double()
    gradient = torch.randn(shape)
    expected = run(apply_norm_act, x.double(), *plain, gradient.double())
    found = run(norm_act, x, norm, act, gradient)
    for name in ("norm.running_var", "norm.running_mean"):
        assert error(found[name], expected[name]) <= 2e-6, name
    # Of such a mean, float32 knows the last digit to 3e-5 of a deviation.
    assert error(found["y"], expected["y"]) <= 1e-4
    assert error(found["act.weight"], expected["act.weight"]) <= 1e-3


@pytest.mark.parametrize("activation", ["relu", "prelu", "one slope"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradcheck(activation: str, layout: torch.memory_format) -> None:
    norm, act = layers(5, activation)
    norm.double()
    parameters = [*norm.parameters()]
    if isinstance(act, nn.Module):
        parameters += act.double().parameters()
    x = torch.randn(2, 5, 3, 4, dtype=torch.double).contiguous(memory_format=layout)
    inputs = (x.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(lambda image, *_: norm_act(image, norm, act), inputs)


def test_same_bits_on_any_number_of_threads() -> None:
    x = torch.randn(2, 18, 90, 120).contiguous(memory_format=torch.channels_last)
    norm, act = layers(18, "prelu")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(norm_act, x, *copy.deepcopy((norm, act)), torch.ones_like(x)))
    finally:
        torch.set_num_threads(before)
    for one, other in itertools.pairwise(found):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_gradients_of_any_layout() -> None:
    """An expanded gradient, as a mean gives it, and one in float32 of a bfloat16 image."""
    x = torch.randn(2, 7, 4, 5).contiguous(memory_format=torch.channels_last)
    norm, act = layers(7, "relu")
    found = run(norm_act, x, *copy.deepcopy((norm, act)), torch.ones(2, 1, 1, 5).expand(2, 7, 4, 5))
    expected = run(norm_act, x, norm, act, torch.ones(2, 7, 4, 5))
    assert torch.equal(found["x"], expected["x"])


def test_autocast(calls: list[str]) -> None:
    """PReLU has autocast's type there; PyTorch's runs where batch norm's is another."""
    norm, act = layers(6, "prelu")
    x = torch.randn(2, 6, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_act(x.bfloat16(), norm, act).dtype == torch.bfloat16
        assert calls == ["prelu"]
        assert norm_act(x, norm, act).dtype == torch.bfloat16
        assert norm_act(x, norm, "relu").dtype == torch.float32
    assert calls == ["prelu", "relu"]
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        norm_act(x.bfloat16(), norm, act)


@pytest.mark.parametrize(
    "change", ["eval", "momentum", "untracked", "hooked", "sliced", "one value", "other activation"]
)
def test_all_else_is_pytorchs(change: str, calls: list[str]) -> None:
    norm, act = layers(6, "prelu")
    x = torch.randn(2, 6, 8, 9).contiguous(memory_format=torch.channels_last)
    hooked: list[int] = []
    if change == "eval":
        norm.eval()
    elif change == "momentum":
        norm.momentum = None
    elif change == "untracked":
        norm = nn.BatchNorm2d(6, track_running_stats=False)
    elif change == "hooked":
        norm.register_forward_hook(lambda *_: hooked.append(1))
    elif change == "sliced":
        x = x[:, :, 1:, 2:]
    elif change == "one value":
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm_act(x[:1, :, :1, :1], norm, act)
        return
    elif change == "other activation":
        act = nn.ELU()
    expected = apply_norm_act(x, *copy.deepcopy((norm, act)))
    assert torch.equal(norm_act(x, norm, act), expected)
    assert not calls and (change != "hooked" or hooked)


def test_without_affine_parameters_and_without_gradients(calls: list[str]) -> None:
    norm = nn.BatchNorm2d(6, affine=False)
    x = torch.randn(2, 6, 8, 9)
    with torch.no_grad():
        expected = apply_norm_act(x, copy.deepcopy(norm), "relu")
        torch.testing.assert_close(norm_act(x, norm, "relu"), expected)
    assert calls == ["relu"]


def test_only_modules_that_are_called_inside_fuse() -> None:
    with kernels_used(True):
        assert COMPUTING.norm_act is norm_act
        with kernels_used(False):
            assert COMPUTING.norm_act is None
        assert COMPUTING.norm_act is norm_act
    assert COMPUTING.norm_act is None


SIZES = [
    ((9, 7), (36, 29)),
    ((5, 6), (5, 13)),
    ((8, 8), (3, 5)),
    ((1, 1), (4, 6)),
    ((6, 5), (6, 5)),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 3, 19, 40])
@pytest.mark.parametrize(("size", "larger"), SIZES)
def test_resize_equals_float64(
    size: tuple[int, int], larger: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(2, channels, *larger).to(dtype)
    results = []
    for function, image in ((training.resize, x), (interpolate, x.double())):
        image.requires_grad_()
        y = function(image, larger)
        y.backward(gradient.to(y.dtype))
        assert image.grad is not None
        results.append((y.detach(), image.grad))
    for found, truth in zip(*results, strict=True):
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, truth) <= TOLERANCE[dtype]


def test_resize_passes_gradcheck_and_leaves_other_layouts_to_pytorch() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.double).contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(
        lambda image: training.resize(image, (9, 7)), x.requires_grad_()
    )
    with torch.no_grad():
        planar = torch.randn(2, 3, 4, 5)
        assert torch.equal(training.resize(planar, (9, 7)), interpolate(planar, (9, 7)))


def test_a_network_trains_as_the_reference(calls: list[str]) -> None:
    """Every batch norm is fused, and the gradients are those of the plain network in float64."""
    torch.manual_seed(0)
    plain = fassd.create_model("fassd_net", num_classes=5).double().train()
    fused = fassd_kernels.accelerate(plain).train()
    x = torch.randn(2, 3, 64, 97, dtype=torch.double)
    gradients = []
    for network in (plain, fused):
        found = network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
        found.square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert len(calls) == sum(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    for name, truth in gradients[0].items():
        assert truth is not None
        assert error(gradients[1][name], truth) <= 1e-8, name
    for name, truth in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(name), truth)
