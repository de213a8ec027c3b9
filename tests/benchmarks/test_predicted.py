"""The files of predictions."""

from __future__ import annotations

import json

import pytest

from benchmarks import predicted
from benchmarks.targets import load_predictions
from fassd.models import list_models
from fassd_kernels.triton import availability

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)


def test_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predicted, "list_models", lambda: ["fassd_net"])  # all nine take a while
    predicted.main(["--gpu", "H200", "--output", str(tmp_path / "new")])
    assert "cuda-h200.md" in capsys.readouterr().out
    record = json.loads((tmp_path / "new" / "cuda-h200.json").read_text())
    made = [(p["network"], p["batch"]) for p in record["predictions"]]
    assert made == [("fassd_net", 1), ("fassd_net", 8)]
    assert [(g["network"], g["limit"], g["measured"]) for g in record["goals"]] == [
        ("fassd_net", 0.5, None),
        ("fassd_net", 1.3, None),
    ]
    text = (tmp_path / "new" / "cuda-h200.md").read_text()
    first = record["predictions"][0]
    assert "nothing here was measured" in text
    assert (
        f"| {1e3 * first['predicted_s']:.3f} | {1 / first['predicted_s']:.0f} | not known |" in text
    )
    assert text.count("| not known |") == 2 + 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 * 2 + 2 + 2 + len(first["rows"])


def test_all_networks_are_predicted(monkeypatch):
    asked = []
    monkeypatch.setattr(predicted, "predict_network", lambda name, *_, **more: asked.append(name))
    predicted.predictions_for(predicted.find_device("h200"))
    assert asked == [*list_models(), "fassd_net"]


def test_predictions_are_sane():
    """Of the networks with a target, and the larger one takes longer."""
    goals = {(goal["network"], goal["unit"]): goal for goal in load_predictions()}
    assert set(goals) == {("fassd_net", "ms"), ("fassd_net", "x"), ("fassd_net_l2", "ms")}
    assert 0.1 < goals["fassd_net_l2", "ms"]["figure"] < goals["fassd_net", "ms"]["figure"] < 1
    assert 1 < goals["fassd_net", "x"]["figure"] < 8
