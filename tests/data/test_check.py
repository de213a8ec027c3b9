import json
import threading

import numpy as np
import pytest
from data.trees import SIZE, save, toy, write_card
from PIL import Image

from fassd.data import check
from fassd.data.card import CardError
from fassd.data.cardfile import load_card
from fassd.data.check import Finding, check_card
from fassd.io.images import formats


def fill_masks(card, value):
    for split in card.splits:
        for pair in card.pairs(split):
            save(pair.mask, np.full(SIZE, value, np.uint8))


def test_a_whole_dataset_has_no_problems_and_its_pixels_are_counted(tmp_path):
    card = toy(tmp_path, count=3)
    for pair in card.pairs("val"):
        half = np.array([[0, 1, 2, 2, 3, 3, 3, 3]] * SIZE[0], np.uint8)
        save(pair.mask, half)
    report = check_card(card)
    assert report.problems == [] == report.errors == report.warnings
    train, val = report.splits
    assert (val.name, val.pictures, val.read, val.expected) == ("val", 3, 3, None)
    assert val.sizes == {SIZE: 3}
    assert val.pixels.tolist() == [18, 36, 72] and val.ignored == 18
    assert val.ignored_share == pytest.approx(1 / 8)
    assert int(train.pixels.sum()) + train.ignored == 3 * SIZE[0] * SIZE[1]


def test_everything_wrong_is_told_at_once(tmp_path):
    card = toy(tmp_path, count=6)
    pairs = card.pairs("train")
    save(pairs[0].mask, np.full(SIZE, 9, np.uint8))
    save(pairs[1].mask, np.ones((2, 2), np.uint8))
    pairs[2].image.write_bytes(b"nothing")
    pairs[3].mask.unlink()
    pairs[4].mask.write_bytes(pairs[4].mask.read_bytes()[:60])
    report = check_card(card)
    assert report.warnings == []
    train = f"{tmp_path}/train/train_"
    masks = f"{tmp_path}/train_masks/train_"
    assert [(problem.level, problem.split) for problem in report.problems] == [
        ("error", "train")
    ] * 5
    read = ", ".join(formats())
    assert [problem.message for problem in report.errors][:4] == [
        f"{train}3.png: has no mask; expected {masks}3.png",
        f"{masks}0.png: id 9 outside the card, in 48 pixels (first at row 0, column 0)",
        f"{masks}1.png: the mask is 2x2 (height x width), but its picture {train}1.png is 6x8",
        f"{train}2.png: is not a picture in a format that is read here ({read})",
    ]
    assert report.errors[4].message.startswith(f"{masks}4.png: is damaged or truncated")
    assert (report.splits[0].pictures, report.splits[0].read) == (6, 1)
    assert report.splits[1].read == 6


def test_an_empty_split_is_an_error_and_the_others_are_read(tmp_path):
    card = toy(tmp_path)
    for pair in card.pairs("train"):
        pair.image.unlink()
    report = check_card(card)
    assert [problem.split for problem in report.errors] == ["train"]
    assert "split 'train' has no pictures: nothing matches" in report.errors[0].message
    assert [split.read for split in report.splits] == [0, 2]
    assert report.splits[0].ignored_share == 0


def test_odd_things_are_warnings(tmp_path):
    card = toy(tmp_path)
    fill_masks(card, 2)
    first = card.pairs("train")[0].mask
    save(first, np.zeros(SIZE, np.uint8))
    for pair in card.pairs("val"):
        save(pair.mask, np.array([[1, 2] * 4] * SIZE[0], np.uint8))
    assert check_card(card).problems == [
        Finding("warning", "train", f"{first}: every pixel is ignored"),
        Finding("warning", "train", "only one class is there: wall"),
        Finding("warning", "val", "no pixel of lamp"),
    ]


def test_dark_pictures_and_pages_are_warnings(tmp_path):
    card = toy(tmp_path, count=2)
    first, second = card.pairs("val")
    save(first.image, np.full(SIZE, 4000, np.uint16))
    Image.new("RGB", SIZE[::-1]).save(
        second.image, save_all=True, append_images=[Image.new("RGB", SIZE[::-1], "red")]
    )
    messages = [problem.message for problem in check_card(card, ["val"]).warnings]
    assert messages[0].startswith(f"{first.image}: read as 0 to 65535, but the upper 4 of 16 bits")
    assert messages[1] == f"{second.image}: only the first of several pages or frames is read"


def test_a_split_without_a_labelled_pixel(tmp_path):
    card = toy(tmp_path)
    fill_masks(card, 0)
    report = check_card(card, ["val"])
    messages = [problem.message for problem in report.warnings]
    assert len(messages) == 3 and messages[2] == "no pixel has a class"
    assert report.splits[0].ignored_share == 1


def test_pictures_in_two_splits_are_found_through_links(tmp_path):
    card = toy(tmp_path)
    shared = tmp_path / "val/val_0.png"
    shared.unlink()
    shared.symlink_to(tmp_path / "train/train_1.png")
    warnings = [problem.message for problem in check_card(card).warnings]
    assert f"{shared}: is in split 'train', too" in warnings
    assert check_card(card, ["val"]).problems == []


def test_sizes_are_counted(tmp_path):
    card = toy(tmp_path, count=3)
    pair = card.pairs("val")[2]
    save(pair.image, np.zeros((4, 5, 3), np.uint8))
    save(pair.mask, np.ones((4, 5), np.uint8))
    assert check_card(card).splits[1].sizes == {SIZE: 2, (4, 5): 1}


def test_splits_workers_and_progress(tmp_path):
    card = toy(tmp_path, count=5)
    told = []
    reports = [check_card(card, workers=workers) for workers in (1, 3)]
    np.testing.assert_array_equal(reports[0].splits[0].pixels, reports[1].splits[0].pixels)
    report = check_card(card, ["val", "val"], progress=lambda *counts: told.append(counts))
    assert [split.name for split in report.splits] == ["val"]
    assert told == [(done, 5) for done in range(1, 6)]
    with pytest.raises(CardError, match="has no split 'test'; it has train, val"):
        check_card(card, ["val", "test"])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        check_card(card, workers=0)


def test_an_interrupted_check_stops_reading(tmp_path, monkeypatch):
    card = toy(tmp_path, count=40)
    read = []
    count = check.count_pair
    monkeypatch.setattr(check, "count_pair", lambda pair: (read.append(pair), count(pair))[1])

    def interrupt(done, total):
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        check_card(card, workers=1, progress=interrupt)
    assert len(read) < 40 and threading.active_count() == threads


def test_the_report_as_json(tmp_path):
    card = toy(tmp_path, replace={"train: train": "train: {pictures: 7}"})
    save(card.pairs("val")[0].mask, np.full(SIZE, 9, np.uint8))
    report = check_card(card)
    record = json.loads(json.dumps(report.to_json()))
    assert record["card"] == "toy" and record["root"] == str(tmp_path)
    assert record["classes"] == ["floor", "wall", "lamp"]
    train = record["splits"]["train"]
    assert (train["pictures"], train["expected"], train["read"]) == (2, 7, 2)
    assert train["sizes"] == {"6x8": 2} and sum(train["pixels"]) + train["ignored"] == 96
    assert record["errors"] == [["val", report.errors[0].message]] and record["warnings"] == []


def test_every_kind_of_mask_can_be_checked(tmp_path):
    card = load_card(write_card(tmp_path, {"values: ids": "values: colors", "[0]": "[[0, 0, 0]]"}))
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[1:] = (10, 20, 30)
    rgb[2:] = (40, 50, 60)
    rgb[4:] = (70, 80, 90)
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", rgb)
        save(tmp_path / f"{split}_masks/a.png", rgb)
    report = check_card(card)
    assert report.problems == [] and report.splits[0].pixels.tolist() == [8, 16, 16]
