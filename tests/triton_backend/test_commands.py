"""The commands: what is launched, compiled, predicted and tuned, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import typer
from conformance import cases
from rich.console import Console
from triton_backend.conftest import compiled, interpreted
from typer.testing import CliRunner, Result

from fassd.bench import inspect
from fassd.bench.costs.triton import plan_network
from fassd_kernels import ops, tune
from fassd_kernels.triton import aot, device
from fassd_kernels.triton.configurations import Config, read_table, table_of
from fassd_kernels.triton.device import INTERPRETER, device_named
from fassd_kernels.triton.program import recording
from fassd_kernels.tuning import tiles
from fassd_kernels.tuning.calls import recorded_calls
from fassd_kernels.tuning.trials import TuningTrial, render


def command(main: Callable[..., None], *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


# --- inspect --------------------------------------------------------------------------------------


@compiled
def test_inspect_predicts(tmp_path):
    path = tmp_path / "rows.json"
    arguments = ("--no-compile", "--json", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "fassd.bench.inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    assert content["gpu"] == "NVIDIA H200" and "1024x2048" in content["title"]
    assert sum(row["count"] for row in content["rows"]) == 71
    floor, predicted = (
        sum(row[n] for row in content["rows"]) for n in ("floor_us", "predicted_us")
    )
    assert 140 < floor < 190 and floor < predicted < 1000
    assert "mda tail 96>192" in done.stdout and f"{floor:.0f}" in done.stdout


@compiled
def test_inspect_compiles(tmp_path, monkeypatch):
    """The smallest network: every launch's registers, and no fault; of a sample, one in three."""
    step = 1 if os.environ.get("FASSD_TEST_ARCHITECTURES") == "all" else 3
    monkeypatch.setattr(inspect, "plan_network", lambda *a, **k: plan_network(*a, **k)[::-step])
    path = tmp_path / "rows.json"
    arguments = ("--model", "fassd_net_l2", "--gpu", "a100", "--json", str(path))
    done = command(inspect.main, *arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_text())["rows"]
    assert all(row["resources"]["registers"] > 0 for row in rows)
    products = [row for row in rows if row["label"] not in ("upsample_argmax",)]
    assert len(products) > 10
    assert all(row["resources"]["tensor_cores"] > 0 for row in products)


@compiled
def test_faults_are_told():
    good = aot.Resources(100, 0, 1000, 5, 5, 0)
    launches = plan_network("fassd_net_l2", 128, 256, device_named("L4"))
    compiled = {p.source.identity: good for p in launches}
    l4 = device_named("L4")
    assert inspect.faults(inspect.rows_of(launches, l4, compiled), l4) == []
    first = launches[0].source.identity
    compiled[first] = aot.Resources(255, 24, 200_000, 5, 5, 0)
    spills, shared = inspect.faults(inspect.rows_of(launches, l4, compiled), l4)
    assert "spills 24 bytes" in spills
    assert "takes 200000 bytes of shared memory; NVIDIA L4 gives a block 101376" in shared


@compiled
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "voodoo"), "gpu is 'voodoo'; expected one of Tesla T4, NVIDIA A100"),
        (("--gpu", "RTX"), "expected one of"),
        (("--size", "1024"), "'1024' is not a size"),
        (("--size", "0x5"), "'0x5' is not a size"),
        (("--dtype", "float64"), "'float64' is not one of 'float32', 'float16', 'bfloat16'"),
        (("--model", "resnet"), "resnet"),
        (("--output", "scores"), "'scores' is not one of 'logits', 'labels'"),
    ],
)
def test_bad_options(arguments, said):
    done = command(inspect.main, "--no-compile", *arguments)
    assert done.exit_code == 2
    text = " ".join(done.stderr.replace("│", " ").split())
    assert said in text


# --- tune -----------------------------------------------------------------------------------------


@compiled
def test_tune_lists_what_it_would_measure():
    done = command(tune.main, "--dry-run", "--model", "fassd_net_l2")
    assert done.exit_code == 0, done.output
    problems, configurations = (int(n) for n in done.stdout.splitlines()[-1].split() if n.isdigit())
    assert 30 < problems < 75 and configurations > 3 * problems
    assert "spatial" in done.stdout and "asymmetric" in done.stdout


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_tune_needs_a_gpu():
    done = command(tune.main, "--model", "fassd_net_l2")
    assert done.exit_code == 2 and "no GPU is seen" in done.output


def cases_of(device, *calls) -> list[tiles.TileCase]:
    with recorded_calls() as seen:
        for call in calls:
            call.to(torch.float16)(ops.operator(call.operator, "triton"))
    return tiles.cases_of(seen, device)


def timer_of(seconds, tried=()):
    """A clock that knows beforehand; `seconds` has those of configurations that are tried."""

    def repeats(self, candidate, calls):
        assert len(calls) >= 2
        return [lambda: candidate]

    def timer(candidates):
        configs = [repeats[0]() for repeats in candidates]
        tried.extend(configs)
        return [seconds.get(config, 3e-6) for config in configs]

    return repeats, timer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's tables, which are empty."""
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    table_of.cache_clear()
    yield tmp_path
    table_of.cache_clear()


@interpreted
def test_tuning_verifies_and_keeps_the_fastest(folder, monkeypatch):
    """The fastest is wrong, the next cannot run: the third wins."""
    calls = cases.conv_act(1, (16,), 16, (4, 9)), cases.upsample_argmax()
    (case,) = cases_of(INTERPRETER, *calls)
    wrong, impossible, right = (trial.candidate for trial in case.trials[:3])
    real = tiles.TileCase.compute

    def compute(self, candidate):
        if candidate == impossible:
            raise RuntimeError("out of resource: shared memory\nmore")
        result = real(self, candidate)
        return result * 1.01 if candidate == wrong else result

    tried: list[Config] = []
    repeats, timer = timer_of({wrong: 1e-6, impossible: 1e-6, right: 2e-6}, tried)
    monkeypatch.setattr(tiles.TileCase, "compute", compute)
    monkeypatch.setattr(tiles.TileCase, "repeats", repeats)
    done = tiles.tune([case], INTERPRETER, 60, timer, processes=0)
    assert tiles.table_path(INTERPRETER).parent == folder
    assert read_table(tiles.table_path(INTERPRETER)) == {case.key: right}
    assert wrong not in tried and impossible not in tried and right in tried
    console = Console(width=200, record=True)
    console.print(render(done, "test"))
    text = console.export_text()
    assert "wrong: off by 0.01" in text and "RuntimeError: out of resource" in text
    assert text.count("best") == 1


@interpreted
def test_tuning_adds_to_what_is_known(folder):
    def timer(candidates):
        return [1e-6] * len(candidates)

    for width in (5, 6):
        found = cases_of(INTERPRETER, cases.conv_act(1, (4,), 4, (3, width)))
        tiles.tune(found, INTERPRETER, 60, timer, processes=0)
    assert len(read_table(tiles.table_path(INTERPRETER))) == 2
    assert tiles.tune(found, INTERPRETER, -1, timer, processes=0) == []  # out of time


@interpreted
def test_a_launch_alone_is_what_is_timed():
    with recorded_calls() as calls:
        cases.hardblock(1, 5, (4, 6), (3, 5)).to(torch.float16)(ops.operator("hardblock", "triton"))
    (call,) = calls
    assert len(tiles.plan(call).launches) == 2
    for index in range(2):
        tiles.launcher(call, index)()


@compiled
def test_trials_are_compiled_in_other_processes():
    """For a GPU that is not there: nothing is run, but what spills or does not fit is put out."""
    l4 = device_named("L4")
    with device.assuming(l4), recording():
        (case,) = cases_of(l4, cases.conv_act(1, (16,), 16, (4, 9)))
        configs = (64, 32, 16, 4, 2), (64, 32, 16, 4, 13), (64, 24, 16, 4, 2)
        case.trials = trials = [TuningTrial(Config(*numbers)) for numbers in configs]
        (ready,) = tiles.compiled([case], 1, time.monotonic() + 300)
    assert ready is case
    good, large, impossible = (trial.reason for trial in trials)
    assert good == ""
    assert "bytes of shared memory" in large
    assert impossible and "bytes" not in impossible


def test_device_named():
    assert device_named("h200").name == "NVIDIA H200"
    assert device_named("nvidia l4").name == "NVIDIA L4"
    with pytest.raises(ValueError, match="gpu is 'NVIDIA'"):
        device_named("NVIDIA")
    assert {d.backend for d in device.KNOWN} == {"cuda", "hip"}
