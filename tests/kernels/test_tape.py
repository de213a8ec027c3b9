"""A network repeats the operator calls of a size of picture once they are known."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from kernels.changes import CHANGES
from kernels.conftest import FLOAT32, relative_error, shake
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fassd
import fassd_kernels
from fassd_kernels.modules.tape import MOST, Tape, Taping

backends = import_module("fassd_kernels.backends")  # a function hides it in the package


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return fassd_kernels.accelerate(shake(fassd.create_model("fassd_net_l2", 5)).eval())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Tapes in the order of their calls."""
    called: list[Tape] = []
    real = Tape.__call__
    monkeypatch.setattr(Tape, "__call__", lambda self, *x: (called.append(self), real(self, *x))[1])
    return called


def calls(network: nn.Module, x: Tensor, count: int = 4) -> list[Tensor]:
    with torch.no_grad():
        return [network(x) for _ in range(count)]


def plainly(network: nn.Module, x: Tensor) -> Tensor:
    """The result by PyTorch's own operators."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(backends, "switches", lambda: (True, "auto"))
        return network(x)  # type: ignore[no-any-return]


def test_repeated_calls_have_the_same_values(network, x, repeated) -> None:
    images = (x, torch.randn(2, 3, 64, 64), x + 1, torch.randn(2, 3, 64, 64))
    found = [calls(network, image) for image in images]
    # The first two calls pack weights, the next one of each size is taped.
    assert len(repeated) == 1 + 3 + 4 + 4 and len({id(tape) for tape in repeated}) == 2
    for image, (first, *others) in zip(images, found, strict=True):
        assert all(torch.equal(first, each) for each in others)
        assert relative_error(first, plainly(network, image)) <= FLOAT32


def test_labels_and_pictures(network, repeated) -> None:
    network.output = "labels"
    pictures = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        labels = [network.label_pictures(pictures, (0.4,) * 3, (0.3,) * 3) for _ in range(4)]
        assert len(repeated) == 1
        x = torch.randn(1, 3, 64, 96)
        others = [network(x) for _ in range(4)]
    assert len(repeated) == 1 + 3
    for found in (labels, others):
        assert all(torch.equal(found[0], each) for each in found[1:])


def test_no_more_memory_than_before(network, x) -> None:
    large = torch.randn(1, 3, 512, 512)
    calls(network, large, 2)
    fassd_kernels.ops.release_memory()
    calls(network, large, 1)  # taped
    taped = fassd_kernels.ops.held_memory()
    fassd_kernels.ops.release_memory()
    calls(network, large, 1)  # repeated
    repeated = fassd_kernels.ops.held_memory()
    fassd_kernels.ops.release_memory()
    with Names():  # as it was without tapes
        calls(network, large, 1)
    assert max(taped, repeated) <= fassd_kernels.ops.held_memory()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(network, x, repeated, change: Callable[[nn.Module], None]) -> None:
    before = calls(network, x)[-1]
    assert len(repeated) == 1
    change(network.mda[1])
    after = calls(network, x, 1)[0]
    assert relative_error(after, before) > 1e-5, "the change changes nothing: a poor test"
    expected = plainly(network, x)
    for found in (after, *calls(network, x)):
        assert relative_error(found, expected) <= FLOAT32


def test_what_a_caller_asks_for(network, x, repeated, monkeypatch: pytest.MonkeyPatch) -> None:
    before = calls(network, x)[-1]
    repeated.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert calls(network, x)[-1].dtype == torch.bfloat16
    network(x).sum().backward()
    assert network.finalConv.weight.grad is not None
    with FlopCounterMode(display=False) as counted:
        calls(network, x, 1)
    assert counted.get_total_flops() > 0 and not repeated
    assert torch.equal(calls(network, x, 1)[0], before) and len(repeated) == 1
    network.mda[0].backend = "reference"
    assert not torch.equal(calls(network, x, 1)[0], before) and len(repeated) == 1
    network.mda[0].backend = "auto"
    hook = network.mda[0].register_forward_hook(lambda module, inputs, result: 2 * result)
    assert relative_error(calls(network, x)[-1], before) > 1e-3 and len(repeated) == 1
    hook.remove()
    monkeypatch.setattr(backends, "switches", lambda: (False, "reference"))
    result = calls(network, x)[-1]
    assert not torch.equal(result, before) and relative_error(result, before) <= FLOAT32


class Foreign(nn.Module):
    """Operators in place, of several results, and on views."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        upper, lower = torch.relu(self.first(x) * self.scale).chunk(2, 1)
        z = self.second(upper) + lower.mean((2, 3), keepdim=True).sum(1, keepdim=True)
        return z.clamp_(0, 2), y + 1, z[:, :2].amax(1)


def test_foreign_operators_are_repeated(repeated) -> None:
    model = shake(Foreign()).eval()
    fast = fassd_kernels.accelerate(model)
    for count, size in enumerate(((8, 12), (16, 10))):
        for _ in range(4):
            x, y = torch.randn(1, 3, *size), torch.randn(2)
            with torch.no_grad():
                found, expected = fast(x, y), model(x, y)
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert len(repeated) == 2 * (count + 1)
    with torch.no_grad():
        for each in (model, fast):
            each.scale.fill_(-0.7)  # read by an operator that is not fused
        torch.testing.assert_close(fast(x, y), model(x, y), atol=1e-5, rtol=1e-5)
    assert len(repeated) == 5


def test_values_that_python_reads_are_not_repeated() -> None:
    x = torch.ones(4)
    with Taping(x) as taping:
        result = x * float(x.sum())
    assert taping.tape(result) is None
    with Taping(x) as taping:
        result = x + 1
    assert taping.tape(torch.ones(4)) is None and taping.tape(result) is not None


def test_results_are_dropped_after_their_last_use() -> None:
    x = torch.ones(4)
    with Taping(x) as taping:
        low, high = (x * 2).chunk(2)
        low.add_(high)
        result = [low * high, "a label"]
    tape = taping.tape(result)
    assert tape is not None
    product, label = tape(torch.full((4,), 3.0))
    assert product.tolist() == [72, 72] and label == "a label" and x.tolist() == [1] * 4
    dropped = sorted(number for call in tape.calls for number in call.last)
    assert dropped == [0, 1, 2, 3, 4]  # all but the product


def test_as_many_sizes_as_are_kept(network, repeated) -> None:
    for width in range(64, 64 + 8 * (MOST + 2), 8):
        calls(network, torch.randn(1, 3, 64, width))
    assert len(repeated) == 1 + 3 * (MOST + 1)
    assert len(network._seen.tapes) == 2


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.namespace)
        return func(*args, **(kwargs or {}))


def test_modes_see_every_operator(network, x) -> None:
    calls(network, x)
    names = Names()
    with names:
        calls(network, x, 1)
    assert names.seen.count("fassd_kernels") > 20
