import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.conftest import FAST, calibrated
from PIL import Image
from safetensors.torch import save_file
from training.fakes import write_card, write_streets

import fassd
from fassd.data import SegmentationDataset, load_card
from fassd.io.images import write_image
from fassd.io.palette import CITYSCAPES
from fassd.models import NetworkInfo, create_model
from fassd.models.info import read_info
from fassd.training import evaluate as evaluated


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A data set of four generated scenes, and a network that tells a few classes apart."""
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, 4)
    model = calibrated("fassd_net_l2")
    save_file(model.state_dict(), folder / "w.safetensors")
    return folder, model


def expected(streets, dtype=torch.float32, **settings):
    folder, model = streets
    model = copy.deepcopy(model).to(dtype)
    return evaluated(model, SegmentationDataset(load_card(folder), "val"), **settings)


def test_int8(streets, succeed, refusal, tmp_path):
    """Calibrated on the training split, or on given pictures, which must exist and be wanted."""
    folder, _ = streets
    network = ("val", "--data", folder, "-w", folder / "w.safetensors", "-m", "fassd_net_l2")
    scene, figures = folder / "val/scene0.png", tmp_path / "figures.json"
    succeed(*network, "--dtype", "int8", "--calibration", scene, "--limit", "1", "--json", figures)
    written = json.loads(figures.read_text())
    assert written["settings"]["dtype"] == "int8" and written["miou"] > 0
    assert "works only with --dtype int8" in refusal(*network, "--calibration", scene)
    assert "has no split 'train'" in refusal(*network, "--dtype", "int8")


def test_figures_and_files(streets, tmp_path, succeed):
    folder, _ = streets
    weights = folder / "w.safetensors"
    result = succeed(
        "val", "--data", folder, "-w", weights, *FAST, "-o", tmp_path / "out",
        "--json", tmp_path / "figures.json",
    )  # fmt: skip
    evaluation = expected(streets)
    scores = evaluation.scores
    assert f"mIoU {100 * scores.miou:.2f}%, pixel" in result.stdout
    lines = result.stdout.splitlines()
    assert lines[1].split()[:2] == ["road", f"{100 * scores.iou[0]:.2f}"]
    assert any(line.startswith("traffic light ") for line in lines)
    assert "4 pictures in" in result.stdout and "random weights" not in result.stderr

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tmp_path / "out/scores.json").read_text())
    assert figures["miou"] == scores.miou
    assert figures["confusion"] == evaluation.matrix.tolist()
    settings = figures["settings"]
    assert (settings["data"], settings["split"]) == ("streets", "val")
    assert (settings["model"], settings["weights"]) == ("fassd_net_l2", str(weights))
    assert figures["environment"]["device_type"] == "cpu"

    with (tmp_path / "out/confusion.csv").open() as file:
        header, *rows = csv.reader(file)
    names = [info.name for info in CITYSCAPES]
    assert header[1:] == names and [row[0] for row in rows] == names
    assert [[int(cell) for cell in row[1:]] for row in rows] == evaluation.matrix.tolist()
    with Image.open(tmp_path / "out/confusion.png") as image:
        assert min(image.size) > 800
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "reliability.png",
        "scores.json",
    ]


def test_views_limit_and_precision_reach_the_evaluation(streets, tmp_path, succeed):
    folder, _ = streets
    path = tmp_path / "figures.json"
    succeed(
        "val", "--data", folder, "-w", folder / "w.safetensors", *FAST, "--json", path,
        "--flip", "--scales", "1,1.5", "--limit", 2, "--dtype", "bfloat16", "--threads", 1,
        "--without", "sky", "--without", "traffic light",
    )  # fmt: skip
    evaluation = expected(
        streets, flip=True, scales=(1, 1.5), indices=range(2), dtype=torch.bfloat16,
        without=("sky", "traffic light"),
    )  # fmt: skip
    figures = json.loads(path.read_text())
    assert figures["miou"] == evaluation.scores.miou
    assert figures["settings"]["without"] == ["sky", "traffic light"]
    assert figures["confusion"] == evaluation.matrix.tolist()
    assert figures["pictures"] == 2
    assert figures["settings"]["scales"] == [1.0, 1.5] and figures["settings"]["flip"] is True


def test_a_broken_picture_is_told_and_the_exit_code_is_1(streets, tmp_path, run_fassd):
    folder = _copied(streets, tmp_path)
    picture = folder / "val/scene1.png"
    picture.write_bytes(picture.read_bytes()[:200])
    result = run_fassd("val", "--data", folder, *FAST)
    assert result.exit_code == 1
    assert f"skipped: {picture}: is damaged or truncated" in result.stderr
    assert "3 pictures in" in result.stdout and "1 skipped" in result.stdout
    assert "streets weights, trained on CamVid's photographs" in result.stderr


def test_without_matplotlib_only_the_heat_map_is_missing(streets, tmp_path, succeed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = succeed("val", "--data", streets[0], *FAST, "--limit", 1, "-o", tmp_path)
    assert "reliability.png: the heat map needs matplotlib: pip install 'fassd-net[train]'" in (
        result.stderr
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.csv", "scores.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--scales", "1,x"),
            "'--scales': 'x' is not a number; separate numbers by commas, like 1,2,4",
        ),
        (("--scales", "0"), "scales must be one or more positive numbers"),
        (("--without", "moon"), "without: the data has no class 'moon'; it has 'road', "),
        (("--split", "test"), "card.yaml) has no split 'test'; it has val"),
        (("--json", "."), "cannot write to .: it is a folder"),
        (("--output", "/proc/x"), "cannot write to /proc/x"),
        (("--weights", "missing.pth"), "no weights file 'missing.pth'"),
        (("--backend", "quick"), "quick"),
    ],
)
def test_mistakes_end_it_before_any_picture_is_read(
    streets, refusal, monkeypatch, arguments, message
):
    monkeypatch.setattr(SegmentationDataset, "__getitem__", lambda *_: pytest.fail("read"))
    assert message in refusal("val", "--data", streets[0], *FAST, *arguments)


def test_weights_of_another_number_of_classes_are_refused(streets, tmp_path, refusal):
    write_card(tmp_path, CITYSCAPES[:3])
    for name in ("x.png", "labels/x.png"):
        write_image(tmp_path / "val" / name, np.zeros((64, 64), np.uint8))
    error = refusal("val", "--data", tmp_path, "-w", streets[0] / "w.safetensors", *FAST)
    assert "finalConv" in error and "19" in error and "3" in error


COARSE = """
name: coarse
classes: [{name: ground, covers: [road, sidewalk, terrain]}, {name: rest, covers: [building, wall,
  fence, pole, traffic light, traffic sign, vegetation, sky, person, rider, car, truck, bus, train,
  motorcycle, bicycle]}]
splits: {val: val}
images: "{split}/{name}.png"
masks: {files: "{split}/coarse/{name}.png", values: index, ignore: [255]}
"""


@pytest.fixture(scope="module")
def coarse(streets, tmp_path_factory):
    """The same scenes, of whose classes the masks tell two groups."""
    folder = shutil.copytree(streets[0], tmp_path_factory.mktemp("coarse") / "data")
    (folder / "card.yaml").write_text(COARSE)
    table = np.ones(256, np.uint8)
    table[[0, 1, 9, 255]] = 0, 0, 0, 255
    for path in (folder / "val/labels").iterdir():
        write_image(folder / "val/coarse" / path.name, table[np.array(Image.open(path))])
    return folder


def test_a_network_of_a_finer_list_is_scored_by_groups(coarse, tmp_path, succeed):
    """Without weights it is the shipped network, of Cityscapes' classes."""
    paths = [tmp_path / f"{name}.json" for name in ("default", "named", "file")]
    bare = tmp_path / "bare.pth"  # tells no classes
    torch.save({"net": create_model("fassd_net_l2", weights="streets").state_dict()}, bare)
    for path, more in zip(paths, [(), ("-w", "streets"), ("-w", bare)], strict=True):
        result = succeed("val", "--data", coarse, *FAST, *more, "--json", path)
    assert "ground" in result.stdout
    figures = [json.loads(path.read_text()) for path in paths]
    dataset = SegmentationDataset(load_card(coarse), "val")
    evaluation = evaluated(create_model("fassd_net_l2", weights="streets"), dataset)
    for found in figures:
        assert found["confusion"] == evaluation.matrix.tolist()
        assert [info["name"] for info in found["classes"]] == ["ground", "rest"]
        assert found["miou"] > 0.8


def test_classes_that_do_not_fit_name_the_file_of_weights(streets, coarse, tmp_path, refusal):
    model = create_model("fassd_net_l2", 2)
    network = NetworkInfo.of("fassd_net_l2", 2, [("ground", (1, 2, 3)), ("rest", (4, 5, 6))])
    weights = tmp_path / "coarse.safetensors"
    facts = {"fassd": json.dumps({"network": network.to_json()})}
    save_file(model.state_dict(), weights, facts)
    error = refusal("val", "--data", streets[0], "-w", weights)
    assert f"{weights}: the network has 2 classes, but the data's labels have 19" in error
    text = (coarse / "card.yaml").read_text().replace("sidewalk", "pavement")
    (tmp_path / "card.yaml").write_text(text)
    error = refusal("val", "--data", tmp_path / "card.yaml", "--root", coarse, "-m", "baseline")
    assert "its class 'ground' covers 'pavement', which is none of the 19 classes of" in error


def test_torchrun_gives_the_same_counts_and_prints_once(streets, tmp_path):
    folder = _copied(streets, tmp_path)
    (folder / "val/scene2.png").write_bytes(b"")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "fassd", "val", "--data", folder, "-w", folder / "w.safetensors", *FAST,
        "--json", tmp_path / "figures.json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=180
    )
    evaluation = expected(streets, indices=[0, 1, 3])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["confusion"] == evaluation.matrix.tolist()
    assert done.stdout.count("mIoU") == 1
    assert done.stderr.count("scene2.png: is empty") == 1
    assert done.returncode == 1  # a picture was skipped


def _copied(streets, tmp_path):
    """A copy of the data set to be damaged."""
    return shutil.copytree(streets[0], tmp_path / "copy")


def test_a_temperature_is_fitted_and_kept(tmp_path, succeed, run_fassd):
    """On scenes whose labels the network knows too well, or too little, to say so."""
    write_streets(tmp_path / "data", 3)
    own = Path(fassd.__file__).parent / "weights" / "fassd_net_l2-synthetic.safetensors"
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(own.read_bytes())
    data = ("val", "--data", tmp_path / "data", "-w", weights, *FAST)

    def error(*options):
        out = tmp_path / "out"
        result = succeed(*data, *options, "-o", out)
        figures = json.loads((out / "scores.json").read_text())["calibration"]
        told = 100 * figures["expected_calibration_error"]
        assert f"expected calibration error {told:.2f}%" in result.stdout
        with Image.open(out / "reliability.png") as picture:
            assert min(picture.size) > 300
        return figures

    before = error()
    assert before["temperature"] == 1 and "fitted_temperature" not in before
    fitted = error("--temperature", "fit")["fitted_temperature"]
    assert read_info(weights).temperature == fitted != 1
    after = error()
    assert after["temperature"] == fitted
    assert error("--temperature", "fit")["fitted_temperature"] == pytest.approx(fitted)
    assert error("--temperature", "1") == before

    result = run_fassd(*data, "--temperature", "warm")
    assert result.exit_code == 2
    assert "must be a finite number above 0, or fit, got 'warm'" in result.stderr
    result = run_fassd(*data, "--temperature", "-1")
    assert "must be a finite number above 0, or fit, got '-1'" in result.stderr
    result = run_fassd(*data[:3], "-w", "streets", *FAST, "--temperature", "fit")
    assert "--temperature fit writes into the file of the weights" in result.stderr
    result = run_fassd(*data, "--temperature", "fit", "--flip")
    assert "a temperature is fitted to one view" in result.stderr
