"""The suite examines what it says it does: its backends, its poison, its layouts, its verdict."""

from __future__ import annotations

import pytest
import torch
from conformance import cases, harness
from conformance.cases import SAMPLES
from conformance.definition import pairwise
from conformance.harness import DEVICES, TABLE
from torch.autograd.profiler import profile

import fassd_kernels


@pytest.mark.parametrize("name", DEVICES)
def test_backend_is_examined(name, request):
    """A backend that is not there shows as a skip with its reason, not as silence."""
    backend = fassd_kernels.backends()[name]
    if not backend.available:
        pytest.skip(f"{name}: {backend.reason}")
    assert backend.operators <= set(TABLE)
    assert backend.operators and set(backend.dtypes) & set(harness.DTYPES)


def test_every_backend_is_in_the_table():
    assert {backend.name for backend in fassd_kernels.backends()} == set(DEVICES)


def test_required_backend_cannot_be_missing(monkeypatch):
    monkeypatch.setenv(harness.REQUIRE, "reference, nonesuch")
    with pytest.raises(pytest.UsageError, match="'nonesuch' is required"):
        harness.targets([], [])
    monkeypatch.delenv(harness.REQUIRE)
    with pytest.raises(pytest.UsageError, match="'nonesuch' is required"):
        harness.targets(["nonesuch"], [])
    for backend in fassd_kernels.backends():
        if not backend.available:
            with pytest.raises(pytest.UsageError, match=f"'{backend.name}' is required"):
                harness.targets([backend.name], [])
    with pytest.raises(pytest.UsageError, match="'cpu' is required"):
        harness.targets(["cpu"], ["cuda"])
    with pytest.raises(pytest.UsageError, match="device 'tpu' is asked for"):
        harness.targets([], ["tpu"])


def test_new_memory_is_poisoned(target):
    shape = (2, 3, 4, 5)
    image = torch.empty(shape, device=target.device, memory_format=torch.channels_last)
    assert image.isnan().all()
    assert torch.empty(7, dtype=torch.float16, device=target.device).isnan().all()
    assert torch.empty(7, dtype=torch.uint8, device=target.device).eq(255).all()
    assert image.new_empty(3, dtype=torch.float64).isnan().all()
    assert torch.empty_like(image).isnan().all()
    assert torch.empty_strided((2, 3), (8, 1), device=target.device).isnan().all()


def test_operators_get_poisoned_memory(subject):
    """Also what an operator allocates in C++: the dispatcher sees it being filled."""
    call = SAMPLES[subject.operator][0].to(torch.float32, subject.device)
    with profile(use_device="cuda" if subject.device == "cuda" else None) as events:
        subject(call)
    names = [event.name for event in events.function_events]
    assert names.count("aten::fill_") >= names.count("aten::empty") > 0


@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_layouts_differ_in_strides_only(layout):
    image = torch.randn(2, 3, 4, 5)
    result = harness.LAYOUTS[layout](image)
    axis = {"expanded_batch": 0, "expanded_channels": 1, "expanded_width": 3}.get(layout)
    right = image if axis is None else image.narrow(axis, 0, 1).expand(image.shape)
    assert torch.equal(result, right)
    assert (result.stride() == image.stride()) == (layout == "contiguous")
    if "sliced" in layout or layout == "stepped":
        assert result.storage_offset() > 0
        around = torch.empty(0).set_(result.untyped_storage())
        assert around.isnan().sum() == around.numel() - image.numel() > 0


def test_verdict_sees_one_wrong_pixel():
    """One element of a large picture off by 0.05 fails in every dtype but bfloat16."""
    right = cases.Source().image(1, 8, (64, 64))
    harness.check_close(right.clone(), right, 1e-12)
    wrong = right.clone()
    wrong[0, 3, 5, 7] += 0.05
    for dtype in (torch.float32, torch.float16, torch.float64):
        with pytest.raises(AssertionError, match=r"expected <=|is off by"):
            harness.check_close(wrong, right, harness.TOLERANCES[dtype])
    wrong[0, 3, 5, 7] = float("nan")
    with pytest.raises(AssertionError, match="1 elements are NaN"):
        harness.check_close(wrong, right, 1.5e-2)


def test_pairwise_leaves_no_pair_out():
    rows = pairwise(a=(1, 2, 3), b="xyz", c=(True, False))
    for x, y, count in (("a", "b", 9), ("a", "c", 6), ("b", "c", 6)):
        assert len({(row[x], row[y]) for row in rows}) == count
    assert len(rows) < 18
