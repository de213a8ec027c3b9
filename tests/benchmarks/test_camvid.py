"""The table of networks trained and scored on CamVid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation, camvid
from fassd.data import load_card


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three tiny splits in SegNet's layout, all classes and void in each mask."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        pictures, masks = tmp_path / "data" / split, tmp_path / "data" / f"{split}annot"
        pictures.mkdir(parents=True)
        masks.mkdir()
        pixels = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / "a.png")
        mask = (np.arange(64 * 96) % 12).astype(np.uint8).reshape(64, 96)
        Image.fromarray(mask).save(masks / "a.png")
    return tmp_path / "data"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "TRAINING", 2)
    monkeypatch.setattr(ablation, "HELD_OUT", 1)
    monkeypatch.setattr(ablation, "SIZE", "64x128")


def command(tmp_path: Path, root: Path, *more: str) -> dict[str, Any]:
    file = tmp_path / "camvid.json"
    folders = ["--root", str(root), "--work", str(tmp_path / "work"), "-o", str(file)]
    camvid.main([*folders, *more])
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_row_is_trained_and_scored(tmp_path: Path, root: Path, few: None) -> None:
    short = ("--networks", "fassd_net_l2", "--steps", "1")
    (row,) = command(tmp_path, root, *short)["rows"]
    assert [row[name] for name in camvid.TrainingRun._fields] == ["fassd_net_l2", 1, 0, "random"]
    assert row["hours"] >= 0
    names = load_card("camvid", root).class_names
    for split in camvid.SPLITS:
        assert row[split]["pictures"] == 1
        assert [found["name"] for found in row[split]["classes"]] == names
    text = "\n".join(camvid.tables([row]))
    assert f"| `fassd_net_l2` | random | 1 | 0 | 0.0 | {100 * row['val']['miou']:.1f} |" in text
    assert "| FC-DenseNet103 | 66.9 | 480x360 | nothing else |" in text


def test_a_stopped_run_goes_on_and_finished_ones_are_kept(
    tmp_path: Path, root: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def commands(*arguments: str | Path) -> None:
        words = [str(word) for word in arguments]
        if words[0] == "val":
            found = {"miou": 0.5, "pixel_accuracy": 0.75, "mean_accuracy": 0.5, "pictures": 1}
            split = words[words.index("--split") + 1]
            Path(words[-1]).write_text(json.dumps({**found, "classes": [], "split": split}))
            return
        called.append(words)
        folder = Path(words[words.index("-o") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint.safetensors").touch()
        if len(called) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "fassd", commands)
    monkeypatch.setattr(camvid, "prepare", lambda work: work / "streets")
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path, root, "--networks", "baseline")
    assert not (tmp_path / "camvid.json").exists()

    command(tmp_path, root, "--networks", "baseline")
    first, second = called
    assert first[first.index("--steps") :][:2] == ["--steps", "4000"]
    assert second == ["train", "-o", first[first.index("-o") + 1], "--resume"]

    rows = command(tmp_path, root, "--networks", "fassd_net", "baseline", "--seeds", "0", "1")[
        "rows"
    ]
    assert len(called) == 5  # the finished one is not trained again
    assert "-w" not in called[-1]
    command(tmp_path, root, "--networks", "baseline_mda", "--start", "synthetic")
    assert called[-1][called[-1].index("-w") + 1] == "synthetic"
    found = [(row["model"], row["seed"]) for row in rows]
    assert found == [("fassd_net", 0), ("fassd_net", 1), ("baseline", 0), ("baseline", 1)]
