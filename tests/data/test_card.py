import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from data.trees import CARD, toy, write_card, write_tree

from fassd.data import cardfile
from fassd.data.card import CARDS, CardError
from fassd.data.cardfile import load_card, shipped_cards
from fassd.data.dataset import SegmentationDataset
from fassd.io.palette import CITYSCAPES, IGNORE, palette

# ---------------------------------------------------------------------------------- shipped cards

SHIPPED = [
    "ade20k", "bdd100k", "camvid", "camvid_color", "cityscapes", "kvasir_seg", "mapillary", "nyuv2"
]  # fmt: skip

# The official table: id, trainId and colour of each row of cityscapesScripts' labels.py.
CITYSCAPES_ROWS = """
unlabeled 0 255 0 0 0, ego vehicle 1 255 0 0 0, rectification border 2 255 0 0 0,
out of roi 3 255 0 0 0, static 4 255 0 0 0, dynamic 5 255 111 74 0, ground 6 255 81 0 81,
road 7 0 128 64 128, sidewalk 8 1 244 35 232, parking 9 255 250 170 160,
rail track 10 255 230 150 140, building 11 2 70 70 70, wall 12 3 102 102 156,
fence 13 4 190 153 153, guard rail 14 255 180 165 180, bridge 15 255 150 100 100,
tunnel 16 255 150 120 90, pole 17 5 153 153 153, polegroup 18 255 153 153 153,
traffic light 19 6 250 170 30, traffic sign 20 7 220 220 0, vegetation 21 8 107 142 35,
terrain 22 9 152 251 152, sky 23 10 70 130 180, person 24 11 220 20 60, rider 25 12 255 0 0,
car 26 13 0 0 142, truck 27 14 0 0 70, bus 28 15 0 60 100, caravan 29 255 0 0 90,
trailer 30 255 0 0 110, train 31 16 0 80 100, motorcycle 32 17 0 0 230, bicycle 33 18 119 11 32
"""


def test_these_cards_are_shipped():
    assert shipped_cards() == SHIPPED


def blocks_of(name):
    return range(len(load_card(name, CARDS).masks))


@pytest.mark.parametrize(
    ("name", "block"), [(name, block) for name in SHIPPED for block in blocks_of(name)]
)
def test_a_shipped_card_reads_the_tree_that_it_describes(tmp_path, name, block):
    card = load_card(name, tmp_path)
    written = write_tree(card, tmp_path, count=2, block=block)
    seen = 0
    for split in card.splits:
        dataset = SegmentationDataset(card, split)
        assert [sample.path.stem.startswith(f"{split}_") for sample in dataset] == [True, True]
        for sample in dataset:
            np.testing.assert_array_equal(sample.labels, written[sample.path])
            seen += 1
    assert seen == len(written)


@pytest.mark.parametrize(
    ("name", "classes", "pictures"),
    [
        ("ade20k", 150, {"train": 20210, "val": 2000}),
        ("bdd100k", 19, {"train": 7000, "val": 1000}),
        ("camvid", 11, {"train": 367, "val": 101, "test": 233}),
        ("camvid_color", 11, {"train": 367, "val": 101, "test": 233}),
        ("cityscapes", 19, {"train": 2975, "val": 500}),
        ("kvasir_seg", 2, {"train": 880, "val": 120}),
        ("mapillary", 65, {"train": 18000, "val": 2000}),
        ("nyuv2", 40, {"train": 795, "val": 654}),
    ],
)
def test_classes_and_pictures_of_shipped_cards(name, classes, pictures):
    card = load_card(name, CARDS)
    assert card.name == name and card.description and card.source and card.licence
    assert card.num_classes == len(set(card.class_names)) == classes
    assert card.palette.shape == (classes, 3) and card.palette.dtype == np.uint8
    assert {split: card.splits[split].pictures for split in card.splits} == pictures


def test_every_cityscapes_id_becomes_its_train_id():
    rows = [row.split() for row in CITYSCAPES_ROWS.replace("\n", " ").split(",")]
    assert len(rows) == 34
    card = load_card("cityscapes", CARDS)
    label_ids, train_ids = (masks.code for masks in card.masks)
    expected = {int(row[-5]): int(row[-4]) for row in rows}
    assert label_ids.labels == expected and not label_ids.ignore_unlisted
    assert train_ids.labels == {**{index: index for index in range(19)}, 250: IGNORE, 255: IGNORE}
    for row in rows:
        train_id, color = int(row[-4]), tuple(map(int, row[-3:]))
        if train_id != IGNORE:
            assert card.classes[train_id] == (" ".join(row[:-5]), color)


def test_street_cards_share_classes_and_colours():
    assert load_card("cityscapes", CARDS).classes == CITYSCAPES
    assert load_card("bdd100k", CARDS).classes == CITYSCAPES


def test_camvid_groups_31_colours_and_void():
    card = load_card("camvid_color", CARDS)
    labels = card.masks[0].code.labels
    assert len(labels) == 32 and labels[0] == IGNORE
    assert card.classes == load_card("camvid", CARDS).classes
    groups = {0xC08040: "pedestrian", 0x8000C0: "road", 0xC000C0: "bicyclist", 0xC0C000: "tree"}
    for color, name in {**groups, 0x004040: "sign symbol", 0x0000C0: "pavement"}.items():
        assert card.class_names[labels[color]] == name


def test_some_names_and_ids():
    ade, nyu, vistas = (load_card(name, CARDS) for name in ("ade20k", "nyuv2", "mapillary"))
    assert [ade.class_names[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    assert ade.masks[0].code.labels[150] == 149 and ade.masks[0].code.labels[0] == IGNORE
    np.testing.assert_array_equal(ade.palette, palette(150))
    assert [nyu.class_names[i] for i in (0, 37, 39)] == ["wall", "otherstructure", "otherprop"]
    assert [vistas.class_names[i] for i in (13, 55, 64)] == ["Road", "Car", "Ego Vehicle"]
    assert vistas.masks[0].code.labels[65] == IGNORE


# ------------------------------------------------------------------------------- finding the card


def test_a_cityscapes_folder_is_known(tmp_path):
    written = write_tree(load_card("cityscapes", tmp_path), tmp_path)
    card = load_card(tmp_path)
    assert card.name == "cityscapes" and len(card.pairs("train")) == 2 == len(written) / 2


def test_a_folder_with_a_card_uses_it(tmp_path):
    toy(tmp_path)
    (tmp_path / "leftImg8bit").mkdir()
    (tmp_path / "gtFine").mkdir()
    assert load_card(str(tmp_path)).name == "toy"


def test_root_may_be_given_in_the_card_or_in_the_call(tmp_path):
    path = write_card(tmp_path / "cards", {"name: toy": "name: toy\nroot: ../a"})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert load_card(path).root.resolve() == (tmp_path / "a").resolve()
    assert load_card(path, tmp_path / "b").root == tmp_path / "b"
    write_card(tmp_path / "cards")
    assert load_card(path).root == tmp_path / "cards"


@pytest.mark.parametrize(
    ("data", "root", "message"),
    [
        ("nosuch", None, "there is no card 'nosuch'; give .* one of ade20k, bdd100k"),
        ("ade20k", None, "'ade20k' needs the folder"),
        ("ade20k", "nowhere", "'ade20k': there is no folder nowhere"),
        (".", None, r"folder \. holds neither card.yaml nor leftImg8bit and gtFine"),
    ],
)
def test_no_card_there(tmp_path, monkeypatch, data, root, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CardError, match=message):
        load_card(data, root)


def test_the_address_of_a_card_finds_it_from_anywhere(tmp_path, monkeypatch):
    """Also where a folder is called like a shipped card."""
    write_card(tmp_path / "toy")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "city" / kind).mkdir(parents=True)
    (tmp_path / "camvid").mkdir()
    monkeypatch.chdir(tmp_path)
    cards = [load_card("toy"), load_card("toy/card.yaml", "."), load_card("city")]
    cards.append(load_card("camvid", "city"))
    assert cards[3].address == ("camvid", str(tmp_path / "city"))
    addresses = [card.address for card in cards]
    (tmp_path / "elsewhere" / "cityscapes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for card, address in zip(cards, addresses, strict=True):
        again = load_card(*address)
        assert (again.name, again.classes, again.address) == (card.name, card.classes, address)


def test_a_card_survives_pickling(tmp_path):
    card = toy(tmp_path)
    _ = SegmentationDataset(card, "train")[0]
    assert len(pickle.dumps(card)) < 10_000  # without lookup tables
    assert pickle.loads(pickle.dumps(card)) == card


def test_importing_the_package_is_cheap():
    import subprocess

    program = (
        "import sys, fassd.data; fassd.data.normalize, fassd.data.TrainTransform; "
        "print([name for name in ('torch', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    import fassd.data

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fassd.data.nonsense


# ----------------------------------------------------------------------------------- wrong cards


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: toy", "nome: toy", "unknown key 'nome'; accepted are name, classes"),
        ("name: toy", "", "the key 'name' is missing"),
        ("name: toy", "name: 12", "name: must be text .*got 12"),
        ("name: toy", "name: toy\nname: tay", "the key 'name' stands twice"),
        ("name: toy", "name: [toy", "is not a YAML card"),
        (CARD, "- 3", r"must be a mapping with the keys name, .*got \[3\]"),
        ("{name: floor,", "{name: true,", r"classes\[0\].name: must be text .*got True"),
        ("{name: floor,", "{name: wall,", r"classes\[1\]: the class 'wall' stands twice, at 0"),
        ("[10, 20, 30]", "[10, 20, 300]", r"classes\[0\].color: must be a colour.*300"),
        ("color: [10, 20, 30], ", "", r"classes\[0\]: the key 'color' is missing; either all"),
        ("ids: 3", "ids: 1", "the id 1 stands for two classes, 'floor' and 'lamp'"),
        ("ids: 3", "ids: [3, 3]", "the id 3 stands twice in the class 'lamp'"),
        ("ids: 3", "ids: 0", "masks.ignore: the id 0 is the class 'lamp', too"),
        ("ids: 3", "ids: -1", r"classes\[2\].ids: must be a whole number from 0 to 65535, got -1"),
        ("ids: 3", "ids: 70000", "from 0 to 65535, got 70000"),
        ("ids: 3", "ids: [3, 3.5]", r"ids\[1\]: must be a whole number .*got 3.5"),
        (", ids: 3", "", "'values: ids' needs ids, but the class 'lamp' has none"),
        ("values: ids", "values: id", "masks.values: must be one of ids, index, .*got 'id'"),
        ("values: ids", "values: index\n  first: 65534", "takes the ids up to 65536, beyond 65535"),
        ("values: ids", "values: ids\n  above: 3", "above: goes with 'values: threshold' only"),
        ("values: ids", "values: ids\n  unlisted: maybe", "one of error, ignore, got 'maybe'"),
        ("values: ids", "values: threshold", "a threshold parts two classes, but there are 3"),
        ("ignore: [0]", "ignore: [a]", r"masks.ignore\[0\]: must be a whole number"),
        ("ignore: [0]", "ignore: none", "masks.ignore: must be an id or a list of ids"),
        ("splits: {train: train, val: val}", "splits: {}", "splits: must have at least one split"),
        ("val: val", "on: val", r"splits: keys must be text, got True \(put it in quotes\)"),
        ("ignore: [0]", "ignore: [0]\nrange: [9, 3]", r"range: must be auto or .* got \[9, 3\]"),
        ("ignore: [0]", "ignore: [0]\nrange: 12", "range: must be auto or .* got 12"),
        ("val: val", "val: {foldr: val}", "splits.val: unknown key 'foldr'; accepted are folder"),
        ("val: val", "val: {list: a.txt, names: [b]}", "has both 'list' and 'names'"),
        ("val: val", "val: {column: 2}", "there is no 'list'"),
        ("val: val", "val: {names: []}", r"splits.val.names: must be a list of names, got \[\]"),
        ("{split}/{name}.png", "/{split}/{name}.png", "images: must be a path below the root"),
        ("{split}/{name}.png", "../{name}.png", "images: must be a path below the root"),
        ("{split}/{name}.png", "{split/{name}.png", "a hole must be {word} or {word:path}"),
        ("{split}/{name}.png", "{name:path}/a.png", "{...:path} may only stand after the last /"),
        ("{split}_masks/{name}", "{split}_masks/{stem}", "has the hole {stem}, which the pictures"),
    ],
)  # fmt: skip
def test_errors_name_file_key_and_what_is_accepted(tmp_path, old, new, message):
    path = write_card(tmp_path, {old: new})
    with pytest.raises(CardError, match=message) as caught:
        load_card(path)
    assert str(path) in str(caught.value)


LONG = "x" * 100_000
DEEP = 60 * "[" + 60 * "]"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: toy", f"name: [{LONG}]"),
        ("name: toy", f"name: {LONG}"),
        ("name: toy", f"? {LONG[:1000]}\n: toy"),
        ("name: toy", f"name: {DEEP}"),
        ("name: toy", f"name: !!timestamp {LONG}"),
        ("name: toy", f"name: toy\nroot: {LONG}"),
        ("name: toy", f"name: toy\nroot: {LONG[:4000]}"),
        ("name: toy", 'name: toy\nroot: "a\\0b"'),
        ("{name: floor,", f"{{name: [{LONG}],"),
        ("ids: 3", f"ids: {LONG}"),
        ("ids: 3", f"ids: [{','.join(['a'] * 50_000)}]"),
        ("values: ids", f"values: [{LONG}]"),
        ("values: ids", "values: {a: b}"),
        ("train: train", f"train: {LONG}"),
        ("train: train", f"train: {{{LONG}: train}}"),
        ("{split}/{name}.png", f"{{split}}/{{{LONG}}}.png"),
        ("splits: {train: train", f"splits: {{{', '.join(f's{i}: a' for i in range(1000))}"),
        ("val: val}", f"val: val, ? {LONG} : a}}"),
    ],
)  # fmt: skip
def test_errors_of_large_values_are_short(tmp_path, old, new):
    path = write_card(tmp_path, {old: new})
    with pytest.raises(CardError) as caught:
        load_card(path)
    assert len(str(caught.value)) < 5000 and "\n" not in str(caught.value)
    if LONG[:1000] not in new:
        assert len(str(caught.value)) < 1000


def test_many_blocks_of_masks_are_refused(tmp_path):
    head, _, _ = CARD.partition("masks:")
    block = '  - {files: "{split}/{name}.png", values: index}\n'
    assert len(load_card(write_card(tmp_path, {CARD: f"{head}masks:\n{16 * block}"})).masks) == 16
    with pytest.raises(CardError, match="masks: must be at most 16 blocks, got 17"):
        load_card(write_card(tmp_path, {CARD: f"{head}masks:\n{17 * block}"}))


@pytest.mark.parametrize(
    "split",
    [
        "../../../../etc", "..", "/etc", "train/../../other", "{folder: ../other}", "{folder: /}",
        "'./../other'", "{folder: train/../../other, images: '{split}/{name}.png'}",
    ],
)  # fmt: skip
def test_splits_lie_below_the_root(tmp_path, split):
    (tmp_path / "other").mkdir()
    path = write_card(tmp_path / "cards", {"train: train": f"train: {split}"})
    with pytest.raises(CardError, match=r"splits.train.*: must be a folder below the root .*got"):
        load_card(path)
    with pytest.raises(CardError, match="below the root"):
        load_card(path, tmp_path / "cards")


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
        assert len(card.find("train").pairs + card.find("train").maskless) == 1
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


@pytest.mark.parametrize("count", [1, 256])
def test_two_to_255_classes(tmp_path, count):
    names = "".join(f"  - c{index}\n" for index in range(count))
    text = re.sub(r"classes:\n(  - .*\n)+", f"classes:\n{names}", CARD)
    path = write_card(tmp_path, {CARD: text.replace("values: ids", "values: index\n  first: 1")})
    with pytest.raises(CardError, match=f"classes: must be 2 to 255 classes, got {count}"):
        load_card(path)


def test_255_classes_work(tmp_path):
    names = "".join(f"  - c{index}\n" for index in range(255))
    text = re.sub(r"classes:\n(  - .*\n)+", f"classes:\n{names}", CARD)
    card = toy(tmp_path, replace={CARD: text.replace("values: ids", "values: index\n  first: 1")})
    assert card.num_classes == 255
    assert {int(sample.labels.max()) for sample in SegmentationDataset(card, "train")} <= {
        *range(256)
    }


def test_a_colour_of_two_classes(tmp_path):
    path = write_card(
        tmp_path,
        {"values: ids": "values: colors", "[40, 50, 60]": "[10, 20, 30]", "\n  ignore: [0]": ""},
    )
    with pytest.raises(CardError, match=r"the colour \[10, 20, 30\] stands for two classes"):
        load_card(path)


def test_the_card_in_the_documentation_is_one(tmp_path):
    text = re.search(r"(?:^    .*\n|^\n)+", cardfile.__doc__.partition("mean:\n")[2], re.M)[0]
    (tmp_path / "data").mkdir()
    card = load_card(write_card(tmp_path, {CARD: re.sub("^    ", "", text, flags=re.M)}))
    assert card.class_names == ["background", "polyp"] and list(card.splits) == [
        "train",
        "val",
        "test",
    ]
    assert card.masks[0].code.labels == {0: 0, 1: 1, 7: 1, 255: IGNORE}


# -------------------------------------------------------------------------------- finding pictures


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


def test_unknown_split(tmp_path):
    with pytest.raises(CardError, match="'toy' has no split 'trian'; it has train, val"):
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
    assert sorted(image.name for image, _ in card.find("train").maskless) == [
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
        ("train_0\n\ntrain_0.png\n", "line 3: 'train_0.png' stands twice, at .*some.txt, line 1"),
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
