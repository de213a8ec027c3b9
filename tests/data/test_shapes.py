import base64
import io
import json
import math
import os

import numpy as np
import pytest
from data.trees import save
from PIL import Image

from fassd.data import coco, draw, labelme, yolo
from fassd.data.card import CardError
from fassd.data.cardfile import load_card
from fassd.data.check import check_card
from fassd.data.dataset import SegmentationDataset, examine_pair
from fassd.data.groups import label_space
from fassd.io.images import ImageError
from fassd.io.palette import IGNORE

SIZE = 20, 30  # of the pictures
SQUARE = [[4, 3], [14, 3], [14, 13], [4, 13]]
INNER = [[6, 5], [9, 5], [9, 8], [6, 8]]

CARD = """
name: garden
classes: [{name: ground, ids: 9}, {name: tree, labels: [Tree, bush], ids: [0, 2]}, \
{name: path, ids: 1}]
splits: {train: train}
images: "{split}/{name}.png"
masks:
  files: "FILES"
  values: VALUES
  background: ground
  ignore: IGNORED
"""

FILES = {"labelme": "{split}/{name}.json", "coco": "{split}.json", "yolo": "{split}/{name}.txt"}


def square(label="path", points=SQUARE, **more):
    return {"label": label, "points": points, **more}


def garden(folder, kind, content, replace=None):
    """A card with one picture, and the file of its shapes: text, bytes, or what becomes JSON."""
    text = CARD.replace("FILES", FILES[kind]).replace("VALUES", kind)
    text = text.replace("IGNORED", "[7]" if kind == "yolo" else "[blur]")
    for old, new in (replace or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "card.yaml").write_text(text)
    save(folder / "train" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    content = json.dumps(content) if isinstance(content, (dict, list)) else content
    file = folder / FILES[kind].format(split="train", name="a")
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_card(folder / "card.yaml")


def read(card):
    return SegmentationDataset(card, "train")[0].labels


def box(rows, columns, label, over=0):
    labels = np.full(SIZE, over, np.uint8)
    labels[slice(*rows), slice(*columns)] = label
    return labels


def error_of(card):
    with pytest.raises(ImageError) as caught:
        read(card)
    text = str(caught.value)
    assert str(card.pairs("train")[0].mask) in text and len(text) < 1000 and "\n" not in text
    return text


# ---------------------------------------------------------------------------------------- LabelMe


def test_labelme_later_shapes_lie_on_top(tmp_path):
    file = {"shapes": [square(), square("bush", INNER), square("ground", [[4, 3], [6, 3], [6, 5]])]}
    labels = read(garden(tmp_path, "labelme", {**file, "imageHeight": 20, "imageWidth": 30}))
    expected = box((3, 13), (4, 14), 2)
    expected[5:8, 6:9] = 1
    expected[3, 5] = 0  # the pixels with their centre inside of the triangle
    expected[3, 4] = expected[4, 5] = 0
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8


def test_labelme_rectangles_circles_and_masks(tmp_path):
    pixels = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels * 255).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    found = [
        square("Tree", [[14, 13], [4, 3]], shape_type="rectangle"),
        square("path", [[22, 10], [22, 15]], shape_type="circle"),
        square("blur", [[1, 17], [3, 18]], shape_type="mask", mask=mask),
    ]
    labels = read(garden(tmp_path, "labelme", {"shapes": found}))
    np.testing.assert_array_equal(labels[:, :15][:16], box((3, 13), (4, 14), 1)[:16, :15])
    rows, columns = np.indices(SIZE) + 0.5
    round_ = np.hypot(rows - 10, columns - 22)
    assert (labels[round_ < 4.9] == 2).all() and not (labels[round_ > 5.1] == 2).any()
    np.testing.assert_array_equal(labels[17:19, 1:4], np.where(pixels, IGNORE, 0))


def test_labelme_a_mask_may_leave_the_picture(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 6), 255, np.uint8)).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    for (x, y), rows, columns in (((-2, -3), (0, 5), (0, 4)), ((28, 17), (17, 20), (28, 30))):
        points = [[x, y], [x + 5, y + 7]]
        card = garden(
            tmp_path, "labelme", {"shapes": [square(points=points, shape_type="mask", mask=mask)]}
        )
        np.testing.assert_array_equal(read(card), box(rows, columns, 2))
        assert "shapes[0] ('path', x " in check_card(card).warnings[0].message


def test_labelme_without_shapes_is_all_background(tmp_path):
    card = garden(tmp_path, "labelme", {"shapes": []}, {"background: ground": "background: ignore"})
    assert (read(card) == IGNORE).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_in_other_letters_and_encodings(tmp_path, encoding):
    text = json.dumps({"shapes": [square("bäume ")]}, ensure_ascii=False)
    card = garden(tmp_path, "labelme", text.encode(encoding), {"bush": "bäume"})
    np.testing.assert_array_equal(read(card), box((3, 13), (4, 14), 1))


# ------------------------------------------------------------------------------------------- COCO


def annotated(*segmentations, categories=("path",), **picture):
    picture = {"id": 5, "file_name": "a.png", "height": 20, "width": 30, **picture}
    return {
        "images": [picture],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"image_id": 5, "category_id": 10 + i % len(categories), "segmentation": each}
            for i, each in enumerate(segmentations)
        ],
    }


FLAT, INNER_FLAT = ([x for point in points for x in point] for points in (SQUARE, INNER))
RUNS = {"size": [20, 30], "counts": [4 * 20 + 3, 10, 10, 10, 600 - 113]}  # of two columns


def test_coco_polygons_and_runs(tmp_path):
    card = garden(tmp_path, "coco", annotated([FLAT], RUNS, categories=("path", "Tree")))
    expected = box((3, 13), (4, 14), 2)
    expected[3:13, 4:6] = 1
    np.testing.assert_array_equal(read(card), expected)


def test_coco_packed_runs(tmp_path):
    runs = annotated({**RUNS, "counts": "c2::0m>"})  # as pycocotools wrote them
    np.testing.assert_array_equal(read(garden(tmp_path, "coco", runs)), box((3, 13), (4, 6), 2))


@pytest.mark.parametrize("holes", [False, True])
def test_coco_several_polygons(tmp_path, holes):
    replace = {"background: ground": f"background: ground\n  holes: {str(holes).lower()}"}
    apart = [20, 3, 25, 3, 25, 8, 20, 8]
    card = garden(tmp_path, "coco", annotated([FLAT, INNER_FLAT, apart]), replace)
    expected = box((3, 13), (4, 14), 2)
    expected[3:8, 20:25] = 2
    if holes:
        expected[5:8, 6:9] = 0
    np.testing.assert_array_equal(read(card), expected)


def test_coco_pictures_are_found_by_their_path_or_name(tmp_path):
    card = garden(tmp_path, "coco", annotated([FLAT], file_name="C:\\mine\\a.png"))
    assert read(card)[5, 5] == 2
    two = annotated([FLAT], file_name="train/a.png")
    two["images"].append({"id": 6, "file_name": "val/a.png", "height": 2, "width": 3})
    assert read(garden(tmp_path, "coco", two))[5, 5] == 2
    two["images"][0]["file_name"] = "old/a.png"
    assert "lists several pictures 'a.png'" in error_of(garden(tmp_path, "coco", two))
    other = annotated([FLAT], file_name="b.png")
    assert "does not list the picture" in error_of(garden(tmp_path, "coco", other))


def test_coco_the_name_alone_is_not_that_of_another_picture(tmp_path):
    card = garden(tmp_path, "coco", annotated([FLAT], file_name="val/a.png"))
    assert read(card)[5, 5] == 2  # there is no such file: it was moved
    save(tmp_path / "val" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    assert "does not list the picture" in error_of(card)
    (tmp_path / "val" / "a.png").unlink()
    (tmp_path / "val" / "a.png").symlink_to(tmp_path / "train" / "a.png")
    assert read(card)[5, 5] == 2


def test_coco_damaged_files_are_read_once(tmp_path, monkeypatch):
    count = []
    real = coco.read_json_text
    monkeypatch.setattr(coco, "read_json_text", lambda *a: (count.append(a), real(*a))[1])
    card = garden(tmp_path, "coco", '{"images": [')
    assert error_of(card) == error_of(card) and len(count) == 1


def test_coco_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    count = []
    real = coco.read_json_text
    monkeypatch.setattr(coco, "read_json_text", lambda *a: (count.append(a), real(*a))[1])
    card = garden(tmp_path, "coco", annotated([FLAT]))
    dataset = SegmentationDataset(card, "train")
    assert dataset[0].labels[5, 5] == dataset[0].labels[5, 5] == 2 and len(count) == 1
    (tmp_path / "train.json").write_text(json.dumps(annotated([INNER_FLAT])))
    assert dataset[0].labels[3, 4] == 0 and len(count) == 2


# ------------------------------------------------------------------------------------------- YOLO


def test_yolo_polygons(tmp_path):
    def line(number, points):
        return " ".join([number, *(f"{x / 30:.6f} {y / 20:.6f}" for x, y in points)])

    text = f"{line('1', SQUARE)}\r\n\r\n{line('2', INNER)}\r\n{line('7', [[0, 0], [4, 0], [4, 2]])}"
    labels = read(garden(tmp_path, "yolo", "\ufeff" + text))
    expected = box((3, 13), (4, 14), 2)
    expected[5:8, 6:9] = 1
    np.testing.assert_array_equal(labels[3:], expected[3:])
    assert (labels[:2] == IGNORE).sum() == 4
    assert not read(garden(tmp_path, "yolo", "")).any()


# -------------------------------------------------------------------------------- classes and size


def test_unknown_classes_are_named_with_their_shapes(tmp_path):
    found = [square(), *[square("tre")] * 3, square("car")]
    card = garden(tmp_path, "labelme", {"shapes": found}, {"[Tree, bush]": "[tree]"})
    text = error_of(card)
    assert text.endswith(
        "the classes are not in the card: 'tre' of shapes[1] and 2 more (did you mean 'tree'?); "
        "'car' of shapes[4]; known are ground, tree, path, blur"
    )
    assert [problem.message for problem in check_card(card).errors] == [text]
    assert "class is not in the card: 5 of line 1" in error_of(
        garden(tmp_path, "yolo", "5 0 0 1 0 1 1")
    )


def test_unlisted_classes_can_be_ignored(tmp_path):
    replace = {"background: ground": "background: ground\n  unlisted: ignore"}
    card = garden(tmp_path, "labelme", {"shapes": [square("car")]}, replace)
    np.testing.assert_array_equal(read(card), box((3, 13), (4, 14), IGNORE))


def test_shapes_that_leave_the_picture_are_remarks(tmp_path):
    out = [[-8, 3], [14, 3], [14, 13], [-8, 13]]
    found = [square(), square(points=out), square(points=[[-0.9, -1], [31, 0], [31, 21]])]
    card = garden(tmp_path, "labelme", {"shapes": [*found, *[found[1]] * 4]})
    assert check_card(card).warnings[0].message == (
        f"{tmp_path}/train/a.json: shapes[1] ('path', x -8 to 14, y 3 to 13), "
        "shapes[3] ('path', x -8 to 14, y 3 to 13), shapes[4] ('path', x -8 to 14, y 3 to 13) "
        "and 2 more leave the picture of 20x30 (height x width)"
    )
    assert (read(card)[3:13, :14] == 2).all()


def test_shapes_without_area_are_remarks(tmp_path):
    found = [square(), square("Tree", [[1, 1]], shape_type="point"), square(shape_type="line")]
    messages = [
        p.message for p in check_card(garden(tmp_path, "labelme", {"shapes": found})).warnings
    ]
    assert messages[0].endswith(
        "shapes[1] ('Tree') is a point, which has no area, and so are 1 more: passed over"
    )


def test_a_file_for_another_size(tmp_path):
    card = garden(tmp_path, "labelme", {"shapes": [], "imageHeight": 30, "imageWidth": 20})
    assert "of a picture of 30x20 (height x width), but" in error_of(card)
    assert "of a picture of 20x31" in error_of(garden(tmp_path, "coco", annotated(width=31)))


def test_labels_of_another_list_of_classes(tmp_path):
    card = garden(tmp_path, "labelme", {"shapes": [square("Tree")]})
    other = load_card(tmp_path / "card.yaml")
    (tmp_path / "card.yaml").write_text(
        (tmp_path / "card.yaml").read_text().replace("{name: ground, ids: 9}, ", "")
        .replace("{name: path, ids: 1}", "{name: path, ids: 1}, {name: ground, ids: 9}")
    )  # fmt: skip
    space = label_space([load_card(tmp_path / "card.yaml"), other])
    labels = SegmentationDataset(space.cards[1], "train")[0].labels
    np.testing.assert_array_equal(labels, np.array([2, 0, 1])[read(card)])


# -------------------------------------------------------------------------------------- wrong cards


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("labelme", "  background: ground\n", "", "the key 'background' is missing"),
        ("labelme", "background: ground", "background: sky",
         "background must be ground, tree, path, ignore, got 'sky'"),
        ("labelme", "background: ground", "background: ground\n  holes: true",
         "'holes' goes with 'values: coco' only, not with 'labelme'"),
        ("coco", "background: ground", "background: ground\n  holes: 1",
         r"masks\[0\].holes must be a valid boolean, got 1"),
        ("labelme", "ignore: [blur]", "ignore: [bush]", "ignore: 'bush' is the class 'tree'"),
        ("labelme", "ignore: [blur]", "ignore: [3]", "'ignore' has 3, no key of 'values: labelme'"),
        ("yolo", "ignore: [7]", "ignore: [blur]", "'ignore' has 'blur', no key of 'values: yolo'"),
        ("yolo", ", ids: 1}", "}", "'values: yolo' needs ids, but 'path' has none"),
        ("labelme", "[Tree, bush]", "[path]", "'path' stands twice, in the classes 'tree' and"),
        ("labelme", "[Tree, bush]", "7", r"labels\[0\] must be a valid string, got 7"),
    ],
)  # fmt: skip
def test_wrong_cards(tmp_path, kind, old, new, message):
    with pytest.raises(CardError, match=message):
        garden(tmp_path, kind, "", {old: new})


def test_masks_know_no_background(tmp_path):
    with pytest.raises(CardError, match="'background' goes with 'values: labelme or coco or yolo'"):
        garden(tmp_path, "labelme", "", {"values: labelme": "values: index"})


# -------------------------------------------------------------------------------------- wrong files

LONG = "x" * 10**6
GOOD = {"shapes": [square()]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of LabelMe: Invalid JSON: EOF"),
        (json.dumps(GOOD)[:-10], "is not a file of LabelMe: "),
        ("[" * 10**5, "Invalid JSON: recursion limit exceeded"),
        ('{"shapes": [' + "9" * 10**5 + "]}", "Invalid JSON: number out of range"),
        ('{"shapes": "\xe9"}'.encode("latin-1"), "it is not UTF-8 text (byte 12)"),
        (b"\x89PNG\r\n\x1a\n", "it is not UTF-8 text"),
        ([GOOD], "is not a file of LabelMe: "),
        ({}, "shapes is missing"),
        ({"shapes": {}}, "shapes must be a valid array"),
        ({"shapes": [square(), 3]}, "shapes[1]"),
        ({"shapes": [{"points": SQUARE}]}, "shapes[0].label is missing"),
        ({"shapes": [square(LONG)]}, "shapes[0].label"),
        ({"shapes": [square(3)]}, "shapes[0].label"),
        ({"shapes": [square(points=[[1, 2, 3]])]}, "shapes[0].points[0]"),
        ({"shapes": [square(points="no")]}, "shapes[0].points"),
        ({"shapes": [square(points=[[1, 2], [3, 4]])]}, "shapes[0]: a polygon must have at"),
        ({"shapes": [square(points=[])]}, "shapes[0]: a polygon must have at"),
        ({"shapes": [square(shape_type="spline")]}, "shapes[0].shape_type"),
        ({"shapes": [square(shape_type="circle")]}, "a circle must have 2 points, has 4"),
        ({"shapes": [square(points=[[0, 0], [9e5, 9e5]], shape_type="circle")]}, "at most 1,000"),
        ({"shapes": [square(), square(points=[*SQUARE[:3], [1e30, 4]])]},
         "shapes[1]: the x of corner 3 is 1e+30; coordinates must be numbers of at most"),
        ({"shapes": [square(points=[*SQUARE, [1, math.nan]])]}, "shapes[0].points[4][1]"),
        ({"shapes": [square(points=[*SQUARE, [math.inf, 1]])]}, "shapes[0].points[4][0]"),
        ({"shapes": [square(points=[[0, 0], [2, 2]], shape_type="mask")]}, "shapes[0]: its mask"),
        ({"shapes": [square(points=[[0, 0], [2, 2]], shape_type="mask", mask="ä")]},
         "shapes[0]: its mask"),
        ({"shapes": [], "imageHeight": "20", "imageWidth": 30}, "imageHeight"),
    ],
)  # fmt: skip
def test_wrong_files_of_labelme(tmp_path, content, message):
    assert message in error_of(garden(tmp_path, "labelme", content))


def test_a_mask_of_another_size_than_its_points_is_not_decoded(tmp_path):
    stream = io.BytesIO()
    Image.new("1", (10000, 10000)).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    found = square(points=[[0, 0], [2, 2]], shape_type="mask", mask=mask)
    text = error_of(garden(tmp_path, "labelme", {"shapes": [found]}))
    assert "shapes[0]: its mask has 10000x10000 pixels, its points 3x3" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is not a file of COCO: must be a mapping"),
        ({"images": []}, "of COCO: categories is missing"),
        ({**annotated(), "images": [{"id": 1}]}, "images[0].file_name is missing"),
        ({**annotated(), "annotations": None}, "annotations must be a valid list, got None"),
        ({**annotated(), "annotations": [7]}, "annotations[0] must be a mapping, got 7"),
        ({**annotated(), "annotations": [{"image_id": 6}]}, "got 6"),
        ({**annotated(), "categories": 2 * annotated()["categories"]},
         "categories[1] has the id 10 of categories[0]"),
        ({**annotated(), "images": [
            {**annotated()["images"][0], "id": i} for i in (5, 6)
         ]}, "images[1] has the file_name 'a.png' of images[0]"),
        ({**annotated(), "annotations": [{"image_id": 5, "category_id": 3, "segmentation": []}]},
         "annotations[0]: category_id 3 is not among the categories"),
        (annotated([]), "annotations[0]: segmentation must be a list of polygons or run lengths"),
        (annotated(None), "annotations[0]: segmentation must be"),
        (annotated([FLAT], [[1, 2, 3]]), "annotations[1].segmentation[0]: must be pairs of coord"),
        (annotated([["a", "b"] * 3]), "annotations[0].segmentation[0]: must be pairs"),
        (annotated([FLAT[:4]]), "annotations[0].segmentation[0]: a polygon must have at least 3"),
        (annotated([[*FLAT, 1, math.nan]]), "the y of corner 4 is nan"),
        (annotated([[*FLAT, 10**60, 1]]), "the x of corner 4 is 1e+60"),
        (annotated([[*FLAT, 10**70, 1]]), "a number has 71 digits"),
        (annotated({**RUNS, "size": [30, 20]}), "has the size [30, 20], but its picture [20, 30]"),
        (annotated({**RUNS, "counts": [601]}), "add up to 601 pixels, not to the 600 of 20x30"),
        (annotated({**RUNS, "counts": [300, -1]}), "run length 1 must be at least 0, got -1"),
        (annotated({**RUNS, "counts": "~~"}), "segmentation: the run lengths hold '~'"),
        (annotated({**RUNS, "counts": "T3"}), "add up to"),
        (annotated({"counts": []}), "annotations[0].segmentation: size is missing"),
        (annotated({**RUNS, "counts": [2**70]}), "annotations[0].segmentation: counts"),
    ],
)  # fmt: skip
def test_wrong_files_of_coco(tmp_path, content, message):
    assert message in error_of(garden(tmp_path, "coco", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 0 0 1 0 1 1\n1 0 0 1 0 1", "line 2: must have x and y of each corner, has 5 numbers"),
        ("1 0.5 0.5 0.2 0.2", "line 1: is a box (x, y, width, height); polygons are needed"),
        ("1 0 0", "line 1: a polygon must have at least 3 corners, has 1"),
        ("1", "line 1: a polygon must have at least 3"),
        ("tree 0 0 1 0 1 1", "line 1: must begin with a class's number, got 'tree'"),
        ("-1 0 0 1 0 1 1", "must begin with a class's number, got '-1'"),
        ("9" * 5000 + " 0 0 1 0 1 1", "must begin with a class's number"),
        ("1 0 0 1 0 1 a", "line 1: could not convert string to float: 'a'"),
        ("1 0 0 1 0 1 nan", "line 1: coordinates must be fractions of the picture, 0 to 1"),
        ("1 0 0 1 0 1 1e30", "got 1e+30"),
        ("1 0 0 1 0 1 480", "line 1: coordinates must be fractions of the picture, 0 to 1"),
        (b"1 0 0 1 0 1 \xff", "is not UTF-8 text (byte 12)"),
        ("1" + " 0.5" * 5 + LONG, "line 1: "),
    ],
)
def test_wrong_files_of_yolo(tmp_path, content, message):
    assert message in error_of(garden(tmp_path, "yolo", content))


@pytest.mark.parametrize(("kind", "reader"), [("labelme", labelme), ("coco", coco), ("yolo", yolo)])
def test_files_beyond_the_limit_are_not_read(tmp_path, monkeypatch, kind, reader):
    monkeypatch.setattr(reader, "MOST_BYTES", 100)
    card = garden(tmp_path, kind, " " * 200)
    assert "must have at most 100 bytes, has 200" in error_of(card)


def test_a_million_polygons(tmp_path):
    shape = json.dumps(square())
    text = f'{{"shapes": [{",".join([shape] * 10**6)}]}}'
    assert "has more than 100,000 shapes" in error_of(garden(tmp_path, "labelme", text))
    many = "1 0 0 1 0 1 1\n" * 10**6
    assert "must have at most 100,000 lines, has 1,000,000" in error_of(
        garden(tmp_path, "yolo", many)
    )


def test_shapes_that_cover_the_picture_too_often(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "MOST_PAINTED", 3)
    text = annotated(*[RUNS] * 4)
    assert "its shapes cover the picture more than 3 times" in error_of(
        garden(tmp_path, "coco", text)
    )
    read(garden(tmp_path, "coco", annotated(*[RUNS] * 3)))


def test_a_missing_file_of_shapes_is_told(tmp_path):
    card = garden(tmp_path, "labelme", {"shapes": []})
    (tmp_path / "train" / "a.json").unlink()
    assert "has no mask; expected" in check_card(card).errors[0].message
    (tmp_path / "train" / "a.json").mkdir()
    assert "has no mask; expected" in check_card(card).errors[0].message


@pytest.mark.parametrize("kind", ["labelme", "coco", "yolo"])
def test_damaged_files_give_labels_or_an_error_that_names_them(tmp_path, kind):
    """Bytes changed, cut out and doubled, values exchanged for those of other kinds."""
    content = {
        "labelme": json.dumps({"shapes": [square(), square("bush", INNER)], "imageHeight": 20}),
        "coco": json.dumps(annotated([FLAT, INNER_FLAT], RUNS, {**RUNS, "counts": "c2::0m>"})),
        "yolo": "1 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.2 0.2 0.4 0.2 0.4 0.4\n",
    }[kind].encode()
    odd = b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"9" * 30, b"\xff", b"[[[["
    rng = np.random.default_rng(0)
    card = garden(tmp_path, kind, content)
    pair = card.pairs("train")[0]
    outcomes = set()
    for number in range(400):
        place, length = int(rng.integers(len(content))), int(rng.integers(1, 12))
        piece = odd[number % len(odd)] if number % 2 else rng.bytes(length % 3)
        spoilt = content[:place] + piece + content[place + length :]
        pair.mask.write_bytes(spoilt)
        os.utime(pair.mask, ns=(number, number))
        try:
            labels = examine_pair(pair)[0].labels
            outcomes.add(set(np.unique(labels)) <= {0, 1, 2, IGNORE})
        except ImageError as error:
            assert str(error).startswith(f"{pair.mask}: ") and len(str(error)) < 1000
            outcomes.add("error")
    assert outcomes == {True, "error"}
