"""`pytest benchmarks/`: what it writes, refuses, and takes for a sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fassd_kernels
from benchmarks import conftest as choices
from benchmarks.conftest import Choices
from benchmarks.test_speed import CLOCK, limit_of, measure, time_run, trial_for
from fassd.bench.candidates import FOLDED, FORMS, folded
from fassd.bench.stopwatch import Run
from fassd.bench.subjects import MODULE_VARIANTS, Case
from fassd.models.clock import Sampling

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


@needs_cpu_kernels
def test_the_report_tells_what_was_measured_and_where(tmp_path):
    chosen = "(upsample_argmax or alpha or (fassd_net and not l1 and not l2)) and native"
    small = ("--sizes", "64x128", "--device", "cpu", "--threads", "1", "-k", chosen)
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/"]
    # A worker of xdist says so in its environment, and pytest-benchmark then times nothing.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, f"--benchmark-json={file}", *small],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads(file.read_text())
    machine = report["machine_info"]["fassd"]
    assert machine["device_type"] == "cpu" and machine["torch"] == torch.__version__
    assert {"cpu", "threads", "versions", "commit", "date"} <= machine.keys()
    rows = {row["extra_info"]["subject"]: row for row in report["benchmarks"]}
    assert set(rows) == {"upsample_argmax", "fassd_net", *MODULE_VARIANTS}
    for subject, row in rows.items():
        info = row["extra_info"]
        assert row["group"] == f"{subject}, 64x128, float32, threads: 1"
        assert (info["height"], info["width"], info["batch"]) == (64, 128, 1)
        assert (info["dtype"], info["threads"], info["device"]) == ("float32", 1, "cpu")
        assert (info["candidate"], info["title"]) == ("native", "ours, C++/CUDA")
        assert info["method"] == "clock"
        assert 0 <= info["relative_error"] < 1e-3
        assert row["stats"]["rounds"] == len(row["stats"]["data"])
        assert min(row["stats"]["data"]) > 0
    assert rows["fassd_net"]["extra_info"]["labels_equal_percent"] >= 99.9
    assert rows["DAPF(224), alpha 4"]["extra_info"]["labels_equal_percent"] is None
    parts = {subject: row["extra_info"]["part"] for subject, row in rows.items()}
    assert parts["upsample_argmax"] == "operators" and parts["fassd_net"] == "networks"


def test_macs_and_parameters_are_those_of_the_subject():
    trial = trial_for(Case("operators", "conv_act base.3", 64, 128, "float32"), CPU)
    (weight,) = (p for p in trial.subject.module.parameters() if p.dim() == 4)
    (x,) = trial.sets[0]
    assert trial.work["operations"] == 2 * weight.numel() * x.shape[2] * x.shape[3]


class Benchmark:
    """What pytest-benchmark's fixture does with a timer: rounds of one call each, in `data`."""

    def __init__(self):
        self.extra_info, self.data = {}, []

    def pedantic(self, function, args, rounds):
        for _ in range(rounds):
            before = CLOCK.read()
            function(*args)
            self.data.append(CLOCK.read() - before)


def test_a_wrong_candidate_fails_and_is_not_timed(monkeypatch):
    def wrong(context, dtype):
        right = folded(context, dtype)
        return lambda x: 1.01 * right(x)

    monkeypatch.setitem(FORMS, FOLDED, replace(FORMS[FOLDED], build=wrong))
    case = Case("modules", "DAPF(224), alpha 4", 64, 128, "float32")
    benchmark = Benchmark()
    with pytest.raises(AssertionError, match="at most 4e-06 is a match") as caught:
        measure(benchmark, case, 1, FOLDED, CPU)
    assert "channels_last, BN folded, cudnn.benchmark on Case(part='modules'" in str(caught.value)
    assert "relative error 0.0" in str(caught.value)
    assert benchmark.data == []


def test_samples_between_events_are_what_the_statistics_hold(monkeypatch):
    class Event:
        """One of CUDA's on a device that needs 1.5, 3, 4.5 .. ms for what lies between two."""

        pairs = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self): ...

        def synchronize(self): ...

        def elapsed_time(self, end):
            Event.pairs += 1
            return 1.5 * Event.pairs

    monkeypatch.setattr(torch.cuda, "Event", Event)
    benchmark, replay = Benchmark(), Run(lambda: None, 4, "graph", lambda: [])
    time_run(benchmark, replay, torch.device("cuda"), Sampling(rounds=3, sample_ms=3))
    # The first pair said how many replays a sample takes: two, of four calls each.
    assert benchmark.data == pytest.approx([3e-3 / 8, 4.5e-3 / 8, 6e-3 / 8])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sizes": "64"}, "--sizes: '64' is not a size; write height x width"),
        ({"sizes": "32x64"}, "'32x64' is not made of multiples of 32 from 64"),
        ({"dtypes": "float32,half"}, "'half' is not one of float32, float16, bfloat16"),
        ({"threads": "1,0"}, "--threads: '0' is not a whole number from 1"),
        ({"device": "tpu"}, "--device: 'tpu' is not one of cpu"),
    ],
    ids=str,
)
def test_bad_values_are_refused(option, message):
    with pytest.raises(pytest.UsageError, match=message):
        choices.choices(**option)


def test_full_is_everything(monkeypatch):
    monkeypatch.setattr(choices, "pytorch_has_arithmetic", lambda dtype, device: dtype != "float16")
    full = choices.choices(full=True, device="cpu")
    assert full.sizes == ((256, 512), (512, 1024), (1024, 2048))
    assert full.threads == tuple(sorted({1, torch.get_num_threads()}))
    networks = full.cases("networks")
    assert len(networks) == 11 * 3 * 3
    candidates = {case.dtype: full.candidates(case) for case in networks}
    every = ["eager", "channels_last", "compile", "native"]
    assert candidates == {"float32": every, "float16": ["native"], "bfloat16": every}


def test_a_gpu_has_both_of_our_backends():
    on_gpu = Choices(((512, 1024),), ("float16",), (1,), torch.device("cuda"))
    (case, *_) = on_gpu.cases("modules")
    plain = ["eager", "channels_last", "compile"]
    assert on_gpu.candidates(case) == [*plain, "native", "triton"]


def test_without_full_one_network_is_compiled():
    default = choices.choices(device="cpu")
    compiled = [c.subject for c in default.cases("networks") if "compile" in default.candidates(c)]
    assert compiled == ["fassd_net"]
    modules = default.cases("modules")
    assert len(modules) == 16 and all("compile" in default.candidates(c) for c in modules)


@pytest.mark.parametrize(
    ("part", "subject", "dtype", "candidate", "limit"),
    [
        ("operators", "upsample", "float32", "native", 2e-6),
        ("operators", "upsample", "float32", "eager", 5e-5),
        ("operators", "upsample_argmax", "float32", "native", 1e-3),
        ("operators", "conv_act base.3", "bfloat16", "native", 1.5e-2),
        ("modules", "DAPF(224)", "float32", "native", 4e-6),
        ("modules", "DAPF(224)", "float16", "native", 2e-3),
    ],
)
def test_limits(part, subject, dtype, candidate, limit):
    case = Case(part, subject, 64, 128, dtype)
    assert limit_of(candidate, trial_for(case, CPU)) == limit
