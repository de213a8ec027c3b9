"""The table of microscope pictures, from training to the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ablation, membrane

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [
    {"name": "membrane", "iou": 0.5, "dice": 2 / 3, "pixels": 1},
    {"name": "cell", "iou": 0.75, "dice": 6 / 7, "pixels": 3},
]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were called, without the training and scoring behind them."""
    called: list[list[str]] = []

    def fassd(*arguments: str | Path) -> None:
        words = [str(word) for word in arguments]
        called.append(words)
        if words[0] == "train":
            Path(words[words.index("-o") + 1]).mkdir(parents=True, exist_ok=True)
            return
        assert Path(words[words.index("-w") + 1]).parent.is_dir()
        found = {"miou": 0.625, "pixel_accuracy": 0.8, "mean_accuracy": 0.7, "pictures": 10}
        file = Path(words[words.index("--json") + 1])
        file.write_text(json.dumps({**found, "classes": CLASSES, "confusion": []}))

    monkeypatch.setattr(ablation, "fassd", fassd)
    return called


def test_each_seed_is_trained_once_and_scored_once(
    tmp_path: Path, commands: list[list[str]]
) -> None:
    file = tmp_path / "membrane.json"
    places = ["--root", "data", "--work", str(tmp_path / "work"), "-o", str(file)]
    assert membrane.main([*places, "--seeds", "0"]) == 0
    assert membrane.main([*places, "--seeds", "0", "3"]) == 0
    assert [words[0] for words in commands] == ["train", "val", "train", "val"]
    first, score, second, _ = commands
    assert first[first.index("--seed") + 1] == "0" and second[second.index("--seed") + 1] == "3"
    assert score[score.index("--split") + 1] == "test"
    content = json.loads(file.read_text())
    assert [row["seed"] for row in content["rows"]] == [0, 3]
    assert content["rows"][0]["test"]["classes"] == CLASSES
    assert "confusion" not in content["rows"][0]["test"]
    table = "\n".join(membrane.tables(content))
    assert "| `fassd_net` | 3 | 0 | 50.0 | 66.7 | 75.0 | 85.7 | 62.5 | 80.0 |" in table
    assert "| U-Net | warping error 0.000353, Rand error 0.0382" in table


def test_a_training_that_was_cut_off_goes_on_from_its_checkpoint_or_begins_again(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, partial = tmp_path / "0", tmp_path / "0.partial"
    partial.mkdir()
    (partial / "recipe.yaml").touch()
    with monkeypatch.context() as patched:
        patched.setattr(ablation, "fassd", lambda *_: (partial.mkdir(), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            ablation.trained(run, "-p", "membrane")
    assert not (partial / "recipe.yaml").exists()  # of the run that had saved nothing
    spent = {"cpu_seconds": 60.0, "seconds": 100.0}
    (tmp_path / "0.spent.json").write_text(json.dumps(spent))
    (partial / "checkpoint.safetensors").touch()
    weights, total = ablation.trained(run, "-p", "membrane", threads=1)
    assert weights == run / "last.safetensors" and run.is_dir()
    assert commands == [["train", "-o", str(partial), "--resume", "--threads", "1"]]
    assert total["cpu_seconds"] == pytest.approx(60, abs=5) and 100 < total["seconds"] < 105
    assert json.loads((tmp_path / "0.spent.json").read_text()) == total
    assert ablation.trained(run, "-p", "membrane") == (weights, total) and len(commands) == 1


CHILD = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
PARENT = "import sys; from benchmarks.ablation import to_its_end; to_its_end(sys.argv[1:])"


def test_ctrl_c_waits_until_a_training_has_saved(tmp_path: Path) -> None:
    child = [sys.executable, "-c", CHILD, str(tmp_path)]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *child], cwd=ROOT,
                              stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    while not (tmp_path / "ready").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    _, errors = parent.communicate(timeout=60)
    assert (tmp_path / "saved").exists() and b"KeyboardInterrupt" in errors
