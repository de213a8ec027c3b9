"""What `fassd report --measure` measures, at a size that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fassd.bench import stopwatch
from fassd.bench.costs.counts import count_macs
from fassd.bench.report import measure as measured
from fassd.bench.report import modules
from fassd.bench.report.factorisation import SquareDAPF, SquareMDA, run_factorisation
from fassd.bench.report.measure import fewer_threads, measure
from fassd.cli import app
from fassd.models import DAPF

TINY = (64, 128)


def test_macs_are_counted() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert count_macs(conv, (2, 3, 4, 6)) == 2 * 5 * 3 * 9 * 4 * 6


@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_dapfs_branches_are_its_3x3s_factorised(alpha: int) -> None:
    """(1 + 1/alpha) / 3 of the operations: half of them at alpha 2."""
    shape, channels = (1, 48, 4, 8), 48
    whole, square = DAPF(channels, alpha), SquareDAPF(channels, alpha)
    rest = count_macs(whole.conv1x1, shape) + count_macs(
        whole.conv1, (1, 4 * channels // alpha, 4, 8)
    )
    branches = count_macs(whole, shape) - rest
    assert 3 * branches == (1 + 1 / alpha) * (count_macs(square, shape) - rest)


def test_square_mda_keeps_shape_and_residual() -> None:
    module = SquareMDA(10, 2).eval()
    nn.init.zeros_(module.conv1x1.conv.weight)
    x = torch.randn(1, 10, 5, 7)
    assert torch.equal(module(x), x)


def test_factorisation_measures_all_and_ours_agrees() -> None:
    report = run_factorisation(TINY, repeats=1, warmup=0)
    assert report["notes"] == []
    modules = report["modules"]
    names = {(entry["group"], entry["name"], entry["alpha"]) for entry in modules}
    assert {("context", "DAPF", alpha) for alpha in (1, 2, 4, 6, 8)} <= names
    assert ("context", "ASPP", None) in names
    assert all(entry["fused"] for entry in modules if entry["name"] in ("DAPF", "MDA", "ASPP"))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32, got 60x128"):
        run_factorisation((60, 128))


@pytest.mark.parametrize(("count", "expected"), [(1, []), (2, [1]), (8, [4, 2, 1])])
def test_threads_are_halved(count: int, expected: list[int]) -> None:
    assert fewer_threads(count) == expected


def test_what_is_there_is_not_measured_again_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("kept")

    def fail(step: object) -> None:
        raise RuntimeError("no such luck")

    wanted = [("old", "", fail), ("new", "", lambda _: {"answer": 42}), ("bad", "", fail)]
    with pytest.raises(RuntimeError, match="no such luck"):
        list(measure(tmp_path, iter(wanted)))
    assert (tmp_path / "old.json").read_text() == "kept"
    assert json.loads((tmp_path / "new.json").read_text()) == {"answer": 42}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "old.json"]


def test_the_command_measures_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two networks, another batch and a few heights: each more takes the same steps."""
    monkeypatch.setattr(measured, "list_models", lambda: ["fassd_net", "baseline_aspp"])
    monkeypatch.setattr(measured, "BATCHES", (2,))
    monkeypatch.setattr(modules, "HEIGHTS", modules.TABLE_HEIGHTS)
    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    arguments = ["report", "-o", str(tmp_path), "--measure", "--size", "64x128", "--repeats", "1"]
    found = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path / "results")])
    assert found.exit_code == 0, found.output
    networks = json.loads((tmp_path / "results" / "networks.json").read_text())
    assert len(networks["comparisons"]) == 2
    facts = {"device", "torch", "threads", "date", "commit", "instruction_set"}
    assert facts <= set(networks["environment"])
    text = (tmp_path / "report.html").read_text()
    assert "results/scaling.json" in text and "results/modules.json" in text
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--full"], "only with --measure"), (["-r", "absent"], "no such folder: absent")],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], words: str) -> None:
    found = CliRunner().invoke(app, ["report", "-o", str(tmp_path / "out"), *options])
    assert found.exit_code == 2
    assert words in " ".join(found.output.split())
