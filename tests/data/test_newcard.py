import json
import shutil

import numpy as np
import pytest
from data.trees import save
from PIL import Image

from fassd.data import newcard
from fassd.data.card import CardError
from fassd.data.cardfile import load_card
from fassd.data.check import check_card
from fassd.data.masks import color_key
from fassd.data.newcard import write_card
from fassd.io.images import ImageError
from fassd.io.palette import IGNORE

SIZE = 8, 10
SQUARE = [[1, 1], [6, 1], [6, 6], [1, 6]]
FLAT = [x for corner in SQUARE for x in corner]


def picture(path):
    save(path, np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))


def mask(path, values=(0, 1, 2)):
    array = np.resize(np.array(values), SIZE)
    if path.suffix == ".npy":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    else:
        save(path, array.astype(np.uint8))


def made(folder, errors=0):
    """The card that is written, which has to describe the folder."""
    write_card(folder)
    card = load_card(folder)
    report = check_card(card)
    assert len(report.errors) == errors
    return card, {split.name: split.read for split in report.splits}


LAYOUTS = [
    ("images/{name}.jpg", "masks/{name}.png", None),
    ("{name}.jpg", "{name}_mask.png", None),
    ("{name}.jpg", "{name}.png", None),
    ("{name}.png", "{name}_mask.png", None),
    ("{split}/{name}.png", "{split}/{name}_mask.png", ("train", "val")),
    ("data/img/{name}.png", "data/gt/{name}_labelIds.png", None),
    ("{split}/images/{name}.jpg", "{split}/masks/{name}.png", ("train", "val")),
    ("{split}/{name}.png", "{split}annot/{name}.png", ("train", "val", "test")),
    ("images/{split}/{name}.png", "labels/{split}/{name}.npy", ("train", "valid")),
    ("images/{split}/{name}.png", "labels/{split}/{name}.png", ("training", "validation")),
    ("my_masks/lengths/{name}.jpg", "my_masks/gt/{name}.png", None),
    ("{split}/{name}.jpg", "seg/{split}/{name}.png", ("train2017", "val2017")),
]


@pytest.mark.parametrize(("images", "masks", "splits"), LAYOUTS)
def test_patterns_and_splits_are_seen(tmp_path, images, masks, splits):
    for split in splits or ("",):
        for number in range(3):
            holes = {"split": split, "name": f"{split}a1_{number}"}
            picture(tmp_path / images.format(**holes))
            mask(tmp_path / masks.format(**holes))
    card, read = made(tmp_path)
    usual = {"training": "train", "validation": "val", "valid": "val",
             "train2017": "train", "val2017": "val"}  # fmt: skip
    assert read == {usual.get(split, split): 3 for split in splits or ("train",)}
    assert next(iter(card.splits.values())).images == images
    assert card.masks[0].files == masks
    assert card.class_names == ["id 0", "id 1", "id 2"]


def test_pictures_of_several_endings(tmp_path):
    for name in ("a.jpg", "b.png", "c.jpg"):
        picture(tmp_path / "images" / name)
        mask(tmp_path / "masks" / f"{name[0]}.png")
    card, read = made(tmp_path)
    assert read == {"train": 3} and card.splits["train"].images == "images/{name}.{ending}"


def test_the_last_tenth_is_held_out(tmp_path):
    for number in range(25):
        picture(tmp_path / "images" / f"{number:03d}.jpg")
        mask(tmp_path / "masks" / f"{number:03d}.png")
    card, read = made(tmp_path)
    assert read == {"train": 23, "val": 2}
    assert [pair.image.stem for pair in card.pairs("val")] == ["023", "024"]
    assert (tmp_path / "val.txt").read_text() == "images/023.jpg\nimages/024.jpg\n"


def test_masks_that_the_pattern_of_the_pictures_fits_need_lists(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
        mask(tmp_path / f"{name}_mask.png")
    (tmp_path / "train.txt").write_text("mine")
    with pytest.raises(CardError, match=r"fits the mask a_mask\.png.*train\.txt"):
        write_card(tmp_path)
    assert (tmp_path / "train.txt").read_text() == "mine"


@pytest.mark.parametrize("ids", [(*range(21), 255), range(34), range(40)])
def test_many_ids_are_no_lossy_masks(tmp_path, ids):
    picture(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", ids)
    card, _ = made(tmp_path)
    assert card.masks[0].code.kind == "ids"
    assert card.class_names == [f"id {number}" for number in ids if number != 255]


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ((0, 255), {0: 0, 255: 1}, ["background", "object"]),
        ((0, 1, 5, 255), {0: 0, 1: 1, 5: 2, 255: IGNORE}, ["id 0", "id 1", "id 5"]),
        ((7, 9), {7: 0, 9: 1}, ["id 7", "id 9"]),
    ],
)
def test_values_of_masks(tmp_path, values, labels, names):
    picture(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", values)
    card, _ = made(tmp_path)
    assert card.class_names == names and card.masks[0].code.labels == labels


def test_minus_one_colours_palettes_and_lossy_masks(tmp_path):
    picture(tmp_path / "n/images/a.jpg")
    mask(tmp_path / "n/masks/a.npy", (-1, 0, 1))
    assert made(tmp_path / "n")[0].masks[0].code.labels == {-1: IGNORE, 0: 0, 1: 1}
    picture(tmp_path / "c/images/a.jpg")
    save(tmp_path / "c/masks/a.png", np.resize(np.array([1, 2, 3, 9, 9, 9], np.uint8), (*SIZE, 3)))
    code = made(tmp_path / "c")[0].masks[0].code
    assert code.kind == "colors" and color_key((9, 9, 9)) in code.labels
    picture(tmp_path / "p/images/a.jpg")
    painted = Image.fromarray(np.resize(np.array([0, 1], np.uint8), SIZE))
    painted.putpalette([10, 20, 30, 40, 50, 60])
    (tmp_path / "p/masks").mkdir()
    painted.save(tmp_path / "p/masks/a.png")
    assert made(tmp_path / "p")[0].palette.tolist() == [[10, 20, 30], [40, 50, 60]]
    save(tmp_path / "j/images/a.jpg", np.zeros((64, 64, 3), np.uint8))
    rows, columns = np.indices((64, 64))
    disc = np.where(np.hypot(rows - 30, columns - 30) < 20, 255, 0).astype(np.uint8)
    (tmp_path / "j/masks").mkdir()
    Image.fromarray(disc).save(tmp_path / "j/masks/a.jpg", quality=60)
    assert made(tmp_path / "j")[0].masks[0].code.kind == "threshold"


def test_labelme(tmp_path):
    for number in range(12):
        picture(tmp_path / f"{number}.png")
        shapes = [{"label": name, "points": SQUARE} for name in ("Baum #1", "yes", "__ignore__")]
        (tmp_path / f"{number}.json").write_text(json.dumps({"shapes": shapes}))
    card, read = made(tmp_path)
    assert card.class_names == ["background", "Baum #1", "yes"] and sum(read.values()) == 12
    code = card.masks[0].code
    assert code.background == 0 and code.labels["__ignore__"] == IGNORE
    text = (tmp_path / "card.yaml").read_text()
    assert all(line.startswith("#") for line in text.splitlines()[:3])
    assert "Polygons of LabelMe" in text and "fassd data check" in text


@pytest.mark.parametrize("file", ["annotations/instances_{split}.json", "{split}/_coco.json"])
def test_coco(tmp_path, file):
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.jpg")
        path = tmp_path / file.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [{"id": 3, "name": "cell"}, {"id": 4, "name": "unused"}]
        path.write_text(json.dumps({
            "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
            "categories": categories,
            "annotations": [{"image_id": 1, "category_id": 3, "segmentation": [FLAT]}],
        }))  # fmt: skip
        shutil.copy(path, path.with_name(f"keypoints_{split}.json"))
    (tmp_path / "other.json").write_text("[1, 2]")
    card, read = made(tmp_path)
    assert read == {"train": 1, "val": 1} and card.class_names == ["background", "cell"]
    assert card.masks[0].files == file


def test_a_file_that_cannot_be_read_is_left_to_the_check(tmp_path):
    for name, text in (("a", '{"shapes": ['), ("b", json.dumps({"shapes": [
        {"label": "cell", "points": SQUARE}
    ]}))):  # fmt: skip
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(text)
    assert made(tmp_path, errors=1)[0].class_names == ["background", "cell"]


def test_a_mask_that_cannot_be_read_is_left_to_the_check(tmp_path):
    for name in "ab":
        picture(tmp_path / f"images/{name}.jpg")
        mask(tmp_path / f"masks/{name}.png")
    (tmp_path / "masks/a.png").write_bytes(b"nothing")
    assert made(tmp_path, errors=1)[0].class_names == ["id 0", "id 1", "id 2"]


def test_of_many_files_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(newcard, "MOST_LOOKED_AT", 2)
    for name in "abc":
        picture(tmp_path / f"{name}.png")
        shapes = [{"label": "cell", "points": SQUARE}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"shapes": shapes}))
    made(tmp_path)
    assert "# The classes are those of 2 of the files." in (tmp_path / "card.yaml").read_text()


BOMB = f"a: &a {'x' * 60_000}\nnames: [{', '.join(['*a'] * 1000)}]\n"


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data.yaml", "names: [cell, 'no']\nnc: 2\n", ["background", "cell", "no"]),
        ("data.yaml", "names: {0: cell, 1: wall}\n", ["background", "cell", "wall"]),
        ("classes.txt", "cell\nwall\n", ["background", "cell", "wall"]),
        ("readme.md", "", ["background", "class 1"]),
        ("a.yaml", "names: 3\n", ["background", "class 1"]),
        ("a.yaml", 'names: {"²": a, 1: [b], 1.5: c}\n', ["background", "class 1"]),
        ("a.yaml", BOMB, ["background", "class 1"]),
    ],
)
def test_yolo(tmp_path, file, text, names):
    (tmp_path / file).write_text(text)
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}/a.jpg")
        (tmp_path / f"labels/{split}").mkdir(parents=True)
        (tmp_path / f"labels/{split}/a.txt").write_text("1 0.1 0.1 0.9 0.1 0.5 0.9\n")
    card, read = made(tmp_path)
    assert read == {"train": 1, "val": 1} and card.class_names == names
    assert card.masks[0].files == "labels/{split}/{name}.txt"


def test_names_that_are_no_text_are_an_error_with_their_file(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("1 0.1 0.1 0.9 0.1 0.5 0.9\n")
    (tmp_path / "classes.txt").write_bytes("Bäume\n".encode("latin-1"))
    with pytest.raises(CardError, match=r"classes\.txt: cannot be read as text"):
        write_card(tmp_path)


@pytest.mark.parametrize("splits", [("",), ("train/", "val/")])
def test_pictures_without_labels_are_counted_and_not_listed(tmp_path, splits):
    for split in splits:
        for name in "abc":
            picture(tmp_path / f"{split}images/{name}.jpg")
        mask(tmp_path / f"{split}masks/a.png")
    found = write_card(tmp_path)
    assert (found.pairs, found.unpaired) == (len(splits), 2 * len(splits))
    report = check_card(load_card(tmp_path))
    assert report.errors == [] and [split.read for split in report.splits] == [1] * len(splits)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures"),
        ({"a.jpg": None}, "none of its 1 pictures, such as a.jpg, has labels"),
        ({"a/x/1.jpg": None, "a/masks/1.png": (0, 1), "2.jpg": None, "masks/2_m.png": (0, 1)},
         "no pattern describes the paths of its 2 pictures"),
        ({"images/a.jpg": None, "masks/a.png": (3,)}, "have 1 values; classes are 2 to 255"),
        ({"images/a.jpg": None, "masks/a.png": b"nothing"}, "masks/a.png: is not a picture"),
        ({"a.jpg": None, "a.json": b"{}"}, "a.json: is not a file of LabelMe"),
        ({"a.jpg": None, "a.txt": b"hello world"}, "a.txt: line 1: must begin with a"),
    ],
)  # fmt: skip
def test_what_cannot_be_described(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            picture(tmp_path / name)
        elif isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            mask(tmp_path / name, content)
    with pytest.raises((CardError, ImageError)) as caught:
        write_card(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "card.yaml").exists()


def test_a_card_is_not_overwritten(tmp_path):
    picture(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    write_card(tmp_path)
    with pytest.raises(
        CardError, match=r"card.yaml exists already: check it with fassd data check"
    ):
        write_card(tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(CardError, match="there is no folder"):
        write_card(tmp_path / "nowhere")
