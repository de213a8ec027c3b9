"""What the GPU report learns of the kernels: variants of the convolution, launches, a stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fassd_kernels
from benchmarks import variants
from benchmarks.facts import measure_runner, runner_faults
from benchmarks.plan import PARTS
from benchmarks.probes import is_cuda_kernel, launch_times, profile_faults
from benchmarks.tools import Visit
from benchmarks.variants import (
    KernelVariant,
    fitting,
    known_variants,
    measure_shape,
    measure_variants,
    variants_text,
    wrong_variants,
)
from fassd.bench.cases import Bench
from fassd.bench.costs.cuda import FLOAT32, HALF
from fassd.models.clock import Sampling

CPU = torch.device("cpu")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


def visit(limit_s: float = 60.0) -> Visit:
    return Visit(Bench(CPU, Sampling(rounds=2, sample_ms=0.1)), Path(), Path(), limit_s)


def shown(part: str, data: dict[str, Any]) -> str:
    """The section of a report that holds this data."""
    return PARTS[part].section({"items": [{"part": part, "data": data}]}, part)


# --- variants -------------------------------------------------------------------------------------


def test_the_variants_are_those_that_are_compiled():
    halves = known_variants(HALF)
    assert len(set(halves)) == len(halves)
    assert KernelVariant(8, 2, 8) in halves and KernelVariant(4, 4, 2, True) in halves
    assert known_variants(FLOAT32)[0].text == "8,1,8,0"


def test_a_variant_is_forced_for_as_long_as_it_is_asked_for(monkeypatch):
    monkeypatch.delenv(variants.VARIABLE, raising=False)
    with KernelVariant(4, 2, 8, True).forced():
        assert os.environ[variants.VARIABLE] == "4,2,8,1"
        with KernelVariant(8, 2, 8).forced():
            assert os.environ[variants.VARIABLE] == "8,2,8,0"
        assert os.environ[variants.VARIABLE] == "4,2,8,1"
    assert variants.VARIABLE not in os.environ


@pytest.fixture
def model() -> Any:
    from fassd.bench.costs import cuda as predict

    try:
        device = predict.find_device("H200")
    except ImportError as error:
        pytest.skip(str(error))
    return lambda dtype: predict.Model(device, dtype)


def convolution(arithmetic: int, **more: Any) -> Any:
    from fassd.bench.costs.cuda import Convolution

    size = (16, 32)
    given = {"kernel": (3, 3), "out_size": size, **more}
    return Convolution(1, size, (10, 18), 24, arithmetic=arithmetic, **given)


def test_sliding_variants_fit_plain_3x3_alone(model):
    limits = model(torch.float16).limits
    plain, dilated = (fitting(convolution(0, dilation=d), limits) for d in ((1, 1), (2, 2)))
    assert {variant.sliding for variant in plain} == {False, True}
    assert {variant.sliding for variant in dilated} == {False}
    assert dilated[KernelVariant(4, 1, 3)].n_tiles == 3


def measured(model: Any) -> dict[str, Any]:
    shape = convolution(2, stride=(2, 2), out_size=(8, 16))
    return measure_shape(visit(), shape, model(torch.float32).limits, "float32", "cpu")


@needs_cpu_kernels
def test_every_variant_of_a_shape_is_timed_and_compared(model):
    record = measured(model)
    assert record["shape"] == "1x16x32, 10+18>24, 3x3, stride 2x2"
    names = [variant["variant"] for variant in record["variants"]]
    assert set(names) <= {variant.text for variant in known_variants(FLOAT32)}
    assert record["planned"] in names and record["best"] in names
    assert all(v["match"] and v["rel_error"] < 1e-5 for v in record["variants"])
    assert all(v["timing"]["ms"] > 0 and v["predicted_cycles"] > 0 for v in record["variants"])


@needs_cpu_kernels
@pytest.mark.parametrize(
    ("name", "refusal", "timed"), [("8,1,8,0", "", True), ("4,1,4,0", "launch refused", False)]
)
def test_a_wrong_or_refused_variant_leaves_the_others(model, monkeypatch, name, refusal, timed):
    make = variants.call_of

    def with_a_mistake(*arguments: Any) -> Callable[..., Tensor]:
        call = make(*arguments)

        def run(*images: Tensor) -> Tensor:
            hit = os.environ.get(variants.VARIABLE) == name
            if hit and refusal:
                raise RuntimeError(f"{refusal}\nby the driver")
            return call(*images) * (1.001 if hit else 1.0)

        return run

    monkeypatch.setattr(variants, "call_of", with_a_mistake)
    record = {**measured(model), "count": 2}
    wrong = [one for one in record["variants"] if not one["match"]]
    assert [(one["variant"], "timing" in one) for one in wrong] == [(name, timed)]
    assert record["best"] not in (None, name)
    data = {"network": "fassd_net", "dtype": "float32", "shapes": [record], "left": 0}
    reason = f": RuntimeError: {refusal}" if refusal else ""
    shape = "1x16x32, 10+18>24, 3x3, stride 2x2"
    assert wrong_variants(data) == [f"variant {name} is wrong on {shape}{reason}"]
    assert "1 shapes" in variants_text(data)


@needs_cpu_kernels
def test_variants_that_find_no_time_are_counted(model):
    place = {"batch": 1, "height": 64, "width": 64, "dtype": "float32"}
    data = measure_variants(visit(-1.0), "cpu", "fassd_net_l2", **place)
    assert data["shapes"] == [] and data["left"] > 30


def test_the_page_says_what_the_fastest_variants_would_win():
    def variant(name: str, ms: float) -> dict[str, Any]:
        return {"variant": name, "match": True, "timing": {"ms": ms}}

    two = [variant("8,2,8,0", 0.010), variant("4,1,8,0", 0.008)]
    slower = {"shape": "a", "count": 3, "planned": "8,2,8,0", "best": "4,1,8,0", "variants": two}
    right = {**slower, "shape": "b", "count": 1, "planned": "4,1,8,0"}
    data = {"network": "fassd_net", "dtype": "float16", "shapes": [right, slower], "left": 4}
    text = variants_text(data)
    assert "take 38.00 us as planned and 32.00 us with the fastest variants" in text
    assert "4 shapes were left" in text
    assert "| a | 3 | 8,2,8,0 | 10.00 | 4,1,8,0 | 8.000 | 80% |" in text and "| b |" not in text


# --- launches, predicted and measured -------------------------------------------------------------

MANGLED = "_ZN5fassd4cuda18convolution_kernelI8HalfMathEEvv"


def test_kernels_of_ours_are_known_by_their_namespace():
    assert is_cuda_kernel("void fassd::cuda::(anonymous namespace)::stem_kernel<__half>(Stem)")
    assert is_cuda_kernel(MANGLED)
    assert not is_cuda_kernel("void at::native::elementwise_kernel<128, 4>(int)")


def timeline_of(*names: str) -> SimpleNamespace:
    """Two replays; every kernel takes 3 microseconds, and follows the one before by 1."""
    from fassd.bench.timeline import Kernel

    kernels = [Kernel(name, 4e-6 * i, 4e-6 * i + 3e-6) for i, name in enumerate(names)]
    return SimpleNamespace(replays=[kernels, kernels], seconds=[1e-5, 1e-5])


@pytest.fixture
def prediction(model: Any) -> Any:
    """Of the two launches that come after the first."""
    from fassd.bench.costs import cuda as predict

    whole = predict.predict_network("fassd_net_l2", 64, 64, predict.find_device("H200"))
    return replace(whole, launches=whole.launches[1:3])


def test_launches_are_measured_beside_their_prediction(prediction):
    name = f"void fassd::cuda::{prediction.launches[0].kernel}<>"
    data = launch_times(prediction, timeline_of(name, name))
    assert (data["planned"], data["seen"], data["foreign"]) == (2, 2, {})
    assert sum(row["measured_s"] for row in data["rows"]) == pytest.approx(7e-6)
    assert data["measured_s"] == pytest.approx(1e-5)
    known = {"network": "fassd_net_l2", "backend": "cuda", "dtype": "float16"}
    page = shown("profile", {**known, **data})
    assert profile_faults({**known, **data}) == [] and "predicted us | measured us |" in page
    # One kernel more: its name is told, and all times are kept.
    copied = "at::native::copy"
    other = launch_times(prediction, timeline_of(name, copied, name))
    assert other["foreign"] == {copied: 1} and other["mismatch"].startswith("launch 2")
    assert [kernel["kernel"] for kernel in other["kernels"]] == [name, copied, name]
    assert sum(kernel["measured_s"] for kernel in other["kernels"]) == pytest.approx(11e-6)
    assert {row["label"]: row["count"] for row in other["rows"]} == {name: 2, copied: 1}
    (problem,) = profile_faults({**known, **other})
    assert "others: 1 of at::native::copy" in problem
    page = shown("profile", {**known, **other})
    row = f"| {copied} | - | - | - | - | 1 |{' - |' * 12} 4.00 |"
    assert row in page and other["mismatch"] in page
    # One kernel of another name loses no time either.
    renamed = launch_times(prediction, timeline_of(name, "void fassd::cuda::renamed_kernel<>"))
    assert (renamed["planned"], renamed["seen"], renamed["foreign"]) == (2, 2, {})
    assert len(renamed["kernels"]) == len(renamed["rows"]) == 2
    assert renamed["measured_s"] == pytest.approx(1e-5)
    assert "renamed_kernel" in renamed["mismatch"]


# --- a stream of pictures -------------------------------------------------------------------------


@needs_cpu_kernels
def test_the_runner_is_timed_and_its_labels_compared(monkeypatch):
    place = {"batch": 2, "height": 64, "width": 96, "dtype": "float32"}
    data = measure_runner(visit(), "cpu", "fassd_net_l2", 0.01, **place)
    assert data["match"] and data["rel_error"] < 1e-4
    assert data["fps"] > 0 and data["latency_ms"] > 0 and data["frames"] > 0
    assert runner_faults(data) == []
    assert "| fassd_net_l2 | cpu | 2x64x96 | float32 |" in shown("runner", data)
    finish = fassd_kernels.Runner.finish
    monkeypatch.setattr(fassd_kernels.Runner, "finish", lambda *a: finish(*a) ^ 1)
    wrong = measure_runner(visit(), "cpu", "fassd_net_l2", 0.01, **place)
    assert runner_faults(wrong) == ["the labels do not match the reference"]
