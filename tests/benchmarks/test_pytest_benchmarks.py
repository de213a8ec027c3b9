"""`pytest benchmarks/`: what it writes, refuses, and takes for a sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fassd_kernels
from benchmarks import conftest as choices
from benchmarks.conftest import Choices
from benchmarks.test_speed import limit_of, trial_of
from fassd.bench.subjects import MODULE_VARIANTS, Case

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


def run(
    folder: Path, *arguments: str, plugin: str = "", root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, with the text of a plugin; a report lands in `folder`."""
    (folder / "stand_in.py").write_text(plugin)
    search = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "stand_in", "-p", "no:cacheprovider"]
    # A worker of xdist says so in its environment, and pytest-benchmark then times nothing.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    report = f"--benchmark-json={folder / 'report.json'}"
    return subprocess.run(
        [*command, report, *arguments],
        cwd=root,
        env={**inherited, "PYTHONPATH": search, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


SMALL = ("benchmarks/", "--sizes", "64x128", "--device", "cpu", "--threads", "1")


@needs_cpu_kernels
def test_the_report_tells_what_was_measured_and_where(tmp_path):
    chosen = "(upsample_argmax or alpha or (fassd_net and not l1 and not l2)) and native"
    done = run(tmp_path, *SMALL, "-k", chosen)
    assert done.returncode == 0, done.stdout
    report = report_of(tmp_path)
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
    trial = trial_of(Case("operators", "conv_act base.3", 64, 128, "float32"), CPU)
    (weight,) = (p for p in trial.subject.module.parameters() if p.dim() == 4)
    (x,) = trial.sets[0]
    assert trial.operations == 2 * weight.numel() * x.shape[2] * x.shape[3]


WRONG = """
from dataclasses import replace
from fassd.bench.forms import BUILDERS, FOLDED, folded_channels_last
import benchmarks.test_speed

def wrong(form):
    right = folded_channels_last(form)
    return replace(right, call=lambda x: 1.01 * right.call(x))

def timed(*arguments):
    raise RuntimeError("it is timed")

BUILDERS[FOLDED] = wrong
"""


def test_a_wrong_candidate_fails_and_is_not_timed(tmp_path):
    wrong = WRONG + "benchmarks.test_speed.sample = timed\n"
    done = run(tmp_path, *SMALL, "-k", "alpha and 4 and channels_last", plugin=wrong)
    assert done.returncode == 1, done.stdout
    assert "channels_last, BN folded, cudnn.benchmark on Case(part='modules'" in done.stdout
    assert "relative error 0.0" in done.stdout and "at most 4e-06 is a match" in done.stdout
    assert "it is timed" not in done.stdout


EVENTS = """
import pytest
import torch

from benchmarks.test_speed import CLOCK, time_run
from fassd.bench.stopwatch import Run, Sampling


class Event:
    '''One of CUDA's on a device that needs 1.5, 3, 4.5 .. ms for what lies between two.'''

    pairs = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self): ...

    def synchronize(self): ...

    def elapsed_time(self, end):
        Event.pairs += 1
        return 1.5 * Event.pairs


@pytest.mark.benchmark(timer=CLOCK.read)
def test_events(benchmark, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    replay = Run(lambda: None, 4, "graph", lambda: [])
    time_run(benchmark, replay, torch.device("cuda"), Sampling(rounds=3, sample_ms=3))
"""


def test_samples_between_events_are_what_the_statistics_hold(tmp_path):
    (tmp_path / "test_events.py").write_text(EVENTS)
    done = run(tmp_path, "test_events.py", root=tmp_path)
    assert done.returncode == 0, done.stdout
    (row,) = report_of(tmp_path)["benchmarks"]
    # The first pair said how many replays a sample takes: two, of four calls each.
    assert row["stats"]["data"] == pytest.approx([3e-3 / 8, 4.5e-3 / 8, 6e-3 / 8])


def test_a_bad_option_is_named_with_what_is_accepted(tmp_path):
    done = run(tmp_path, "benchmarks/", "--sizes", "64x128,100x100", "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--sizes: got '100x100', accepted is HEIGHTxWIDTH" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sizes": "64"}, "--sizes: got '64', accepted is HEIGHTxWIDTH"),
        ({"sizes": "32x64"}, "multiples of 32 from 64"),
        ({"dtypes": "float32,half"}, "got 'half', accepted are float32, float16, bfloat16"),
        ({"threads": "1,0"}, "--threads: got '0', accepted are whole numbers from 1"),
        ({"device": "tpu"}, "--device: got 'tpu', accepted here: cpu"),
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
    assert len(networks) == 9 * 3 * 3
    candidates = {case.dtype: full.candidates(case) for case in networks}
    every = ["eager", "channels_last", "compile", "native", "reference"]
    assert candidates == {
        "float32": every,
        "float16": ["native", "reference"],
        "bfloat16": every,
    }


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
    assert limit_of(candidate, trial_of(case, CPU), case, CPU) == limit
