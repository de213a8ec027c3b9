"""The commands: what is launched, compiled, predicted and tuned, on a machine without a GPU."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from conformance import cases
from rich.console import Console
from triton_backend.conftest import compiled, interpreted

from fassd.bench import inspect
from fassd.bench.costs.triton import plan_network
from fassd_kernels import ops
from fassd_kernels.triton import aot, device
from fassd_kernels.triton.configurations import Config, read_table, table_of
from fassd_kernels.triton.device import INTERPRETER, device_named
from fassd_kernels.triton.program import recording
from fassd_kernels.tuning import tiles
from fassd_kernels.tuning.tiles import Trial


def command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=300
    )


# --- inspect --------------------------------------------------------------------------------------


@compiled
def test_inspect_predicts(tmp_path):
    path = tmp_path / "rows.json"
    done = command("fassd.bench.inspect", "--no-compile", "--json", str(path))
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
def test_inspect_compiles(tmp_path):
    """The smallest network: every launch's registers, and no fault."""
    path = tmp_path / "rows.json"
    arguments = ("--model", "fassd_net_l2", "--gpu", "a100", "--json", str(path))
    done = command("fassd.bench.inspect", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert all(row["resources"]["registers"] > 0 for row in rows)
    products = [row for row in rows if row["label"] not in ("upsample_argmax",)]
    assert all(row["resources"]["tensor_cores"] > 0 for row in products)


@compiled
def test_training_would_win_little():
    done = command("fassd.bench.inspect", "--training", "--size", "1024x1024")
    assert done.returncode == 0, done.stderr
    ratios = [float(line.split()[-1]) for line in done.stdout.splitlines()[1:]]
    eager, inductor, fused = ratios
    assert fused == 1 and 1 < inductor < 1.08 < eager


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
        (("--size", "1024"), "'1024'; expected HEIGHTxWIDTH"),
        (("--size", "0x5"), "'0x5'; expected HEIGHTxWIDTH"),
        (("--dtype", "float64"), "'float64'; expected one of float16, bfloat16, float32"),
        (("--model", "resnet"), "resnet"),
        (("--output", "scores"), "'scores'; expected one of logits, labels"),
    ],
)
def test_bad_options(arguments, said):
    done = command("fassd.bench.inspect", "--no-compile", *arguments)
    assert done.returncode == 2
    text = " ".join(done.stderr.replace("│", " ").split())
    assert said in text


# --- tune -----------------------------------------------------------------------------------------


@compiled
def test_tune_lists_what_it_would_measure():
    done = command("fassd_kernels.tune", "--dry-run", "--model", "fassd_net_l2")
    assert done.returncode == 0, done.stderr
    problems, configurations = (int(n) for n in done.stdout.splitlines()[-1].split() if n.isdigit())
    assert 30 < problems < 75 and configurations > 3 * problems
    assert "spatial" in done.stdout and "asymmetric" in done.stdout


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_tune_needs_a_gpu():
    done = command("fassd_kernels.tune", "--model", "fassd_net_l2")
    assert done.returncode == 2 and "no GPU is seen" in done.stderr


def recorded(*calls) -> list[tiles.RecordedCall]:
    with tiles.Calls() as seen:
        for call in calls:
            call.to(torch.float16)(ops.operator(call.operator, "triton"))
    return seen.seen


@interpreted
def test_tuning_verifies_and_keeps_the_fastest(tmp_path, monkeypatch):
    """The fastest is wrong, the next cannot run: the third wins."""
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    calls = recorded(cases.conv_act(1, (16,), 16, (4, 9)), cases.upsample_argmax())
    (case,) = tiles.cases_of(calls, INTERPRETER)
    wrong, impossible, right = case.trials[0].config, case.trials[1].config, case.trials[2].config
    real = tiles.RecordedCall.run_with

    def run_with(self, configs):
        (config,) = configs.values()
        if config == impossible:
            raise RuntimeError("out of resource: shared memory\nmore")
        result = real(self, configs)
        return result * 1.01 if config == wrong else result

    seconds = {wrong: 1e-6, impossible: 1e-6, right: 2e-6}
    monkeypatch.setattr(tiles.RecordedCall, "run_with", run_with)
    tried: list[Config] = []

    def launcher(self, configs, index):
        (config,) = configs.values()
        tried.append(config)
        return lambda: config

    monkeypatch.setattr(tiles.RecordedCall, "launcher", launcher)
    console = Console(width=200, record=True)
    path = tiles.tune(
        calls, INTERPRETER, 60, console, "test",
        timer=lambda function: seconds.get(function(), 3e-6), processes=0,
    )  # fmt: skip
    assert path.parent == tmp_path
    assert read_table(path) == {case.problem.key: right}
    assert wrong not in tried and impossible not in tried and right in tried
    text = console.export_text()
    assert "wrong: off by 0.01" in text and "RuntimeError: out of resource" in text


@interpreted
def test_tuning_adds_to_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    console = Console(quiet=True)
    for width in (5, 6):
        calls = recorded(cases.conv_act(1, (4,), 4, (3, width)))
        path = tiles.tune(calls, INTERPRETER, 60, console, "", lambda f: 1e-6, processes=0)
    assert len(read_table(path)) == 2
    table_of.cache_clear()


@interpreted
def test_a_launch_alone_is_what_is_timed():
    (call,) = recorded(cases.hardblock(1, 5, (4, 6), (3, 5)))
    program = call.plan()
    assert len(program.launches) == 2
    for index in range(2):
        call.launcher({}, index)()


@compiled
def test_trials_are_compiled_in_other_processes(tmp_path, monkeypatch):
    """For a GPU that is not there: nothing is run, but what spills or does not fit is put out."""
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    l4 = device_named("L4")
    with device.assuming(l4), recording():
        calls = recorded(cases.conv_act(1, (16,), 16, (4, 9)))
        (case,) = tiles.cases_of(calls, l4)
        trials = [Trial(Config(64, 32, 16, 4, 2), 1.0), Trial(Config(64, 32, 16, 4, 30), 1.0)]
        trials.append(Trial(Config(64, 24, 16, 4, 2), 1.0))
        case.trials = trials
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for trial, future in zip(trials, tiles.submit(pool, [case], l4).values(), strict=True):
                tiles.put_out(trial, future, l4)
    good, large, impossible = (trial.reason for trial in trials)
    assert good == ""
    assert "bytes of shared memory" in large
    assert impossible and "bytes" not in impossible


@interpreted
def test_out_of_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASSD_KERNELS_CONFIGS", str(tmp_path))
    calls = recorded(cases.conv_act(1, (4,), 4, (3, 5)))
    tiles.tune(calls, INTERPRETER, -1, Console(quiet=True), "", lambda f: 1e-6, processes=0)
    assert "out of time: 1 problems are left to the model" in capsys.readouterr().out


def test_device_named():
    assert device_named("h200").name == "NVIDIA H200"
    assert device_named("nvidia l4").name == "NVIDIA L4"
    with pytest.raises(ValueError, match="gpu is 'NVIDIA'"):
        device_named("NVIDIA")
    assert {d.backend for d in device.KNOWN} == {"cuda", "hip"}
