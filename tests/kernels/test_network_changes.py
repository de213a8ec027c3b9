"""FusedNetwork: what was changed between two calls is noticed, and nothing is kept for too long."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from kernels.changes import change_eps, replace_parameter
from kernels.conftest import network, relative_error
from kernels.conftest import random_picture as picture
from torch import Tensor, nn

from fassd.models import DAPF
from fassd_kernels import FusedNetwork, accelerate
from fassd_kernels.modules import Fused
from fassd_kernels.modules.snapshot import Contents


def settled(model: nn.Module, x: Tensor) -> FusedNetwork:
    """An accelerated network that has seen that nothing changes."""
    fast = accelerate(model)
    with torch.no_grad():
        for _ in range(4):
            fast(x)
    return fast


def in_numpy(tensor: Tensor) -> None:
    """Write one value, past all that counts edits."""
    values = tensor.detach().reshape(-1).numpy()
    values[len(values) // 2] += 3


@pytest.mark.parametrize("name", ["fassd_net_l2", "baseline_aspp_mda"])
def test_an_edit_of_one_value_anywhere_is_noticed(name: str) -> None:
    x = picture(113, 120)
    fast = settled(network(name), x)
    tensors = [t for t in fast.state_dict().values() if t.is_floating_point()]
    with torch.no_grad():
        for tensor in tensors[:: max(1, len(tensors) // 25)] + tensors[-2:]:
            in_numpy(tensor)
            result = fast(x)
            for module in fast.modules():
                if isinstance(module, Fused):
                    module.repack()
            assert torch.equal(result, fast(x))


def test_a_network_looks_at_its_weights_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(113, 120)
    fast = settled(network("fassd_net_l2"), x)
    looks: list[int] = []
    last = Contents.last
    monkeypatch.setattr(
        Contents, "last", lambda self: looks.append(len(self.tensors)) or last(self)
    )
    with torch.no_grad():
        for call in (fast, fast.predict_labels, fast):
            looks.clear()
            call(x)
            assert looks == [sum(t.is_floating_point() for t in fast.state_dict().values())]
        looks.clear()
        fast.DAPF(torch.randn(1, 224, 8, 8))
        assert len(looks) == 1
        looks.clear()
        pictures = torch.zeros(1, 120, 130, 3, dtype=torch.uint8)
        fast.label_pictures(pictures, (0.5,) * 3, (0.5,) * 3)
        assert len(looks) == 1


def test_a_module_that_was_called_by_itself_with_other_weights() -> None:
    model, x = network(), picture()
    fast = settled(model, x)
    block, features = fast.denseBlocksUp[0], torch.randn(1, 320, 9, 9)
    channels = block.layers[0].conv.in_channels
    values = block.layers[0].conv.weight.detach().numpy()
    with torch.no_grad():
        expected = fast(x)
        values *= 2
        block(features[:, :channels])
        values /= 2
        assert torch.equal(fast(x), expected)


class Editing(nn.Module):
    """A part of somebody else, which writes weights of others whenever it is called."""

    def __init__(self, inner: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.inner, self.values = inner, bias.detach().numpy()

    def forward(self, x: Tensor) -> Tensor:
        self.values += 1
        return self.inner(x)


def exchange_a_part(fast: nn.Module) -> None:
    fast.mda[1] = copy.deepcopy(fast.mda[1])
    in_numpy(next(fast.mda[1].parameters()))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "hook": lambda fast: fast.base[5].conv.register_forward_hook(lambda _m, _i, y: y * 0.5),
    "part": exchange_a_part,
    "parameter": lambda fast: replace_parameter(fast.base[0]),
    "eps": lambda fast: change_eps(fast.base[0]),
    "training": lambda fast: fast.base[0].norm.train(),
    "method of a part": lambda fast: setattr(fast.base[0].relu, "forward", torch.sigmoid),
    "method of a class": lambda fast: None,  # below: it has to be undone
}


@pytest.mark.parametrize("changed", CHANGES)
def test_changes_of_a_settled_network(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture()
    fast = settled(network(), x)
    with torch.no_grad():
        before = fast(x)
        CHANGES[changed](fast)
        if changed == "method of a class":
            real = DAPF.forward
            monkeypatch.setattr(DAPF, "forward", lambda self, x: 2 * real(self, x))
        for _ in range(4):
            plain = copy.deepcopy(fast)  # which has seen nothing yet
            right, result = plain(x), fast(x)
            assert relative_error(right, before) > 1e-4, "nothing changes: a poor test"
            assert relative_error(result, right) <= 1e-6


@pytest.mark.parametrize("by", ["hook", "part"])
def test_weights_that_are_edited_in_mid_call(by: str) -> None:
    """In each call DAPF adds 1 to the last bias, before that is used."""
    x = picture()
    fast = settled(network(), x)
    bias = fast.finalConv.bias.detach()
    with torch.no_grad():
        before = fast(x)

        def write_more(*_: object) -> None:
            bias.numpy()[:] += 1

        if by == "hook":
            fast.DAPF.register_forward_hook(write_more)
        else:
            fast.DAPF = Editing(fast.DAPF, bias)
        for call in range(1, 5):
            assert relative_error(fast(x), before + call) <= 1e-6


def test_a_network_is_freed_at_once() -> None:
    fast = settled(network("fassd_net_l2"), picture(113, 120))
    gone = weakref.ref(fast), weakref.ref(fast.base[0]), weakref.ref(fast.base[0].conv.weight)
    gc.collect()
    gc.disable()
    try:
        del fast
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()
