"""A network's own code, recorded: what is fused with each other, and what undoes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from kernels.conftest import exact, network, relative_error
from kernels.conftest import random_picture as picture
from torch import nn

from fassd.models import FASSDNet
from fassd.models.preprocess import MEAN, STD
from fassd_kernels import accelerate
from fassd_kernels.graphs import recorded
from fassd_kernels.modules import FusedNetwork

LEVEL = ["upsample_conv1x1", "mda", "hardblock"]


def test_the_graph_is_recorded_once_for_all_networks_of_a_structure() -> None:
    model, x = network(), picture()
    recorded.record.cache_clear()
    with torch.no_grad():
        for fast in (accelerate(model), accelerate(model), copy.deepcopy(accelerate(model))):
            fast(x)
            fast.predict_labels(x)
    assert recorded.record.cache_info().misses == 1


def change_pooling(fast: Any) -> None:
    fast.base[6].ceil_mode = True


def other_pooling(fast: Any) -> None:
    fast.base[6] = nn.MaxPool2d(2)


def own_method(fast: Any) -> None:
    fast.base[6].forward = lambda x: x[:, :, :-1:2, :-1:2]


def hook(fast: Any) -> None:
    fast.base[5].register_forward_hook(lambda _m, _i, y: y * 0.5)


@pytest.mark.parametrize("change", [change_pooling, other_pooling, own_method, hook])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_pair_that_is_no_longer_one(
    change: Callable[[Any], None], calls: int, operator_calls: list[str]
) -> None:
    """Its layer and pooling run as two modules; the other pairs stay fused."""
    model, x = network(), picture(130, 170)
    fast = accelerate(model)
    with torch.no_grad():
        for _ in range(calls):
            before = fast(x)
        change(model)
        change(fast)
        operator_calls.clear()
        result = fast(x)
    right = exact(model, x)
    assert relative_error(result, right) <= 2e-6
    assert calls == 0 or relative_error(before, right) > 1e-3, "nothing changes: a poor test"
    assert operator_calls[-11:-2] == LEVEL * 3


def test_a_pooling_by_lists(operator_calls: list[str]) -> None:
    model, x = network("fassd_net_l2"), picture(120, 130)
    model.base[6] = nn.AvgPool2d([2, 2], [2, 2])
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), exact(model, x)) <= 2e-6
    assert "upsample" in operator_calls


def test_lists_of_another_kind() -> None:
    model, x = network("fassd_net_l2"), picture(120, 130)
    model.base, model.mda = nn.Sequential(*model.base), nn.Sequential(*model.mda)
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), exact(model, x)) <= 2e-6


def test_a_decoder_of_other_layers(operator_calls: list[str]) -> None:
    """A layer on what is resized, which is no `ConvLayer`, is called as it is."""
    model, x = network("fassd_net_l2"), picture(120, 130)
    first = model.conv1x1_up[0].conv
    model.conv1x1_up[0] = nn.Conv2d(first.in_channels, first.out_channels, 1)
    fast = accelerate(model)
    operator_calls.clear()
    with torch.no_grad():
        assert relative_error(fast(x), exact(model, x)) <= 2e-6
    assert operator_calls.count("upsample_conv1x1") == 2


def half_as_much(fast: Any, name: str) -> None:
    """A method of one network that is not its class's."""

    def halved(self: Any, *arguments: Any, **keywords: Any) -> Any:
        found = getattr(type(self), name)(self, *arguments, **keywords)
        return [x * 0.5 for x in found] if isinstance(found, list) else found * 0.5

    setattr(fast, name, MethodType(halved, fast))


@pytest.mark.parametrize("name", ["encode", "encode_part", "refine", "_scores"])
@pytest.mark.parametrize("early", [True, False])
def test_a_method_that_was_replaced_is_called(name: str, early: bool) -> None:
    model, x = network("fassd_net_l2"), picture(70, 90)
    with torch.no_grad():
        fast = accelerate(model)
        before = fast(x)
        half_as_much(model, name)
        if early:
            fast = accelerate(model)
        else:
            half_as_much(fast, name)
        right = exact(model, x)
        assert relative_error(fast(x), right) <= 2e-6
    assert relative_error(before, right) > 1e-3, "nothing changes: a poor test"


def test_a_method_that_is_overridden_is_called() -> None:
    class Own(FusedNetwork):
        def refine(self, *arguments: Any, **keywords: Any) -> Any:
            return super().refine(*arguments, **keywords) * 0.5

    model, x = network("fassd_net_l2"), picture(70, 90)
    with torch.no_grad():
        fast = accelerate(model)
        fast(x)
        fast.__class__ = Own
        half_as_much(model, "refine")
        assert relative_error(fast(x), exact(model, x)) <= 2e-6


def test_a_method_put_into_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("fassd_net_l2"), picture(70, 90)
    written = FASSDNet.refine
    with torch.no_grad():
        fast = accelerate(model)
        fast(x)
        monkeypatch.setattr(FASSDNet, "refine", lambda *a, **k: written(*a, **k) * 0.5)
        right = exact(model, x)
        assert relative_error(fast(x), right) <= 2e-6
        assert relative_error(accelerate(model)(x), right) <= 2e-6


HEADS: list[Callable[[Any], nn.Module]] = [
    lambda head: nn.Sequential(nn.Dropout2d(), head),
    lambda head: nn.Identity(),
    lambda head: nn.Conv2d(head.in_channels, 7, 3, padding=1, bias=False),
]


@pytest.mark.parametrize("make", HEADS, ids=["sequential", "identity", "3x3"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_another_head(make: Callable[[Any], nn.Module], dtype: torch.dtype | None) -> None:
    """Put in before or after the network was accelerated."""
    model, x = network("fassd_net_l2"), picture(70, 90)
    late = accelerate(model, dtype)
    model.finalConv = make(model.finalConv).eval()
    late.finalConv = copy.deepcopy(model.finalConv).to(dtype or torch.float32)
    pixels = torch.randint(0, 256, (1, 70, 90, 3), dtype=torch.uint8)
    with torch.no_grad():
        right = exact(model, x)
        for fast in (accelerate(model, dtype), late):
            assert relative_error(fast(x), right) <= 2e-6
            assert fast.predict_labels(x).shape == (1, 70, 90)
            assert fast.label_pictures(pixels, MEAN, STD).shape == (1, 70, 90)
