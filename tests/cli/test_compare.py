import numpy as np
import pytest
from cli.conftest import PLAIN, calibrated
from PIL import Image
from safetensors.torch import save_file
from training.fakes import street, write_streets

from fassd.cli import evaluate
from fassd.data import SegmentationDataset, load_card
from fassd.inference.segmenter import Segmenter
from fassd.io import panel
from fassd.io.images import write_image
from fassd.io.palette import CITYSCAPES, colorize, palette
from fassd.models import create_model
from fassd.training import ConfusionMatrix
from fassd.training import evaluate as evaluated


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Three generated scenes, the last without any label, and weights that vary with them."""
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, 3)
    write_image(folder / "val/labels/scene2.png", np.full((64, 128), 255, np.uint8))
    for seed, name in enumerate(("fassd_net", "fassd_net_l2")):
        weights = calibrated(name, seed=seed).state_dict()
        save_file(weights, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def compare(streets, tmp_path, succeed, monkeypatch):
    """``compare(...)`` -> stderr, and what `draw_panel` was asked to draw."""
    asked = {}

    def draw(titles, rows, legend, width):
        asked.update(titles=titles, rows=rows, legend=legend, width=width)
        return original(titles, rows, legend, width)

    original = panel.draw_panel
    monkeypatch.setattr(panel, "draw_panel", draw)

    def run(*arguments):
        usual = ("--data", streets, "-o", tmp_path / "new/panel.png", *PLAIN)
        return succeed("compare", *usual, *arguments).stderr, asked

    return run


def test_a_row_for_each_scene_and_a_column_for_each_network(streets, tmp_path, compare):
    stderr, drawn = compare(
        "--index", "2,0", "--width", 128, "--weights-dir", streets,
        "-m", "fassd_net", "-m", f"fassd_net_l2={streets}/fassd_net_l2.safetensors",
    )  # fmt: skip
    assert "random" not in stderr and "panel.png" in stderr
    assert drawn["titles"] == ["Input", "Ground truth", "FASSD-Net", "FASSD-Net-L2"]
    names = [info.name for info in CITYSCAPES]
    assert [info.name for info in drawn["legend"]] == [*names, "not labelled"]
    unlabelled, row = drawn["rows"]
    assert [tile.caption for tile in unlabelled] == ["scene2", "", *["nothing labelled"] * 2]
    scene, labels = street(0)
    np.testing.assert_array_equal(row[0].picture, scene)
    np.testing.assert_array_equal(row[1].picture, colorize(labels))
    for tile, name in zip(row[2:], ("fassd_net", "fassd_net_l2"), strict=True):
        segmenter = Segmenter(name, weights=streets / f"{name}.safetensors", backend="reference")
        predicted = segmenter.predict(scene)
        np.testing.assert_array_equal(tile.picture, colorize(predicted))
        matrix = ConfusionMatrix(19)
        matrix.update(labels, predicted)
        assert tile.caption == f"mIoU {100 * matrix.scores().miou:.1f}%"
    with Image.open(tmp_path / "new/panel.png") as image:
        np.testing.assert_array_equal(image, panel.draw_panel(**drawn))


def test_the_four_of_the_talk_are_the_default(compare):
    stderr, drawn = compare("-i", "1")
    assert drawn["titles"][2:] == ["FC-HarDNet-70", "FASSD-Net", "FASSD-Net-L1", "FASSD-Net-L2"]
    assert [tile.caption[:5] for tile in drawn["rows"][0]] == ["scene", "", *4 * ["mIoU "]]
    assert "random weights: fc_hardnet_70, fassd_net_l1;" in stderr


def test_the_same_network_twice_is_told_apart_by_its_weights(streets, compare):
    path = streets / "fassd_net_l2.safetensors"
    given = ("=random", "", "=synthetic", f"={path}")
    stderr, drawn = compare("-i", "1", *(w for end in given for w in ("-m", f"fassd_net_l2{end}")))
    words = ("random", "streets", "synthetic", "fassd_net_l2")
    assert drawn["titles"][2:] == [f"FASSD-Net-L2 ({word})" for word in words]
    assert "streets weights, trained" in stderr and "synthetic weights, trained" in stderr


def test_of_many_classes_the_legend_shows_those_that_occur(streets, compare, monkeypatch):
    monkeypatch.setattr(evaluate, "LEGEND_UP_TO", 18)
    weights = streets / "fassd_net_l2.safetensors"
    _, drawn = compare("-i", "0", "-m", f"fassd_net_l2={weights}")
    colors = {
        tuple(color) for tile in drawn["rows"][0][1:] for color in tile.picture.reshape(-1, 3)
    }
    assert {info.color for info in drawn["legend"]} == colors
    order = [tuple(color) for color in palette()] + [(0, 0, 0)]
    assert [info.color for info in drawn["legend"]] == sorted(colors, key=order.index)


def test_a_network_of_a_finer_list_is_drawn_by_groups(tmp_path, compare, streets):
    """Without weights it is the shipped one, of Cityscapes' classes; scored as `fassd val` does."""
    text = (streets / "card.yaml").read_text()
    names = ", ".join(f"'{info.name}'" for info in CITYSCAPES[1:])
    classes = f"[{{name: road}}, {{name: other, covers: [{names}]}}]"
    a, b = text.index("classes: ["), text.index("splits:")
    text = f"{text[:a]}classes: {classes}\n{text[b:]}"
    text = text.replace("values: index, ignore: [255]", "values: ids, unlisted: ignore")
    text = text.replace("name: road}", "name: road, ids: 0}").replace("other,", "other, ids: 1,")
    (tmp_path / "card.yaml").write_text(text)
    options = ("--data", tmp_path / "card.yaml", "--root", streets)
    _, drawn = compare("-i", "1", "-m", "fassd_net_l2", *options)
    dataset = SegmentationDataset(load_card(tmp_path / "card.yaml", streets), "val")
    network, seen = create_model("fassd_net_l2", weights="streets"), []
    scores = evaluated(
        network, dataset, indices=[1], on_sample=lambda *what: seen.append(what[2])
    ).scores
    tile = drawn["rows"][0][2]
    np.testing.assert_array_equal(tile.picture, colorize(seen[0], dataset.card.palette))
    assert tile.caption == f"mIoU {100 * scores.miou:.1f}%"
    assert set(np.unique(seen[0])) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--index", "0,3"),
            "--index must be from 0 to 2, since the split 'val' has 3 pictures, got 3",
        ),
        (("--index", "-1"), "got -1"),
        (("--index", "one"), "'one' is not a whole number; separate numbers by commas"),
        (("--output", "panel.jpeg2"), "--output must be the name of a PNG file, NAME.png, got"),
        (("--model", "fassd"), "unknown model 'fassd'"),
        (("--model", "fassd_net=missing.pth"), "no weights file 'missing.pth'"),
        (("--weights-dir", "nowhere"), "no weights file 'nowhere/fc_hardnet_70.safetensors'"),
    ],
)
def test_mistakes_end_it_before_any_picture_is_read(
    streets, tmp_path, refusal, monkeypatch, arguments, message
):
    monkeypatch.setattr(SegmentationDataset, "__getitem__", lambda *_: pytest.fail("read"))
    usual = ("--index", "0", "--output", tmp_path / "panel.png", *PLAIN)
    assert message in refusal("compare", "--data", streets, *usual, *arguments)
    assert not list(tmp_path.iterdir())
