"""`fassd bench peers`: every candidate gives eager's output, and the report is honest."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fassd.bench import machine, memory, onnx_runtimes, stopwatch
from fassd.bench.candidates import BuildContext, Candidate, candidates
from fassd.bench.jobs import Job
from fassd.bench.results import JobResults, Result, Results
from fassd.bench.run import RunReport
from fassd.bench.run import run as run_jobs

SMALL = Job("fassd_net_l2", weights="streets", size=(64, 96), repeats=3, warmup=0, memory=False)


EXPORTED: dict[torch.Size, bytes] = {}


def exported(model, inputs, export=onnx_runtimes.exported):
    """The network of `SMALL` as ONNX, made once for a shape of input."""
    (picture,) = inputs
    if picture.shape not in EXPORTED:
        EXPORTED[picture.shape] = export(model, inputs)
    return EXPORTED[picture.shape]


def run(chosen, *jobs):
    """Measure with a compiler, an exporter, and between calls, that take no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "SETTLE", 0)
        patch.setattr(onnx_runtimes, "exported", exported)
        return run_jobs(jobs or [SMALL], chosen, compiler="eager")


def report_of(*comparisons):
    where = machine.environment()
    return RunReport(Results(environment=where, comparisons=comparisons, peers=True))


def printed(report, width=100):
    console = Console(width=width, highlight=False)
    with console.capture() as text:
        console.print(report)
    return text.get()


def named(comparison):
    return {result.name: result for result in comparison.results}


# --- candidates -----------------------------------------------------------------------------------


def test_int8_is_compared_with_openvinos() -> None:
    titles = [c.title for c in candidates(["float32", "int8"])]
    assert [title for title in titles if "int8" in title] == [
        "OpenVINO int8",
        "ours int8",
        "ours int8 labels",
    ]
    assert not any("int8" in c.title for c in candidates())


def test_candidates_by_dtype_and_key():
    assert [c.title for c in candidates()] == [
        "eager NCHW",
        "eager channels_last",
        "Inductor freezing",
        "ONNX Runtime",
        "OpenVINO",
        "OpenVINO bfloat16",
        "ours",
        "ours labels",
    ]
    chosen = candidates(["float32", "float16", "float16"], ["ours", "eager"])
    titles = [c.title for c in chosen]
    assert titles == ["eager NCHW", "ours", "ours labels", "ours float16", "ours float16 labels"]
    with pytest.raises(ValueError, match=r"unknown candidate 'warp', known are eager, chan"):
        candidates(only=["eager", "warp"])


def test_candidates_that_another_device_has_are_refused():
    with pytest.raises(ValueError, match="tensorrt: does not run on cpu"):
        candidates(only=["eager", "tensorrt"])
    with pytest.raises(ValueError, match="inductor, openvino: does not run on cuda"):
        candidates(only=["openvino", "inductor"], device="cuda")


def test_a_gpu_runs_the_peers_in_ours_precision():
    titles = [c.title for c in candidates(["float32", "float16"], device="cuda:1")]
    assert titles == [
        "eager NCHW",
        "eager channels_last",
        "eager AMP",
        "torch.compile",
        "compile max-autotune",
        "ONNX Runtime",
        "TensorRT",
        "eager channels_last float16",
        "torch.compile float16",
        "compile max-autotune float16",
        "TensorRT float16",
        "ours",
        "ours graph",
        "ours labels",
        "ours labels graph",
        "ours float16",
        "ours float16 graph",
        "ours float16 labels",
        "ours float16 labels graph",
    ]


def test_candidates_by_name_run_on_a_cpu():
    chosen = candidates(only=["eager", "amp", "compile", "max_autotune"])
    (comparison,) = run(chosen).results.comparisons
    results = named(comparison)
    assert list(results) == ["eager NCHW", "eager AMP", "torch.compile", "compile max-autotune"]
    assert all(result.comparable for result in results.values())
    assert results["eager AMP"].max_relative_difference > 1e-5  # it did compute in 16 bits


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux gives a process's peak"
)
def test_peak_memory_is_measured_in_a_process_for_each_candidate():
    job = replace(SMALL, memory=True, batch=2)
    kinds = candidates(only=["eager", "onnxruntime"])
    (comparison,) = run(kinds, job).results.comparisons
    record = comparison.to_json(peers=True)["results"]
    assert all(row["peak_memory_bytes"] > 0 for row in record)
    assert "MiB" in printed(report_of(comparison))


def test_energy_is_counted_by_nvml_over_calls(monkeypatch):
    counted = iter([1000, 5000])
    calls = []
    fake = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda card: next(counted),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a")
    )
    found = memory.energy_of(lambda: calls.append(0), "cuda", seconds=0.01)
    assert found.joules == pytest.approx(4 / len(calls))

    def unsupported(card):
        raise RuntimeError("Not Supported")

    fake.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert memory.energy_of(lambda: None, "cuda") == memory.Energy(None, "NVML: Not Supported")
    assert memory.energy_of(lambda: None, "cpu").joules is None


@pytest.fixture(scope="module")
def report():
    for runtime in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(runtime)
    return run(candidates(["float32", "float16"]), replace(SMALL, batch=2))


@pytest.mark.xdist_group("peers")
def test_every_candidate_agrees_with_eager(report):
    (comparison,) = report.results.comparisons
    results = named(comparison)
    assert list(results) == [c.title for c in candidates(["float32", "float16"])]
    for result in results.values():
        exact = result.dtype == "float32"
        assert result.labels_equal_percent >= (99.9 if exact else 98), result
        assert result.first_call_s > 0 and len(result.timing.seconds) == SMALL.repeats
        if result.output == "labels":
            assert result.max_relative_difference is None
        else:
            assert result.max_relative_difference < (1e-5 if exact else 0.05), result


@pytest.mark.xdist_group("peers")
def test_table(report):
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for words in ("fassd_net_l2 at 2 x 64x96", "x eager", "x peer", "match", "ours float16 labels"):
        assert words in text
    assert "streets weights" in text


@pytest.mark.xdist_group("peers")
def test_json_round_trip(report):
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    where = record["environment"]
    assert where["cpu"] and where["threads"] and where["instruction_set"] is not None
    assert where["versions"]["onnxruntime"] and where["versions"]["openvino"]
    (first,) = record["comparisons"]
    assert first["job"]["batch"] == 2 and first["job"]["size"] == [64, 96]
    assert first["results"][0]["speedup_over_eager"] == 1
    peers = [c.title for c in candidates() if c.key != "ours" and c.dtype == "float32"]
    assert first["fastest_float32_peer"] in peers
    assert json.loads(json.dumps(Results.of(record).to_json())) == record


CTRL_C = """
import os, signal, torch
from fassd.bench.onnx_runtimes import exported, openvino
picture = torch.zeros(1, 3, 8, 8)
onnx = exported(torch.nn.Conv2d(3, 2, 1), (picture,))
first, second = (openvino(onnx, picture.device, torch.float32) for _ in range(2))
first(picture), second(picture)
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_after_openvino():
    for runtime in ("onnxscript", "openvino"):
        pytest.importorskip(runtime)
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True)
    assert done.stdout == "heard\n", done


@pytest.mark.slow
def test_inductor_agrees_and_leaves_its_settings():
    import torch._inductor.config as settings

    before = (settings.freezing, settings.force_disable_caches, torch.get_num_threads())
    report = run_jobs([SMALL], candidates(only=["eager", "inductor"]))
    assert named(report.results.comparisons[0])["Inductor freezing"].labels_equal_percent >= 99.9
    assert before == (settings.freezing, settings.force_disable_caches, torch.get_num_threads())


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_missing_library_becomes_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(BuildContext, "onnx", b"never read")
    (comparison,) = run(candidates(only=["eager", "onnxruntime"])).results.comparisons
    assert list(named(comparison)) == ["eager NCHW"]
    (note,) = (note for note in comparison.notes if "ONNX Runtime" in note)
    assert note.startswith("ONNX Runtime not measured: ")
    assert note.endswith("pip install 'fassd-net[bench]'")


def test_a_candidate_that_fails_becomes_a_note():
    def broken(context, dtype):
        raise RuntimeError("no such device\nTraceback")

    failing = Candidate("openvino", "OpenVINO", broken)
    (comparison,) = run([*candidates(only=["eager"]), failing]).results.comparisons
    assert "OpenVINO not measured: no such device" in comparison.notes
    with pytest.raises(RuntimeError, match="OpenVINO not measured: no such device"):
        run([failing])
    with pytest.raises(ValueError, match="nothing to measure"):
        run([])


@pytest.mark.parametrize(
    "output",
    [
        lambda logits: -logits,
        lambda logits: logits * math.nan,
        lambda logits: logits.argmin(1).to(torch.uint8),
    ],
    ids=["other", "not a number", "labels"],
)
def test_a_wrong_candidate_gets_no_speedup(output):
    reference, *_ = candidates(only=["eager"])

    def wrong(context, dtype):
        result = output(context.module(*context.inputs))  # once: by far the fastest candidate
        return lambda picture: result

    report = run([reference, Candidate("openvino", "OpenVINO", wrong)])
    (comparison,) = report.results.comparisons
    result = named(comparison)["OpenVINO"]
    assert not result.comparable
    assert comparison.speedup(result, comparison.reference) is None
    assert comparison.fastest_peer is comparison.reference
    assert "disagrees" in printed(report)
    _, row = json.loads(json.dumps(report.to_json(), allow_nan=False))["comparisons"][0]["results"]
    assert row["match"] is False and row["speedup_over_eager"] is None


# --- arithmetic and picture of a comparison made by hand ------------------------------------------


def made_by_hand(**medians):
    """A comparison in which each key's candidates take so many seconds; the rest agree."""
    fixed = {"first_call_s": 1.0, "labels_equal_percent": 100.0}
    results = (
        Result(name=c.title, key=c.key, dtype=c.dtype, seconds=(medians[c.key],) * 3, **fixed)
        for c in candidates()
        if c.key in medians
    )
    return JobResults(job=SMALL, results=tuple(results))


def test_speedups():
    comparison = made_by_hand(eager=6.0, inductor=3.0, openvino_bf16=0.5, ours=1.0)
    results = named(comparison)
    assert comparison.reference is results["eager NCHW"]
    assert comparison.fastest_peer is results["Inductor freezing"]  # bfloat16 is no float32 peer
    assert comparison.speedup(results["ours"], comparison.reference) == 6
    assert comparison.speedup(results["ours"], comparison.fastest_peer) == 3
    alone = made_by_hand(ours=1.0)
    assert alone.reference is None and alone.fastest_peer is None
    assert alone.speedup(alone.results[0], alone.reference) is None


def test_environment_names_the_commit_of_a_checkout(monkeypatch, tmp_path):
    commit = machine.environment()["commit"]
    if (Path(machine.fassd.__file__).parents[1] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    (tmp_path / "fassd").mkdir()
    monkeypatch.setattr(machine.fassd, "__file__", str(tmp_path / "fassd" / "__init__.py"))
    assert machine.environment()["commit"] is None
