"""How the classes of a card lie in a finer list, and the labels of several cards in one."""

import numpy as np
import pytest
from data.trees import save, toy, write_card, write_tree

from fassd.data.card import CARDS, CardError
from fassd.data.cardfile import load_card
from fassd.data.dataset import SegmentationDataset
from fassd.data.groups import label_space, members_of
from fassd.io.palette import CITYSCAPES, IGNORE

FINER = [info.name for info in CITYSCAPES]
CAMVID = {
    "sky": "sky",
    "building": "building wall",
    "pole": "pole",
    "road": "road",
    "pavement": "sidewalk",
    "tree": "vegetation terrain",
    "sign symbol": "traffic_light traffic_sign",
    "fence": "fence",
    "car": "car truck bus train",
    "pedestrian": "person",
    "bicyclist": "rider motorcycle bicycle",
}
COVERING = {
    "name: floor,": "name: floor, covers: [road, sidewalk],",
    "name: wall,": "name: wall, covers: wall,",
    "name: lamp,": "name: lamp, covers: [traffic light, pole],",
}


@pytest.mark.parametrize("name", ["camvid", "camvid_color"])
def test_camvid_lies_in_cityscapes_each_class_of_which_it_covers_once(name):
    card = load_card(name, CARDS)
    named = [[FINER[index] for index in group] for group in members_of(card, FINER, "it")]
    expected = [[n.replace("_", " ") for n in names.split()] for names in CAMVID.values()]
    assert list(CAMVID) == card.class_names and named == expected
    assert sorted(name for group in named for name in group) == sorted(FINER)


def test_cards_without_covers_are_as_before(tmp_path):
    card = toy(tmp_path)
    assert card.covers == ()
    space = label_space([card])
    assert space.cards == (card,) and space.groups == () and space.classes == card.classes


def test_labels_of_a_card_become_classes_and_groups_of_the_first(tmp_path):
    streets = load_card("cityscapes", CARDS)
    card = load_card(write_card(tmp_path, COVERING))
    written = write_tree(card, tmp_path)
    space = label_space([streets, load_card("camvid", CARDS), card])
    assert [[FINER[i] for i in group] for group in space.groups[-2:]] == [
        ["road", "sidewalk"],
        ["traffic light", "pole"],
    ]
    assert len(space.groups) == 5 + 2  # CamVid's, of which traffic light and sign is another one
    assert space.classes == streets.classes and space.cards[0] == streets
    table = np.full(256, IGNORE)
    table[:3] = 19 + 5, FINER.index("wall"), 19 + 6
    for sample in SegmentationDataset(space.cards[2], "train"):
        np.testing.assert_array_equal(sample.labels, table[written[sample.path]])
    assert SegmentationDataset(card, "train")[0].labels.max() in (2, IGNORE)  # the card itself


def test_the_same_classes_in_another_order_are_themselves(tmp_path):
    """Also where both cards say what they cover, as the two of CamVid."""
    first, other = load_card("camvid", CARDS), load_card("camvid_color", CARDS)
    assert label_space([first, other]).groups == ()
    card = load_card(write_card(tmp_path / "a"))
    text = (tmp_path / "a/card.yaml").read_text().splitlines()
    text[3], text[5] = text[5], text[3]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/card.yaml").write_text("\n".join(text))
    space = label_space([card, load_card(tmp_path / "b")])
    assert space.cards[1].masks[0].code.labels == card.masks[0].code.labels
    assert space.cards[1].class_names == card.class_names


def test_a_threshold_is_written_in_the_list_too(tmp_path):
    text = """
name: halves
classes: [{name: dark, covers: road}, {name: bright, covers: [sky, car]}]
splits: {train: train}
images: "{split}/{name}.png"
masks: {files: "{split}/masks/{name}.png", values: threshold}
"""
    (tmp_path / "card.yaml").write_text(text)
    save(tmp_path / "train/a.png", np.zeros((2, 2, 3), np.uint8))
    save(tmp_path / "train/masks/a.png", np.array([[0, 255], [127, 128]], np.uint8))
    space = label_space([load_card("cityscapes", CARDS), load_card(tmp_path)])
    assert space.groups == ((FINER.index("sky"), FINER.index("car")),)
    labels = SegmentationDataset(space.cards[1], "train")[0].labels
    assert labels.tolist() == [[0, 19], [0, 19]]


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (
            {"name: lamp,": "name: lamp, covers: [pole, wall],"},
            r"card.yaml: classes\[2\]: 'wall' stands twice, in the classes 'wall' and 'lamp'",
        ),
        (
            {"name: lamp,": "name: lamp, covers: [pole, pole],"},
            r"card.yaml: classes\[2\]: 'pole' stands twice, in the classes 'lamp' and 'lamp'",
        ),
        ({"name: wall,": "name: wall, covers: [],"}, r"classes\[1\].covers must have at least 1"),
        ({"name: wall,": "name: wall, covers: 5,"}, r"classes\[1\].covers\[0\] must be a valid"),
        ({"name: wall,": "name: wall, covers: [5],"}, r"classes\[1\].covers\[0\] must be a valid"),
    ],
)
def test_bad_maps_name_card_and_class(tmp_path, replace, message):
    with pytest.raises(CardError, match=message):
        load_card(write_card(tmp_path, replace))


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (
            {**COVERING, "name: lamp,": "name: lamp, covers: lorry,"},
            r"card 'toy' \(.*card.yaml\): its class 'lamp' covers 'lorry', which is none of the 19 "
            "classes of card 'cityscapes': 'road', ",
        ),
        (
            {"name: floor,": "name: floor, covers: road,"},  # the others are themselves
            r"card 'toy' \(.*card.yaml\): its class 'lamp' is 'lamp', which is none of",
        ),
        ({}, r"its class 'floor' is 'floor', which is none of .*\(the key 'covers' of a class"),
    ],
)
def test_what_is_not_in_the_list_names_card_and_class(tmp_path, replace, message):
    card = load_card(write_card(tmp_path, replace))
    with pytest.raises(CardError, match=message):
        label_space([load_card("cityscapes", CARDS), card])


def test_more_labels_than_8_bits_hold(tmp_path):
    names = [f"c{index}" for index in range(254)]
    head = 'name: many\nsplits: {train: train}\nimages: "{split}/{name}.png"\n'
    head += 'masks: {files: "{split}/{name}_mask.png", values: index}\n'
    (tmp_path / "many.yaml").write_text(f"{head}classes: [{', '.join(names)}]\n")
    groups = "[{name: a, covers: [c0, c1]}, {name: b, covers: [c2, c3]}, {name: c, covers: c4}]"
    (tmp_path / "few.yaml").write_text(f"{head.replace('many', 'few')}classes: {groups}\n")
    many, few = load_card(tmp_path / "many.yaml"), load_card(tmp_path / "few.yaml")
    with pytest.raises(CardError, match=r"254 classes of card 'many' and the 2 groups .* 255"):
        label_space([many, few])
