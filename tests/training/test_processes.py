"""Training by two processes, and by one that is killed."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from training.streets import (
    MOMENTS,
    double_precision,
    feed_doubles,
    resume,
    rows,
    same_run,
    small_recipe,
)

from fassd.data import SegmentationDataset
from fassd.models import create_model, load_checkpoint
from fassd.training import evaluate
from fassd.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = Path(__file__).with_name("run_trainer.py")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"
}  # fmt: skip

SHORT = {"batch": 4, "steps": 2, "accelerate": False}
SGD = {**SHORT, "optimizer": "sgd", "learning_rate": 0.02}
OF_EACH = {**SGD, "val_every": 0, "ema": None, "auxiliary": 0.4, "dice": 0.5}
RECIPES = {
    "sync": {**SGD, "sync_bn": True, "val_every": 2, "accumulate": 2},
    "scored": {**SHORT, "val_every": 2, "ema": 0.9},
    "of each": OF_EACH,
    "frozen": {**OF_EACH, "freeze": 1, "encoder_rate": 0.5, "balance": 0.5},
    "impatient": {**SGD, "steps": 8, "val_every": 1, "learning_rate": 1e-9, "patience": 1},
}


def test_a_killed_run_resumes_as_if_nothing_had_happened(whole, card, tmp_path):
    """kill -9 in the middle of step 5, after the checkpoint of step 4."""
    command = [sys.executable, str(RUN), str(card.root), str(tmp_path), "kill", "5"]
    killed = subprocess.run(command, env=ENVIRONMENT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "log.csv")) == 4 and (tmp_path / "val.csv").stat().st_size > 0
    assert resume(card, tmp_path).first == 4
    same_run(whole[0], tmp_path)


@pytest.fixture(scope="module")
def two(card, tmp_path_factory):
    """Where two processes left their runs: of `RECIPES`, and those of run_trainer.py in trouble."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(RUN), str(card.root), str(folder), "all", json.dumps(RECIPES),
    ]  # fmt: skip
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def run_one(card, folder, **settings):
    with double_precision():
        feed_doubles(Trainer(small_recipe(**settings), card, folder)).run()


def compare_runs(one, two, names=()):
    """To what a few steps make of float64's rounding; a wrong gradient differs by per cents."""
    losses = [[float(row["loss"]) for row in rows(folder / "log.csv")] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    # Of the checkpoint, so weights, averages and momenta.
    name = "checkpoint.safetensors"
    first, second = load_file(one / name), load_file(two / name)
    assert first.keys() == second.keys()
    compared = [key for key in first if not any(name in key for name in names)]
    assert len(compared) > len(first) / 2
    for key in compared:
        error = (first[key].double() - second[key].double()).norm()
        assert error <= 1e-5 * first[key].double().norm() + 1e-7, key


def test_trouble_in_one_of_two_processes_is_that_of_both(two):
    """A stop at any moment, which is saved before any leaves; NaN in a validation."""
    saved = {path.parent.name for path in two.glob("*/checkpoint.safetensors")}
    assert saved - set(RECIPES) == {*MOMENTS, "nan"}


def test_two_processes_equal_one_with_the_same_global_batch(two, card, tmp_path):
    """With batch norm over both processes: losses, weights, statistics and scores."""
    run_one(card, tmp_path, **RECIPES["sync"])
    compare_runs(tmp_path, two / "sync")
    assert (tmp_path / "val.csv").read_bytes() == (two / "sync/val.csv").read_bytes()


def test_what_two_processes_score_is_what_they_save(two, card):
    """Without synchronised batch norm each has statistics of its own; those of one are kept."""
    model = create_model("fassd_net_l2").double()
    load_checkpoint(model, two / "scored" / "last.safetensors")
    scores = evaluate(model, SegmentationDataset(card, "val")).scores
    (row,) = rows(two / "scored" / "val.csv")
    assert float(row["miou"]) == pytest.approx(scores.miou, rel=1e-8)


@pytest.mark.parametrize("name", ["of each", "frozen"])
def test_without_sync_two_processes_equal_two_micro_batches(two, card, tmp_path, name):
    """Batch norm of each process sees its own half, as that of each micro-batch does."""
    run_one(card, tmp_path, **RECIPES[name], accumulate=2)
    # Running statistics are those of one process here and of all micro-batches there.
    compare_runs(tmp_path, two / name, names=("running", "tracked"))


def test_two_processes_end_early_together(two):
    scores = [float(row["miou"]) for row in rows(two / "impatient" / "val.csv")]
    assert 2 <= len(scores) < 8 and scores[-1] <= max(scores[:-1])
    assert all(after > before for before, after in itertools.pairwise(scores[:-1]))
