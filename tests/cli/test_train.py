import csv

import pytest
import yaml
from safetensors.torch import load_file
from training.streets import write_cityscapes

SMALL = (
    "-p", "demo", "-m", "fassd_net_l2", "--batch", "2", "--device", "cpu", "--workers", "0",
    "--precision", "float32", "-s", "crop=[64, 128]", "-s", "warmup=0", "-s", "min_pixels=64",
    "-s", "save_every=1", "-s", "log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"), train=2, val=1).root


def test_trains_and_goes_on(tmp_path, run_fassd, data):
    run = tmp_path / "run"
    result = run_fassd("train", "-d", data, "-o", run, *SMALL, "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert "fassd_net_l2, 2 steps of 2 at 64x128, float32: new run" in result.stderr
    assert "step 2  mIoU" in result.stderr
    assert "mIoU" in result.stdout and "road" in result.stdout
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["steps"], recipe["crop"], recipe["warmup"]) == (2, [64, 128], 0)
    assert recipe["ema"] == 0.99  # the preset's
    weights = load_file(run / "last.safetensors")
    assert weights["finalConv.weight"].shape[0] == 19

    finished = run_fassd("train", "-o", run, "--resume")
    assert finished.exit_code == 0, finished.stderr
    assert "going on after step 2" in finished.stderr
    with (run / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_dry_run_prints_the_settings_and_writes_nothing(tmp_path, run_fassd, data):
    result = run_fassd("train", "-d", data, "-o", tmp_path / "run", "--dry-run", "--lr", "0.5")
    assert result.exit_code == 0, result.stderr
    settings = yaml.safe_load(result.stdout.rsplit("\n", 2)[0])
    assert settings["learning_rate"] == 0.5 and settings["steps"] == 90_000
    assert "19 classes" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", "fast"), "a recipe must be a preset (demo, paper, paper-l1, paper-l2)"),
        (("-s", "stepz=4"), "unknown setting 'stepz'; did you mean 'steps'"),
        (("-s", "steps"), "--set takes NAME=VALUE, got 'steps'"),
        (("-s", "steps=!!timestamp x"), "--set steps: '!!timestamp x' is no YAML value"),
        (("-s", "steps=&a [*a]"), "an alias stands inside of what it names"),
        (("--lr", "-1"), "learning_rate must be above 0, got -1.0"),
        (("-m", "unet"), "unknown model 'unet'"),
        (("--encoder", "vgg"), "encoder must be one of imagenet, random, got 'vgg'"),
        (("--resume",), "there is no checkpoint in it"),
        (("--resume", "--steps", "9"), "--resume takes the settings of the run; leave out steps"),
    ],
)
def test_refusals(tmp_path, run_fassd, data, options, message):
    result = run_fassd("train", "-d", data, "-o", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "[" * 9999, "&a {data: *a, root: null}", "data: [1]\nroot: null",
             "data: a\nroot: 5", "a", "x: 1"],
)  # fmt: skip
def test_a_note_of_the_data_that_makes_no_sense_is_refused(tmp_path, run_fassd, text):
    (tmp_path / "data.yaml").write_text(text)
    result = run_fassd("train", "-o", tmp_path, "--resume")
    assert result.exit_code == 2
    assert "data.yaml is damaged: give --data" in " ".join(result.stderr.split())


def test_data_is_asked_for(tmp_path, run_fassd):
    result = run_fassd("train", "-o", tmp_path / "run", "-p", "demo")
    assert result.exit_code == 2
    assert "--data is needed" in result.stderr


def test_nothing_is_overwritten(tmp_path, run_fassd, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    result = run_fassd("train", "-d", data, "-o", tmp_path / "run", *SMALL, "--steps", 2)
    assert result.exit_code == 2
    assert "is not empty: --resume goes on with the run in it" in " ".join(result.stderr.split())
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"
