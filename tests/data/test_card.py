import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from data.trees import CARD, toy, write_card, write_tree

import fassd.data
from fassd.data import cardfile
from fassd.data.card import CARDS, CardError
from fassd.data.cardfile import load_card, shipped_cards
from fassd.data.dataset import SegmentationDataset
from fassd.io.palette import CITYSCAPES, IGNORE, palette

# ---------------------------------------------------------------------------------- shipped cards

SHIPPED = [
    "ade20k", "bdd100k", "camvid", "camvid_color", "cityscapes", "coco_stuff", "kvasir_seg",
    "mapillary", "membrane", "nyuv2", "pascal_voc", "sunrgbd",
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
        stems = card.splits[split].names or (f"{split}_0", f"{split}_1")
        for sample, stem in zip(dataset, stems, strict=True):
            assert stem in sample.path.stem
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
        ("coco_stuff", 171, {"train": 118287, "val": 5000}),
        ("kvasir_seg", 2, {"train": 880, "val": 120}),
        ("mapillary", 65, {"train": 18000, "val": 2000}),
        ("membrane", 2, {"train": 20, "test": 10}),
        ("nyuv2", 40, {"train": 795, "val": 654}),
        ("pascal_voc", 21, {"train": 1464, "val": 1449}),
        ("sunrgbd", 37, {"train": 5285, "val": 5050}),
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
    stuff, voc, sun = (load_card(name, CARDS) for name in ("coco_stuff", "pascal_voc", "sunrgbd"))
    ids = {stuff.class_names[index]: number for number, index in stuff.masks[0].code.labels.items()
           if index != IGNORE}  # fmt: skip
    assert [ids[name] for name in ("person", "stop sign", "toothbrush", "banner", "wood")] == [
        0, 12, 89, 91, 181,
    ]  # fmt: skip
    assert not {"street sign", "hat", "door"} & ids.keys() and "door-stuff" in ids
    assert [voc.class_names[i] for i in (0, 15, 20)] == ["background", "person", "tvmonitor"]
    assert voc.palette[[1, 15, 20]].tolist() == [[128, 0, 0], [192, 128, 128], [0, 64, 128]]
    assert [sun.class_names[i] for i in (0, 23, 36)] == ["wall", "fridge", "bag"]
    assert sun.masks[0].code.labels[37] == 36 and sun.masks[0].code.labels[0] == IGNORE


def test_the_last_ten_membranes_are_scored_and_the_others_learnt():
    splits = load_card("membrane", CARDS).splits
    numbers = [int(name) for split in ("train", "test") for name in splits[split].names]
    assert numbers == list(range(30)) and len(splits["train"].names) == 20


@pytest.mark.parametrize("name", ["coco_stuff", "nyuv2", "pascal_voc", "sunrgbd"])
def test_cards_that_no_data_were_read_with_say_so(name):
    assert "untested" in load_card(name, CARDS).description


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
    program = (
        "import sys, fassd.data; fassd.data.normalize, fassd.data.TrainTransform; "
        "print([name for name in ('torch', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fassd.data.nonsense


# ----------------------------------------------------------------------------------- wrong cards


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: toy", "nome: toy", "unknown key 'nome'; accepted are name, classes"),
        ("name: toy", "", "name is missing"),
        ("name: toy", "name: 12", "name must be a valid string, got 12"),
        ("name: toy", "name: toy\nname: tay", "the key 'name' stands twice"),
        ("name: toy", "name: [toy", "is not a YAML card"),
        (CARD, "- 3", r"must be a mapping, got \[3\]"),
        ("{name: floor,", "{name: true,", r"classes\[0\].name must be a valid string, got True"),
        ("{name: floor,", "{name: wall,", r"classes\[1\]: 'wall' stands twice"),
        ("[10, 20, 30]", "[10, 20, 300]", r"classes\[0\].color\[2\] must be .* 255, got 300"),
        ("color: [10, 20, 30], ", "", r"classes\[0\]: the key 'color' is missing; either all"),
        ("ids: 3", "ids: 1", "1 stands twice, in the classes 'floor' and 'lamp'"),
        ("ids: 3", "ids: [3, 3]", "3 stands twice, in the classes 'lamp' and 'lamp'"),
        ("ids: 3", "ids: 0", "ignore: 0 is the class 'lamp', too"),
        ("ids: 3", "ids: -1", r"classes\[2\].ids\[0\] must be greater .* 0, got -1"),
        ("ids: 3", "ids: 70000", "less than or equal to 65535, got 70000"),
        ("ids: 3", "ids: [3, 3.5]", r"ids\[1\] must be a valid integer, got 3.5"),
        (", ids: 3", "", "needs ids, but 'lamp' has none"),
        ("values: ids", "values: id", "values must be 'ids', 'index', .*got 'id'"),
        ("values: ids", "values: index\n  first: 65534", "takes the ids up to 65536, beyond 65535"),
        ("values: ids", "values: ids\n  above: 3", "'above' goes with 'values: threshold' only"),
        ("values: ids", "values: ids\n  unlisted: maybe", "'error' or 'ignore', got 'maybe'"),
        ("values: ids\n  ignore: [0]", "values: threshold", "two classes, but there are 3"),
        ("ignore: [0]", "ignore: [a]", "'ignore' has 'a', no key of 'values: ids'"),
        ("ignore: [0]", "ignore: none", "'ignore' has 'none', no key of 'values: ids'"),
        ("splits: {train: train, val: val}", "splits: {}", "must have at least 1 item, not 0"),
        ("val: val", "on: val", "splits.* must be a valid string, got True"),
        ("ignore: [0]", "ignore: [0]\nrange: [9, 3]", r"range must be auto or .* got \[9, 3\]"),
        ("ignore: [0]", "ignore: [0]\nrange: 12", "range must be auto or .* got 12"),
        ("val: val", "val: {foldr: val}", "splits.val: unknown key 'foldr'; accepted are folder"),
        ("val: val", "val: {list: a.txt, names: [b]}", "has both 'list' and 'names'"),
        ("val: val", "val: {column: 2}", "there is no 'list'"),
        ("val: val", "val: {names: []}", r"splits.val.names must have at least 1 item, .*got \[\]"),
        ("{split}/{name}.png", "/{split}/{name}.png", "images must be a path below the root"),
        ("{split}/{name}.png", "../{name}.png", "images must be a path below the root"),
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
    with pytest.raises(CardError, match="masks must have at most 16 items, not 17"):
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


@pytest.mark.parametrize("count", [1, 255, 256])
def test_two_to_255_classes(tmp_path, count):
    names = "".join(f"  - c{index}\n" for index in range(count))
    text = re.sub(r"classes:\n(  - .*\n)+", f"classes:\n{names}", CARD)
    path = write_card(tmp_path, {CARD: text.replace("values: ids", "values: index\n  first: 1")})
    if count == 255:
        card = load_card(path)
        labels = write_tree(card, tmp_path)
        assert card.num_classes == 255
        for sample in SegmentationDataset(card, "train"):
            np.testing.assert_array_equal(sample.labels, labels[sample.path])
        return
    with pytest.raises(
        CardError, match=f"classes must have at (least 2|most 255) items, not {count}"
    ):
        load_card(path)


def test_a_colour_of_two_classes(tmp_path):
    path = write_card(
        tmp_path,
        {"values: ids": "values: colors", "[40, 50, 60]": "[10, 20, 30]", "\n  ignore: [0]": ""},
    )
    with pytest.raises(CardError, match=r"\(10, 20, 30\) stands twice"):
        load_card(path)


def test_the_card_in_the_documentation_is_one(tmp_path):
    text = re.search(r"(?:^    .*\n|^\n)+", cardfile.__doc__.partition("pixels:\n")[2], re.M)[0]
    (tmp_path / "data").mkdir()
    card = load_card(write_card(tmp_path, {CARD: re.sub("^    ", "", text, flags=re.M)}))
    assert card.class_names == ["background", "polyp"]
    assert list(card.splits) == ["train", "val", "test"]
    assert card.masks[0].code.labels == {0: 0, 1: 1, 7: 1, 255: IGNORE}
