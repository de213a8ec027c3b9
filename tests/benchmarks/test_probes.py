"""What the GPU report learns of the kernels: launches, and a stream of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fassd_kernels
from benchmarks.facts import measure_runner, runner_faults
from benchmarks.probes import is_cuda_kernel, launch_times, profile_faults, profile_network
from benchmarks.report import PARTS
from benchmarks.tools import Visit
from fassd.bench.cases import Bench
from fassd.models.clock import Sampling

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


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
def prediction() -> Any:
    """Of the two launches that come after the first."""
    from fassd.bench.costs import cuda as predict

    try:
        whole = predict.predict_network("fassd_net_l2", 64, 64, predict.find_device("H200"))
    except ImportError as error:
        pytest.skip(str(error))
    return replace(whole, launches=whole.launches[1:3])


def test_launches_are_measured_beside_their_prediction(prediction):
    name = f"void fassd::cuda::{prediction.launches[0].kernel}<>"
    data = launch_times(prediction, timeline_of(name, name))
    assert (data["planned"], data["seen"], data["foreign"]) == (2, 2, {})
    assert sum(row["measured_s"] for row in data["rows"]) == pytest.approx(7e-6)
    assert data["measured_s"] == pytest.approx(1e-5)
    known = {"network": "fassd_net_l2", "backend": "cuda", "dtype": "float16"}
    page = PARTS["profile"].section([{**known, **data}])
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
    page = PARTS["profile"].section([{**known, **other}])
    row = f"| {copied} | - | - | - | - | 1 |{' - |' * 15} 4.0 |"
    assert row in page and other["mismatch"] in page
    # One kernel of another name loses no time either.
    renamed = launch_times(prediction, timeline_of(name, "void fassd::cuda::renamed_kernel<>"))
    assert (renamed["planned"], renamed["seen"], renamed["foreign"]) == (2, 2, {})
    assert len(renamed["kernels"]) == len(renamed["rows"]) == 2
    assert renamed["measured_s"] == pytest.approx(1e-5)
    assert "renamed_kernel" in renamed["mismatch"]


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_network_is_profiled_through_each_backend(prediction, monkeypatch, backend):
    """The profiler and the GPU are stand-ins."""

    def time_network(planned: Any, *_: int, alpha: int, backend: str) -> SimpleNamespace:
        names = [f"void fassd::cuda::{launch.kernel}<>" for launch in planned.launches]
        return timeline_of(*(names if backend == "cuda" else ["conv_act_kernel"]))

    monkeypatch.setattr("fassd.bench.timeline.time_network", time_network)
    monkeypatch.setattr("benchmarks.probes.require_operators", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    bench = Bench(torch.device("cuda"), Sampling())
    visit = Visit(bench, Path(), Path(), 60.0)
    place = {"batch": 1, "height": 64, "width": 64, "dtype": "float16"}
    data = profile_network(visit, backend, "fassd_net_l2", **place)
    assert data["foreign"] == {} and data["planned"] > 40
    assert data["seen"] == (data["planned"] if backend == "cuda" else 1)
    assert ("predicted_s" in data, profile_faults(data) == []) == (backend == "cuda",) * 2


# --- a stream of pictures -------------------------------------------------------------------------


@needs_cpu_kernels
def test_the_runner_is_timed_and_its_labels_compared(monkeypatch):
    bench = Bench(torch.device("cpu"), Sampling(rounds=2, sample_ms=0.1))
    visit = Visit(bench, Path(), Path(), 60.0)
    place = {"batch": 2, "height": 64, "width": 96, "dtype": "float32"}
    data = measure_runner(visit, "cpu", "fassd_net_l2", 0.01, **place)
    assert data["match"] and data["rel_error"] < 1e-4
    assert data["fps"] > 0 and data["latency_ms"] > 0 and data["frames"] > 0
    assert runner_faults(data) == []
    assert "| fassd_net_l2 | cpu | 2x64x96 | float32 |" in PARTS["runner"].section([data])
    finish = fassd_kernels.Runner.finish
    monkeypatch.setattr(fassd_kernels.Runner, "finish", lambda *a: finish(*a) ^ 1)
    wrong = measure_runner(visit, "cpu", "fassd_net_l2", 0.01, **place)
    assert runner_faults(wrong) == ["the labels do not match the reference"]
