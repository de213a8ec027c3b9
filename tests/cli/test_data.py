"""`fassd data`: shipped cards, and checking a dataset."""

import json

import numpy as np
import pytest
from data.trees import SIZE, save, toy, write_card

import fassd.cli.data  # registers the commands


def test_list_names_cards_and_where_they_lie(succeed):
    result = succeed("data", "list")
    for name, classes in (("ade20k", "150"), ("cityscapes", "19"), ("kvasir_seg", "2")):
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert line.split()[1] == classes
    assert "fassd/data/cards" in result.stderr


def test_a_whole_dataset(tmp_path, succeed):
    toy(tmp_path, replace={"train: train": "train: {pictures: 1234}", "name: lamp": "name: '[x]'"})
    masks = np.array([[0, 1, 2, 2, 3, 3, 3, 3]] * SIZE[0], np.uint8)
    for path in tmp_path.glob("*_masks/*.png"):
        save(path, masks)
    result = succeed("data", "check", tmp_path, "--json", tmp_path / "out/report.json")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["train", "2", "of", "1,234", "2", "6x8", "12.50%"] in lines
    assert ["val", "2", "2", "6x8", "12.50%"] in lines
    assert ["██", "[x]", "57.143%", "57.143%"] in lines
    assert "0 errors, 0 warnings" in result.stderr
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["splits"]["val"]["pixels"] == [12, 24, 48]


def test_errors_are_listed_and_the_exit_code_is_1(tmp_path, succeed, run_fassd):
    card = toy(tmp_path, count=25)
    for pair in card.pairs("val")[:23]:
        save(pair.mask, np.full(SIZE, 9, np.uint8))
    result = run_fassd("data", "check", tmp_path / "card.yaml")
    assert result.exit_code == 1
    assert result.stderr.count("error: val:") == 20
    assert f"{card.pairs('val')[0].mask}: id 9 outside the card" in result.stderr
    assert "... and 3 more (--json writes them all)" in result.stderr
    assert "23 errors, 0 warnings" in result.stderr
    succeed("data", "check", tmp_path, "--split", "train")


def test_warnings_do_not_fail(tmp_path, succeed):
    card = toy(tmp_path)
    for split in card.splits:
        for pair in card.pairs(split):
            save(pair.mask, np.full(SIZE, 2, np.uint8))
    result = succeed("data", "check", tmp_path)
    assert "warning: train: only one class is there: wall" in result.stderr
    assert "0 errors, 2 warnings" in result.stderr


def test_nothing_readable(tmp_path, run_fassd):
    result = run_fassd("data", "check", write_card(tmp_path))
    assert result.exit_code == 1 and "2 errors" in result.stderr
    assert "class" not in result.stdout


def test_several_sizes_are_shown_commonest_first(tmp_path, run_fassd):
    card = toy(tmp_path, count=9)
    for pair, side in zip(card.pairs("train"), (5, 5, 3, 3, 3, 2, 1), strict=False):
        save(pair.image, np.zeros((side, side, 3), np.uint8))
        save(pair.mask, np.ones((side, side), np.uint8))
    result = run_fassd("data", "check", tmp_path, "--split", "train")
    assert "3x3 (3), 5x5 (2), 6x8 (2), 2 more" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "there is no card 'nosuch'"),
        (("camvid",), "'camvid' needs the folder"),
        (("camvid", "--root", "nowhere"), "there is no folder nowhere"),
        (("{root}", "--split", "tset"), "card.yaml) has no split 'tset'; it has train, val"),
        (("{root}", "--json", "{root}"), "it is a folder, not a file"),
    ],
)
def test_an_unusable_card_exits_with_2(tmp_path, run_fassd, arguments, message):
    toy(tmp_path)
    result = run_fassd("data", "check", *(word.format(root=tmp_path) for word in arguments))
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_group_explains_itself(run_fassd):
    assert fassd.cli.data.data.registered_commands
    result = run_fassd("data", "check", "--help")
    assert "--root" in result.stdout and "Exit code" in result.stdout


def test_a_card_is_written_for_a_folder(tmp_path, succeed, run_fassd):
    rng = np.random.default_rng(0)
    for number in range(3):
        save(tmp_path / f"images/{number}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
    for number in range(2):
        save(tmp_path / f"masks/{number}.png", np.resize(np.array([0, 4], np.uint8), SIZE))
    result = succeed("data", "new", tmp_path)
    assert "2 pictures with labels, 2 classes" in result.stderr
    assert "warning: 1 pictures have no labels" in result.stderr
    assert f"written: {tmp_path}/card.yaml" in result.stderr.replace("\n", "")
    again = run_fassd("data", "new", tmp_path)
    assert again.exit_code == 2 and "exists already: check it with fassd data check" in again.stderr
    assert run_fassd("data", "new", tmp_path / "nowhere").exit_code == 2
    (tmp_path / "images/2.png").unlink()
    assert "0 errors, 0 warnings" in succeed("data", "check", tmp_path).stderr
