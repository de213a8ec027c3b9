"""Expected calibration error, the temperature that fits, and where it is kept."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fassd
from fassd.evaluation.calibration import BINS, Calibration, keep_temperature
from fassd.io.palette import IGNORE
from fassd.models.info import read_info
from fassd.models.tensor_files import read_safetensors


@pytest.fixture(scope="module")
def trained_file():
    return Path(fassd.__file__).parent / "weights" / "fassd_net_l2-streets.safetensors"


def of_logits(logits):
    return lambda temperature: (logits / temperature).softmax(0)


def drawn(temperature, pixels=40000, classes=5, seed=1):
    """Logits, and labels drawn with the probabilities that they have at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(classes, pixels // 100, 100, generator=generator)
    chances = (logits / temperature).softmax(0).flatten(1).T
    labels = torch.multinomial(chances, 1, generator=generator)
    return logits, labels.view(pixels // 100, 100)


def test_by_hand():
    """Of twenty pixels, ten are said to be right with 0.9 and ten with 0.6; six of each are."""
    probabilities = torch.tensor([[0.9] * 10 + [0.6] * 10, [0.1] * 10 + [0.4] * 10])[:, None]
    labels = torch.tensor([[0] * 6 + [1] * 4 + [0] * 6 + [1] * 4])
    calibration = Calibration()
    calibration.update(lambda _: probabilities, labels)
    assert calibration.error == pytest.approx((0.3 + 0.0) / 2)
    ranges = calibration.to_json()["ranges"]
    assert [(r["pixels"], r["right"]) for r in ranges if r["pixels"]] == [(10, 0.6), (10, 0.6)]


def test_what_is_ignored_does_not_count():
    logits, labels = drawn(1.0)
    some = labels.clone()
    some[::2] = IGNORE
    half, other = Calibration(), Calibration()
    half.update(of_logits(logits), some)
    other.update(of_logits(logits[:, 1::2]), labels[1::2])
    assert half.to_json() == other.to_json()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 3.0])
def test_the_temperature_of_the_labels_is_found(temperature):
    logits, labels = drawn(temperature)
    calibration = Calibration(fit=True)
    for part, truth in zip(logits.split(100, 1), labels.split(100), strict=True):
        calibration.update(of_logits(part), truth)
    fitted = calibration.fitted
    assert fitted == pytest.approx(temperature, rel=0.05)
    after = Calibration(fitted)
    after.update(of_logits(logits), labels)
    assert after.error < 0.01
    if temperature != 1:
        assert calibration.error > 3 * after.error


def test_at_the_ends_of_what_is_tried():
    logits, _ = drawn(1.0)
    calibration = Calibration(fit=True)
    calibration.update(of_logits(logits), logits.argmax(0))  # always right: the colder the better
    assert calibration.fitted == 0.25


def test_without_fit_there_is_none():
    assert Calibration().fitted is None


def test_certain_pixels_are_of_the_last_range():
    calibration = Calibration()
    calibration.update(lambda _: torch.tensor([[[1.0]], [[0.0]]]), np.zeros((1, 1), np.uint8))
    assert calibration.to_json()["ranges"][BINS - 1]["pixels"] == 1
    assert calibration.error == 0


def test_the_diagram(tmp_path):
    logits, labels = drawn(2.0)
    calibration = Calibration()
    calibration.update(of_logits(logits), labels)
    calibration.draw(tmp_path / "reliability.png", "a title with $ and _")
    with Image.open(tmp_path / "reliability.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_file_keeps_its_temperature(tmp_path, trained_file):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(trained_file.read_bytes())
    keep_temperature(path, 1.5)
    assert read_info(path).temperature == 1.5
    tensors, metadata = read_safetensors(path)  # whose checksums hold
    before, told = read_safetensors(trained_file)
    assert all(torch.equal(tensors[key], before[key]) for key in before)
    assert metadata.keys() == told.keys()
    keep_temperature(path, 2)
    assert read_info(path).temperature == 2


def test_what_keeps_none(tmp_path, trained_file):
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="does not say what network it is of"):
        keep_temperature(other, 1.5)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(trained_file.read_bytes())
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            keep_temperature(path, wrong)
    assert path.read_bytes() == trained_file.read_bytes()
