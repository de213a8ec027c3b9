"""A network's own code, recorded: what is fused with each other, and what undoes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.conftest import exact, network, relative_error
from kernels.conftest import random_picture as picture
from torch import nn

from fassd_kernels import accelerate
from fassd_kernels.graphs import recorded

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
