import numpy as np
import pytest
from torch import nn

from fassd.io.palette import CITYSCAPES, class_names, colorize, labels_by_name, overlay, palette
from fassd.models import NetworkInfo
from fassd.models.info import remember


def test_cityscapes_classes_and_colors():
    assert len(CITYSCAPES) == 19
    by_name = {info.name: info.color for info in CITYSCAPES}
    assert by_name["sky"] == (70, 130, 180)
    assert by_name["road"] == (128, 64, 128)
    assert [info.name for info in CITYSCAPES][10:14] == ["sky", "person", "rider", "car"]
    np.testing.assert_array_equal(palette(), [info.color for info in CITYSCAPES])
    assert class_names(19)[0] == "road"
    assert class_names(2) == ["class 0", "class 1"]


@pytest.mark.parametrize("count", [1, 2, 11, 18, 20, 150, 256, 300, 70_000])
def test_palette_of_any_count_is_distinct_and_never_black(count):
    colors = palette(count)
    assert colors.shape == (count, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == count
    assert colors.any(1).all()
    if count != 20:  # a class keeps its colour whatever the count
        np.testing.assert_array_equal(colors[:20], palette(20)[:count])


@pytest.mark.parametrize("count", [0, -1, 2**24])
def test_palette_refuses_impossible_counts(count):
    with pytest.raises(ValueError, match="num_classes must be from 1"):
        palette(count)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_colorize_paints_classes_and_leaves_ignored_black(dtype):
    labels = np.array([[0, 10, 255], [13, 255, 18]], dtype)
    painted = colorize(labels)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [
        [[128, 64, 128], [70, 130, 180], [0, 0, 0]],
        [[0, 0, 142], [0, 0, 0], [119, 11, 32]],
    ]


def test_colorize_knows_a_class_255_and_16_bit_labels():
    colors = palette(300)
    labels = np.array([[255, 299]], np.uint16)
    np.testing.assert_array_equal(colorize(labels, colors), colors[[[255, 299]]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[19]]), "labels holds 19, but there are colours for 0 to 18"),
        (np.array([[-3]]), "labels holds -3"),
        (np.zeros((2, 2)), "float64 of shape"),
        (np.zeros(4, np.uint8), r"\(H, W\)"),
    ],
)
def test_colorize_names_what_is_wrong(labels, message):
    with pytest.raises(ValueError, match=message):
        colorize(labels)


def test_overlay_mixes_by_opacity():
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[10, 10, 255]], np.uint8)
    np.testing.assert_array_equal(overlay(image, labels, 0), image)
    assert overlay(image, labels, 1).tolist() == [[[70, 130, 180], [70, 130, 180], [100] * 3]]
    assert overlay(image, labels, 0.5).tolist() == [[[85, 115, 140], [85, 115, 140], [100] * 3]]


def test_overlay_is_exact_at_both_ends_for_every_level():
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    labels = np.zeros((1, 256), np.uint8)
    white = np.full((1, 3), 255, np.uint8)
    np.testing.assert_array_equal(overlay(image, labels, 0.0, white), image)
    assert (overlay(image, labels, 1.0, white) == 255).all()


def test_overlay_names_what_is_wrong():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"opacity must be from 0 to 1, got 1\.5"):
        overlay(image, np.zeros((2, 3), np.uint8), 1.5)
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(3, 2, 3\)"):
        overlay(image, np.zeros((3, 2), np.uint8))


def named(*names):
    network = nn.Identity()
    remember(network, NetworkInfo("fassd_net", 2, names))
    return network


@pytest.mark.parametrize(
    ("own", "data", "labels"),
    [
        (("a", "b", "c"), ("c", "a", "b"), [1, 2, 0]),
        (("a", "b"), ("a", "b"), None),
        ((), ("b", "a"), None),  # unknown
        (("class 0", "class 1"), ("b", "a"), None),  # numbers alone
        (("class 0", "class 1"), ("class 1", "class 0"), [1, 0]),
    ],
)
def test_labels_are_matched_by_name(own, data, labels):
    assert labels_by_name(named(*own), data) == labels


@pytest.mark.parametrize(
    ("own", "data", "told"),
    [
        (("a", "b"), ("a", "c"), r"network's classes .*: only the network has 'b'; .* has 'c'$"),
        (("a", "b"), ("a", "b", "c"), "has 2 classes, .* have 3: only the data has 'c'$"),
        (("a", "B"), ("a", "b"), "only the network has 'B'; only the data has 'b'$"),
        (("a", "a"), ("a", "b"), "only the data has 'b'$"),
        (("a", "a", "b"), ("a", "b", "a"), "a name stands twice$"),
        (tuple("abcdefghi"), tuple("ijklmnopq"), r"has 'a', 'b', 'c', 'd', 'e', 'f' and 2 more;"),
    ],
)
def test_classes_that_differ_are_named(own, data, told):
    with pytest.raises(ValueError, match=told):
        labels_by_name(named(*own), data)
