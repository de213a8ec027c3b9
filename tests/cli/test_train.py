import csv
import re

import numpy as np
import pytest
import yaml
from data.trees import SIZE, save, toy
from PIL import Image
from safetensors.torch import load_file
from training.streets import write_cityscapes, write_coarse

SMALL = (
    "-p", "demo", "-m", "fassd_net_l2", "--batch", "2", "--device", "cpu", "--workers", "0",
    "--precision", "float32", "-s", "crop=[64, 128]", "-s", "warmup=0", "-s", "min_pixels=64",
    "-s", "save_every=1", "-s", "log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"), train=2, val=1).root


def test_trains_and_goes_on(tmp_path, succeed, data):
    run = tmp_path / "run"
    result = succeed("train", "-d", data, "-o", run, *SMALL, "--steps", 2, "--threads", 1)
    assert result.stderr.endswith(f"weights: {run}/best.safetensors, last.safetensors\n")
    assert "fassd_net_l2, 2 steps of 2 at 64x128, float32: new run" in result.stderr
    assert "step 2  mIoU" in result.stderr
    assert "mIoU" in result.stdout and "road" in result.stdout
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["steps"], recipe["crop"], recipe["warmup"]) == (2, [64, 128], 0)
    assert (recipe["ema"], recipe["threads"]) == (0.99, 1)  # the preset's, and what was given
    weights = load_file(run / "last.safetensors")
    assert weights["finalConv.weight"].shape[0] == 19

    finished = succeed("train", "-o", run, "--resume")
    assert "going on after step 2" in finished.stderr
    with (run / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2

    further = succeed("train", "-o", run, "--resume", "--steps", 3, "--lr", "1e-4")
    for change in ("steps 3 instead of 2", "learning_rate 0.0001 instead of 0.002"):
        assert f"after step 2: {change}" in further.stderr
    assert "CPU threads" not in further.stderr
    with (run / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_goes_on_with_the_data_that_were_meant(tmp_path, succeed, refusal, data, monkeypatch):
    """A shipped card by name, not the folder called like it that happened to be here."""
    (tmp_path / "here" / "cityscapes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "data").symlink_to(data)
    more = (*SMALL, "--steps", 1, "-s", "val_every=0", "-s", "val_pictures=1")
    succeed("train", "-d", "cityscapes", "--root", "../data", "-o", "../run", *more)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "run" / "data.yaml").read_text()
    assert "Paths are absolute" in text
    assert yaml.safe_load(text)["data"] == "cityscapes"
    (tmp_path / "here" / "cityscapes").rmdir()
    succeed("train", "-o", "run", "--resume")

    (tmp_path / "data").unlink()
    lost = refusal("train", "-o", "run", "--resume")
    assert "as run/data.yaml has it: if it was moved, give --data" in lost
    succeed("train", "-o", "run", "--resume", "--root", data)


def test_several_data_sets(tmp_path, succeed, refusal, data):
    write_coarse(tmp_path / "coarse", train=2, val=1)
    run, both = tmp_path / "run", ("-d", data, "-d", tmp_path / "coarse")
    result = succeed("train", *both, "-o", run, *SMALL, "--steps", 1, "-s", "shares=[1, 1]")
    assert "cityscapes, val:" in result.stdout and "coarse, val:" in result.stdout
    assert re.search(r"step 1  mIoU [\d.]+%, [\d.]+%  pixel accuracy [\d.]+%, ", result.stderr)
    notes = yaml.safe_load((run / "data.yaml").read_text())
    assert [note["root"] for note in notes] == [str(data), str(tmp_path / "coarse")]
    assert (run / "val.2.csv").is_file()
    succeed("train", "-o", run, "--resume", "--steps", 2)

    (tmp_path / "coarse").rename(tmp_path / "moved")
    assert "as" in refusal("train", "-o", run, "--resume")
    error = refusal("train", "-o", run, "--resume", "--root", tmp_path / "moved")
    assert "data.yaml names 2 data sets: give --root once for each" in error
    roots = ("--root", data, "--root", tmp_path / "moved")
    error = refusal("train", "-o", run, "--resume", *roots)  # the card itself has moved, too
    assert f"there is no card '{tmp_path / 'coarse' / 'card.yaml'}'" in error
    succeed("train", "-o", run, "--resume", "-d", data, "-d", tmp_path / "moved", "--steps", 3)


def test_roots_belong_to_the_shipped_cards_in_order(tmp_path, succeed, refusal, data):
    """A folder needs none; a name does."""
    data_options = ("-d", tmp_path / "coarse", "-d", "cityscapes", "-o", tmp_path / "run")
    write_coarse(tmp_path / "coarse", train=1, val=1)
    result = succeed("train", *data_options, "--root", data, "--dry-run")
    assert f"coarse: 4 classes, {tmp_path / 'coarse'}" in result.stdout.replace("\n", "")
    assert f"cityscapes: 19 classes, {data}" in result.stdout.replace("\n", "")
    assert "needs the folder" in refusal("train", *data_options, "--dry-run")
    error = refusal("train", *data_options, *3 * ("--root", data), "--dry-run")
    assert (
        "once for each --data (2), or for each of them that is a shipped card's name (1), got 3"
        in (error)
    )


def test_names_only_weights_that_are_there(tmp_path, succeed):
    """Without a score there are no best ones."""
    root = write_cityscapes(tmp_path / "data", train=2, val=1).root
    for mask in root.glob("gtFine/val/*/*"):
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)
    run = tmp_path / "run"
    result = succeed("train", "-d", root, "-o", run, *SMALL, "--steps", 1)
    assert "no score: " in result.stderr
    assert "1 of the run's validations failed" in result.stderr
    assert result.stderr.endswith(f"weights: {run}/last.safetensors\n")


def test_a_dry_run_prints_the_settings_and_writes_nothing(tmp_path, succeed, data):
    result = succeed("train", "-d", data, "-o", tmp_path / "run", "--dry-run", "--lr", "0.5")
    settings = yaml.safe_load(result.stdout.rsplit("\n", 2)[0])
    assert settings["learning_rate"] == 0.5 and settings["steps"] == 90_000
    assert "19 classes" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", "fast"), "a recipe must be a preset (demo, membrane, paper, paper-l1,"),
        (("-s", "stepz=4"), "unknown setting 'stepz'; did you mean 'steps'"),
        (("-s", "steps"), "--set takes NAME=VALUE, got 'steps'"),
        (("-s", "steps=!!timestamp x"), "--set steps: '!!timestamp x' is not a YAML value"),
        (("-s", "steps=&a [*a]"), "aliases such as *a are not read"),
        (("--lr", "-1"), "learning_rate must be greater than 0, got -1.0"),
        (("-m", "unet"), "unknown model 'unet'"),
        (("--encoder", "vgg"), "encoder must be 'imagenet' or 'random', got 'vgg'"),
        (("--resume",), "there is no checkpoint in it"),
        (("--resume", "--batch", "9"), "--resume keeps the settings of the run: leave out batch"),
        (("--resume", "--steps", "9"), "there is no checkpoint in it"),
        (("-s", "class_weights=1"), "unknown setting 'class_weights'; known are model"),
    ],
)
def test_refusals(tmp_path, refusal, data, options, message):
    assert message in refusal("train", "-d", data, "-o", tmp_path / "run", *options)


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "[" * 9999, "&a {data: *a, root: null}", "data: [1]\nroot: null",
             "data: a\nroot: 5", "a", "x: 1", "[]", "[{data: a}]", "[5]"],
)  # fmt: skip
def test_a_note_of_the_data_that_makes_no_sense_is_refused(tmp_path, refusal, text):
    (tmp_path / "data.yaml").write_text(text)
    assert "data.yaml is damaged: give --data" in refusal("train", "-o", tmp_path, "--resume")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused_before_anything_is_written(tmp_path, refusal, split):
    toy(tmp_path / "data")
    for picture in (tmp_path / "data" / split).iterdir():
        picture.unlink()
    error = refusal("train", "-d", tmp_path / "data", "-o", tmp_path / "run", *SMALL)
    assert f"data/card.yaml): split '{split}' has no pictures" in error
    assert not (tmp_path / "run").exists()


def test_masks_of_another_card_are_named_and_leave_no_run_behind(tmp_path, succeed, refusal):
    card, masks = toy(tmp_path / "data"), tmp_path / "data/train_masks"
    masks.rename(tmp_path / "right")
    for path in (tmp_path / "right").iterdir():
        save(masks / path.name, np.full(SIZE, 77, np.uint8))
    short = ("-d", card.path, "-o", tmp_path / "run", *SMALL, "--steps", 1)
    error = refusal("train", *short)
    assert "none of 2 pictures in a row could be read" in error
    assert re.search(r"train_masks/train_\d.png: id 77 outside the card, in 48 pixels", error)

    for path in masks.iterdir():
        path.write_bytes((tmp_path / "right" / path.name).read_bytes())
    assert "new run" in succeed("train", *short).stderr


def test_data_is_asked_for(tmp_path, refusal):
    run = tmp_path / "run"
    assert "--data is needed" in refusal("train", "-o", run, "-p", "demo")
    assert f"continues the run in {run}, but there is no" in refusal("train", "-o", run, "--resume")


def test_nothing_is_overwritten(tmp_path, refusal, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    error = refusal("train", "-d", data, "-o", tmp_path / "run", *SMALL, "--steps", 2)
    assert "is not empty: --resume continues the run in it" in error
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"
