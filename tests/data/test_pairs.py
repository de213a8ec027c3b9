"""Which pictures and masks a card finds in a folder."""

import re
from pathlib import Path

import pytest
from data.trees import toy, write_card, write_tree

from fassd.data.card import CardError
from fassd.data.cardfile import load_card


def names(card, split):
    return [pair.image.stem for pair in card.pairs(split)]


def test_pairs_are_in_order_and_hidden_files_do_not_count(tmp_path):
    card = toy(tmp_path, count=11)
    (tmp_path / "train" / "._train_0.png").touch()
    (tmp_path / "train" / "notes.txt").touch()
    (tmp_path / "train" / "folder.png").mkdir()
    assert names(card, "train") == sorted(f"train_{i}" for i in range(11))
    pair = card.pairs("train")[3]
    assert pair.mask == tmp_path / "train_masks" / pair.image.name


def test_folders_below_the_root_however_they_are_written(tmp_path):
    toy(tmp_path)
    for folder in ("val/../train", "./train/", str(tmp_path / "train")):
        card = load_card(write_card(tmp_path, {"train: train": f"train: {folder}"}))
        assert len(list(card._images("train"))) == 2
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train").rename(tmp_path / "elsewhere" / "train")
    (tmp_path / "train").symlink_to("elsewhere/train")  # whose data it is may link
    assert names(load_card(write_card(tmp_path)), "train") == ["train_0", "train_1"]


@pytest.mark.parametrize(
    ("part", "name", "fits"),
    [
        ("{y}-{m}-{d}_{h}-{mi}-{s}_{name}", "2024-01-02_03-04-05_a_b_c", True),
        ("{a}{b}{name}", "abcdef", True),
        ("_".join(f"{{h{index}}}" for index in range(9)) + "{name}x", 200 * "_", False),
        ("".join(f"{{h{index}}}" for index in range(9)) + "{name}x", 200 * "a", False),
    ],
)
def test_a_pattern_does_not_take_for_ever(tmp_path, part, name, fits):
    card = load_card(write_card(tmp_path, {
        "{split}/{name}.png": f"{{split}}/{part}.png",
    }))  # fmt: skip
    for folder in ("train", "train_masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").touch()
    if fits:
        pairs, maskless = card.find("train")
        assert len(pairs) + len(maskless) == 1
    else:
        with pytest.raises(ValueError, match="in too many ways"):
            card.find("train")


def test_holes_do_not_make_a_way_out(tmp_path):
    card = load_card(write_card(tmp_path, {
        "{split}/{name}.png": "{split}/a{x}{y}_{name}.png",
        "{split}_masks/{name}.png": "{x}{y}/masks/{name}.png",
    }))  # fmt: skip
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.._1.png").touch()
    with pytest.raises(CardError, match=r"the mask of .*a\.\._1\.png lies outside the root"):
        card.pairs("train")


def test_unknown_split(tmp_path):
    with pytest.raises(
        CardError, match=r"'toy' \(.*card.yaml\) has no split 'trian'; it has train"
    ):
        toy(tmp_path).pairs("trian")


def test_empty_splits_say_what_was_looked_for(tmp_path):
    card = load_card(write_card(tmp_path))
    with pytest.raises(
        CardError, match=f"split 'train' has no pictures: there is no folder {tmp_path}/train"
    ):
        card.pairs("train")
    (tmp_path / "train").mkdir()
    with pytest.raises(CardError, match=re.escape(f"nothing matches {tmp_path}/train/*.png")):
        card.pairs("train")


def test_a_missing_mask_is_named_with_the_picture(tmp_path):
    card = toy(tmp_path, count=3)
    (tmp_path / "val_masks/val_1.png").unlink()
    with pytest.raises(CardError) as caught:
        card.pairs("val")
    assert (
        "1 of the 3 pictures of split 'val' have no mask; the first is "
        f"{tmp_path}/val/val_1.png, which needs {tmp_path}/val_masks/val_1.png"
    ) in str(caught.value)
    assert len(card.pairs("train")) == 3


def test_holes_reach_across_folders_and_may_come_twice(tmp_path):
    card = load_card(write_card(tmp_path, {
        "{split}/{name}.png": "{split}/{city}/{city}_{name:path}.{ending}",
        "{split}_masks/{name}.png": "masks/{name:path}-{city}.png",
    }))  # fmt: skip
    files = ["train/ulm/ulm_x/y/1.jpg", "train/ulm/ulm_2.png", "train/ulm/bonn_3.png"]
    masks = ["masks/x/y/1-ulm.png", "masks/2-ulm.png", "masks/3-ulm.png"]
    for file in files + masks:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = [(pair.image.relative_to(tmp_path), pair.mask.relative_to(tmp_path))
             for pair in card.pairs("train")]  # fmt: skip
    assert found == [(Path(files[1]), Path(masks[1])), (Path(files[0]), Path(masks[0]))]


def test_characters_that_mean_something_in_patterns_are_plain(tmp_path):
    card = toy(tmp_path, replace={"{split}/{name}.png": "{split} [v1.2]*/{name}.png"})
    (tmp_path / "train [v1.2]*" / "train_0xpng").touch()
    assert names(card, "train") == ["train_0", "train_1"]


@pytest.mark.parametrize(
    "lines",
    [
        "train_1\ntrain_0\n",
        "\n  train_1 \r\ntrain_0.png\n\n",
        "train/train_1.png\n/SegNet/CamVid/train/train_0.png",
    ],
)
def test_lists_choose_and_order(tmp_path, lines):
    card = toy(tmp_path, count=3, replace={"train: train": "train: {list: some.txt}"})
    (tmp_path / "some.txt").write_text(lines)
    assert names(card, "train") == ["train_1", "train_0"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["{}", "train\\{}.png", r".\{}.PNG", r"C:\data\train\{}.png"])
def test_lists_of_windows(tmp_path, encoding, name):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    lines = "".join(f"{name.format(stem)} {stem} \r\n" for stem in ("train_1", "train_0"))
    for entry, column in (("{list: some.txt, column: 1}", 1), ("{list: some.txt, column: 2}", 2)):
        card = toy(tmp_path / str(column), count=3, replace={"train: train": f"train: {entry}"})
        card.root.joinpath("some.txt").write_bytes((mark + lines).encode(encoding))
        assert names(card, "train") == ["train_1", "train_0"]


def test_a_backslash_may_be_part_of_a_name(tmp_path):
    card = toy(tmp_path, replace={"train: train": "train: {list: some.txt}"})
    for folder in ("train", "train_masks"):
        (tmp_path / folder / "train_0.png").rename(tmp_path / folder / "a\\train_1.png")
    (tmp_path / "some.txt").write_text("a\\train_1\ntrain_1\n")
    assert names(card, "train") == ["a\\train_1", "train_1"]


def test_a_folder_counts_once_whatever_links_lead_to_it(tmp_path):
    card = toy(tmp_path, count=3, replace={
        "{split}/{name}.png": "{split}/{name:path}.png",
        "{split}_masks/{name}.png": "{split}_masks/{name:path}.png",
    })  # fmt: skip
    for folder in ("train", "train_masks"):
        (tmp_path / folder / "deep").mkdir()
        (tmp_path / folder / "deep" / "x.png").write_bytes(
            (tmp_path / folder / "train_0.png").read_bytes()
        )
    links = {"self": ".", "0": "deep", "deep/up": "..", "deep/all": "../../train", "loop": "loop"}
    for link, target in links.items():
        (tmp_path / "train" / link).symlink_to(target)
    found = card.pairs("train")
    assert sorted(pair.image.relative_to(tmp_path / "train").as_posix() for pair in found) == [
        "deep/x.png", "train_0.png", "train_1.png", "train_2.png"
    ]  # fmt: skip
    assert len(card.pairs("val")) == 3


def test_a_link_to_another_place_is_searched(tmp_path):
    card = toy(tmp_path / "data", replace={"{split}/{name}.png": "{split}/{name:path}.png"})
    (tmp_path / "data/train").rename(tmp_path / "disk")
    (tmp_path / "data/train").mkdir()
    (tmp_path / "data/train/more").symlink_to(tmp_path / "disk")
    assert sorted(image.name for image, _ in card.find("train")[1]) == [
        "train_0.png", "train_1.png"
    ]  # fmt: skip


def test_names_in_the_card_and_columns_of_a_list(tmp_path):
    card = toy(tmp_path, count=3, replace={
        "train: train": "train: {names: [train_2, train_0.png]}",
        "val: val": "val: {list: val.txt, column: 2}",
    })  # fmt: skip
    (tmp_path / "val.txt").write_text("x val_2 y\nx\tval_1\n")
    assert names(card, "train") == ["train_2", "train_0"]
    assert names(card, "val") == ["val_2", "val_1"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("train_0\ntrain_9\n", r"some.txt, line 2: 'train_9' is no picture of .*train/\*.png"),
        ("train_0\n\ntrain_0.png\n", "line 3: 'train_0.png' occurs twice, at .*some.txt, line 1"),
        ("\n \n", "split 'train' has no pictures: its list .*some.txt is empty"),
        (None, "cannot read its list .*some.txt: No such file"),
    ],
)
def test_lists_that_are_wrong(tmp_path, lines, message):
    card = toy(tmp_path, replace={"train: train": "train: {list: some.txt}"})
    (tmp_path / "some.txt").unlink()
    if lines is not None:
        (tmp_path / "some.txt").write_text(lines)
    with pytest.raises(CardError, match=message):
        card.pairs("train")


def test_a_name_that_fits_two_pictures(tmp_path):
    card = load_card(write_card(tmp_path, {
        "{split}/{name}.png": "{split}/{part}/{name}.png", "train: train": "train: {names: [x]}",
    }))  # fmt: skip
    for part in "ab":
        (tmp_path / "train" / part).mkdir(parents=True)
        (tmp_path / "train" / part / "x.png").touch()
    with pytest.raises(CardError, match=r"splits.train.names: 'x' fits 2 pictures"):
        card.pairs("train")


def test_the_first_mask_that_exists_is_taken(tmp_path):
    card = load_card("cityscapes", tmp_path)
    write_tree(card, tmp_path, count=2, block=1)
    first, second = card.pairs("train")
    assert first.mask.name == "train_0_gtFine_labelTrainIds.png"
    replaced = first.mask.with_name("train_0_gtFine_labelIds.png")
    first.mask.rename(replaced)
    assert [pair.mask for pair in card.pairs("train")] == [replaced, second.mask]
    assert [pair.code for pair in card.pairs("train")] == [masks.code for masks in card.masks]
