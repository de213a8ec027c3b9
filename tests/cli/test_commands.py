"""`fassd bench run`, `demo`, `info`, and the program around the commands."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import fassd
from fassd.bench import run as bench
from fassd.cli import Size, parse_size
from fassd.synth import render_street

SMALL = ("--model", "fassd_net_l2", "--size", "64x96", "--repeats", 2, "--device", "cpu")


def test_bench_prints_a_table_of_80_columns_and_writes_json(tmp_path, succeed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed(
        "bench", "run", *SMALL, "--batch", 2, "--no-memory", "--json", tmp_path / "b.json",
        "--weights", "random",
    )  # fmt: skip
    assert max(map(len, result.stdout.splitlines())) <= 80 and "…" not in result.stdout
    for words in ("PyTorch float32", "fassd_kernels float32", "2 x 64x96", "speed-up", "thread"):
        assert words in result.stdout
    assert "labels are meaningless" in " ".join(result.stdout.split())
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["job"]["batch"] == 2
    assert [row["n"] for row in record["results"]] == [2, 2]
    assert record["results"][1]["labels_equal_percent"] > 99
    assert record["environment"]["torch"]


def test_bench_measures_memory(succeed):
    result = succeed("bench", "run", *SMALL, "--backend", "reference")
    assert "MiB" in result.stdout or "memory not measured" in result.stdout


def test_demo_writes_scene_labels_and_overlay(tmp_path, succeed):
    arguments = ("--model", "fassd_net_l2", "--size", "96x160", "--repeats", 1, "--seed", 3)
    result = succeed("demo", "-o", tmp_path / "demo", *arguments)
    assert "streets weights: trained on photographs and generated streets" in result.stdout
    pictures = {}
    for name in ("scene", "labels", "overlay"):
        with Image.open(tmp_path / f"demo/{name}.png") as image:
            pictures[name] = np.asarray(image)
        assert pictures[name].shape == (96, 160, 3)
    np.testing.assert_array_equal(pictures["scene"], render_street(96, 160, 3, split="val")[0])
    assert len(np.unique(pictures["labels"].reshape(-1, 3), axis=0)) >= 4


def test_demo_fails_where_labels_disagree(tmp_path, run_fassd, monkeypatch):
    monkeypatch.setattr(bench.RunReport, "labels_agree", 99.8)
    arguments = ("--model", "fassd_net_l2", "--size", "96x160", "--repeats", 1)
    result = run_fassd("demo", "-o", tmp_path, *arguments)
    assert result.exit_code == 1
    assert "99.800% of the labels agree" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "place", "reason"),
    [
        (("bench", "run", "--json"), "file/sub/x", "file: not a folder"),
        (("demo", "-o"), "file/sub/x", "file: not a folder"),
        (("bench", "run", "--json"), ".", ": it is a folder"),
    ],
)
def test_where_to_write_is_checked_before_measuring(
    tmp_path, refusal, monkeypatch, arguments, place, reason
):
    monkeypatch.setattr(bench, "run", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    error = refusal(*arguments, tmp_path / place)
    assert "cannot write to" in error and str(tmp_path) in error and reason in error


def test_demo_reports_even_where_pictures_cannot_be_written(tmp_path, run_fassd):
    (tmp_path / "scene.png").mkdir()
    result = run_fassd("demo", "-o", tmp_path, *SMALL)
    assert result.exit_code == 2 and "PyTorch float32" in result.stdout


def test_info_lists_every_network(succeed):
    result = succeed("info")
    for name in fassd.list_models():
        assert name in result.stdout
    assert "78.2" in result.stdout and "authors" in result.stdout
    for figure in ("78.8", "77.5", "69.3", "74.1", "133.1", "Jetson", "77.7", "75.9", "79.0"):
        assert figure in result.stdout


def test_info_of_one_network(succeed, refusal):
    result = succeed("info", "fassd_net_l2", "--input", "256x512", "--classes", 11)
    assert "DAPF" in result.stdout and "fassd_net_l2 at 256x512" in result.stdout
    wrong = refusal("info", "FASSD_NET_L2")
    assert "unknown model 'FASSD_NET_L2'" in wrong
    assert "did you mean 'fassd_net_l2'?" in wrong


def test_help_is_quick_and_needs_no_torch():
    program = (
        "import sys\nfrom fassd.cli import main\nsys.argv = ['fassd', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "fassd predict" in result.stdout
    assert time.perf_counter() - start < 5  # 0.3 s alone; tests share their machine


@pytest.mark.parametrize(
    ("command", "set_by_user", "expected"),
    [
        ("predict no.png -o out", None, "PASSIVE"),
        ("val -d no", None, "PASSIVE"),
        ("train -d no -o out", None, "PASSIVE"),
        ("serve -m no", None, "PASSIVE"),
        ("val -d no", "ACTIVE", "ACTIVE"),
        ("bench peers --layers", None, None),  # it times what a user's own program does
    ],
)
def test_threads_sleep_while_they_wait(
    run_fassd, monkeypatch, tmp_path, command, set_by_user, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", set_by_user or "")
    if set_by_user is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert run_fassd(*command.split()).exit_code == 2
    assert os.environ.get("OMP_WAIT_POLICY") == expected


COMMANDS = [
    "predict",
    "demo",
    "info",
    "train",
    "val",
    "compare",
    "synth",
    "export",
    "serve",
    "report",
]
COMMANDS += [f"bench {name}" for name in ("run", "peers", "layers", "launches", "compare")]


@pytest.mark.parametrize("command", [*COMMANDS, "bench", "data new", "data check"])
def test_help_teaches_by_example(succeed, monkeypatch, command):
    """At 80 columns nothing is cut, and an example is one line, to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed(*command.split(), "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    first = lines.index(next(line for line in lines if line.strip() == "Examples")) + 1
    last = next(place for place, line in enumerate(lines) if line.startswith("╭"))
    examples = list(filter(str.strip, lines[first:last]))
    assert any(line.startswith(f" fassd {command} ") for line in examples)
    starts = (" fassd ", " torchrun ", " curl ")
    assert [line for line in examples if not line.startswith(starts)] == []


@pytest.mark.parametrize("command", ["bench run", "bench layers", "demo", "info"])
def test_help_writes_sizes_as_they_are_given(run_fassd, command):
    assert "[default: (1024x2048)]" in run_fassd(*command.split(), "--help").stdout


def test_version_and_python_dash_m():
    result = subprocess.run(
        [sys.executable, "-m", "fassd", "--version"], capture_output=True, text=True
    )
    assert result.stdout == f"fassd {fassd.__version__}\n"


@pytest.mark.parametrize("text", ["1024x2048", " 1024 X 2048 "])
def test_sizes(text):
    assert parse_size(text) == Size(1024, 2048)
    assert str(parse_size(text)) == "1024x2048"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["demo", "-o"], "out.png"),
        (["report", "-o"], "report.html"),
        (["synth"], "streets.zip"),
        (["val", "--data", "camvid", "--root", ".", "-o"], "confusion.csv"),
        (["train", "-d", "camvid", "--root", ".", "-p", "demo", "-o"], "best.safetensors"),
        (["predict", "a.png", "b.png", "-o"], "out.json"),
    ],
)
def test_a_folder_is_not_made_where_a_file_is_named(tmp_path, refusal, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    for picture in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(picture)
    error = refusal(*command, name)
    assert name in error and "folder" in error
    assert sorted(os.listdir()) == ["a.png", "b.png"]
