"""A file of `fassd train` is enough: network, classes and colours come from it, everywhere."""

import json

import numpy as np
import pytest
import torch
from cli.conftest import calibrated
from PIL import Image
from training.fakes import street

from fassd.cli.predict import build_segmenter
from fassd.cli.serve import _catalog, _offered, _try_out
from fassd.data import load_card
from fassd.export import ExportedNetwork
from fassd.io.images import write_image
from fassd.io.palette import LabelClass, classes_of
from fassd.models import NetworkInfo, info_of, load
from fassd.models.info import read_info, remember
from fassd.serve.engine import Choice, cached
from fassd.serve.schemas import Limits, class_table
from fassd.training.loop import Trainer
from fassd.training.recipe import load_recipe
from fassd.training.state import save_weights

PLANTS = (
    LabelClass("plant 0", (1, 200, 3)),
    LabelClass("soil [x]", (90, 60, 30)),
    LabelClass("pot", (200, 0, 200)),
    LabelClass("sky; é", (10, 20, 250)),
)
ORDER = (2, 0, 3, 1)  # of the classes in another card


def write_card(path, names_and_ids):
    """A card of 19 ids that are the classes in turn."""
    entries = "".join(
        f"  - {{name: {name!r}, color: {list(PLANTS[i].color)}, ids: {list(range(i, 19, 4))}}}\n"
        for name, i in names_and_ids
    )
    path.write_text(
        f"name: plants\nclasses:\n{entries}splits: {{train: train, val: val}}\n"
        'images: "{split}/{name}.png"\n'
        'masks: {files: "{split}/labels/{name}.png", values: ids, ignore: [255]}\n'
    )


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """A data set under three cards, and weights whose labels vary, as training writes them."""
    folder = tmp_path_factory.mktemp("plants")
    for split, number in (("train", 0), ("train", 1), ("val", 2)):
        image, labels = street(number)
        write_image(folder / f"{split}/{number}.png", image)
        write_image(folder / f"{split}/labels/{number}.png", labels)
    names = [info.name for info in PLANTS]
    write_card(folder / "card.yaml", zip(names, range(4), strict=True))
    write_card(folder / "reordered.yaml", [(names[i], i) for i in ORDER])
    write_card(folder / "renamed.yaml", zip([*names[:3], "heaven"], range(4), strict=True))
    model = calibrated("fassd_net_l2", 4, 3, scene=2)
    remember(model, NetworkInfo.of("fassd_net_l2", 3, PLANTS))
    facts = {"step": 1, "network": info_of(model).to_json()}
    save_weights(folder / "best.safetensors", model, facts)
    torch.save(model.state_dict(), folder / "nameless.pth")
    return folder


def colours(path):
    with Image.open(path) as image:
        return {color for _, color in image.convert("RGB").getcolors(1 << 16)}


def scores(path):
    figures = json.loads(path.read_text())
    return {entry["name"]: entry["iou"] for entry in figures["classes"]}


def test_training_writes_what_every_command_needs(plants, tmp_path, succeed):
    succeed(
        "train", "-p", "demo", "-d", plants, "-o", tmp_path, "-m", "fassd_net_l2", "--steps", 1,
        "--batch", 2, "--workers", 0, "-s", "warmup=0", "-s", "alpha=3", "-s", "ema=0.5",
        "-s", "crop=[64, 64]", "-s", "min_pixels=16", "--device", "cpu",
        "-w", plants / "best.safetensors",
    )  # fmt: skip
    for name in ("best", "last", "checkpoint"):
        assert read_info(tmp_path / f"{name}.safetensors") == NetworkInfo.of(
            "fassd_net_l2", 3, PLANTS
        )


def test_training_starts_from_a_head_of_the_same_classes_by_name(plants, tmp_path):
    settings = {"model": "fassd_net_l2", "alpha": 3, "workers": 0, "accelerate": False}
    start = str(plants / "best.safetensors")
    recipe = load_recipe("demo").replace(**settings, weights=start, ema=None)
    own = load(start).finalConv
    for card, order in (("card", range(4)), ("reordered", ORDER), ("renamed", range(4))):
        trainer = Trainer(recipe, load_card(plants / f"{card}.yaml"), tmp_path / card)
        head = trainer.learner.model.finalConv
        assert torch.equal(head.weight, own.weight[list(order)])
        assert torch.equal(head.bias, own.bias[list(order)])
        names = [name for name, _ in classes_of(trainer.learner.model)]
        assert names == trainer.space.class_names


def test_predict_paints_the_files_colours(plants, tmp_path, succeed):
    picture = plants / "val/2.png"
    for number, option in enumerate(("-w", "-m")):
        output = tmp_path / str(number)
        succeed("predict", picture, "-o", output, option, plants / "best.safetensors")
        found = colours(output / "2_color.png")
        assert len(found) > 2 and found <= {info.color for info in PLANTS}


@pytest.mark.parametrize(
    "option", [("--model", "fassd_net"), ("--classes", "19"), ("--alpha", "2")], ids=" ".join
)
def test_options_that_contradict_the_file_are_errors(plants, tmp_path, refusal, option):
    weights = plants / "best.safetensors"
    asked = " ".join(option).removeprefix("--")
    assert refusal("predict", plants / "val", "-o", tmp_path, "-w", weights, *option) == (
        f"error: {weights} holds fassd_net_l2 of 4 classes and alpha 3; asked for was {asked}"
    )


def test_weights_are_given_once(plants, tmp_path, refusal):
    weights = plants / "best.safetensors"
    result = refusal("predict", plants / "val", "-o", tmp_path, "-m", weights, "-w", "random")
    assert "holds its own weights: leave out --weights random" in result


def test_val_scores_classes_by_name(plants, tmp_path, succeed, refusal):
    found = {}
    for card, *options in (
        ("card", "-w", plants / "best.safetensors"),
        ("reordered", "-w", plants / "best.safetensors"),
        ("positions", "-w", plants / "nameless.pth", "-m", "fassd_net_l2", "--alpha", 3),
    ):
        data = plants / f"{card.replace('positions', 'reordered')}.yaml"
        figures = tmp_path / f"{card}.json"
        succeed("val", "--data", data, *options, "--json", figures)
        found[card] = scores(figures)
    assert list(found["reordered"]) == [PLANTS[i].name for i in ORDER]
    assert found["reordered"] == found["card"] != found["positions"]
    settings = json.loads((tmp_path / "card.json").read_text())["settings"]
    assert (settings["model"], settings["alpha"]) == ("fassd_net_l2", 3)

    other = refusal("val", "--data", plants / "renamed.yaml", "-w", plants / "best.safetensors")
    assert "only the network has 'sky; é'; only the data has 'heaven'" in other


def test_an_exported_file_keeps_names_and_is_scored_by_them(plants, tmp_path, succeed, refusal):
    weights, file = plants / "best.safetensors", tmp_path / "net.pt2"
    arguments = ("-w", weights, "--size", "64x128", "--no-verify", "-o")
    succeed("export", *arguments, file, "--data", plants / "reordered.yaml")
    metadata = ExportedNetwork(file).metadata
    assert metadata.classes == PLANTS
    assert (metadata.variant, metadata.alpha) == ("fassd_net_l2", 3)

    found = []
    for data in ("card", "reordered"):
        figures = tmp_path / f"{data}.json"
        succeed(
            "val", "--data", plants / f"{data}.yaml", "-m", file, "--json", figures
        )  # fmt: skip
        found.append(scores(figures))
    assert found[0] == found[1] and len(set(found[0].values())) > 2

    renamed = refusal("export", *arguments, file, "--data", plants / "renamed.yaml")
    assert "only the network has 'sky; é'" in renamed
    assert "which network?" in refusal("export", "-o", file)


def test_compare_shows_classes_by_name(plants, tmp_path, succeed, refusal):
    shown = []
    for data in ("card", "reordered"):
        file = tmp_path / f"{data}.png"
        succeed(
            "compare", "--data", plants / f"{data}.yaml", "-i", 0, "-o", file, "--width", 128,
            "-m", plants / "best.safetensors",
        )  # fmt: skip
        with Image.open(file) as image:
            shown.append(np.asarray(image.convert("RGB")))
    legend = shown[0].shape[0] // 2  # below it, in the order of the card
    np.testing.assert_array_equal(shown[0][:legend], shown[1][:legend])
    other = refusal(
        "compare", "--data", plants / "renamed.yaml", "-i", 0, "-o", tmp_path / "x.png",
        "-m", f"fassd_net_l2={plants / 'best.safetensors'}",
    )  # fmt: skip
    assert "only the data has 'heaven'" in other


def test_bench_measures_the_files_network(plants, tmp_path, succeed):
    base = ("bench", "run", "--size", "64x64", "--repeats", 1, "--warmup", 0, "--no-memory")
    weights, file = plants / "best.safetensors", tmp_path / "bench.json"
    succeed(*base, "-w", weights, "--json", file)
    job = json.loads(file.read_text())["job"]
    assert (job["model"], job["classes"], job["alpha"]) == ("fassd_net_l2", 4, 3)
    assert job["weights"] == str(weights)
    succeed("bench", "compare", file)


def test_demo_paints_the_files_colours(plants, tmp_path, run_fassd):
    run_fassd("demo", "-w", plants / "best.safetensors", "-o", tmp_path, "--size", "64x64",
              "--repeats", 1)  # fmt: skip
    found = colours(tmp_path / "labels.png")
    assert len(found) > 1 and found <= {info.color for info in PLANTS}


def test_info_lists_the_files_classes(plants, succeed, run_fassd):
    result = succeed("info", plants / "best.safetensors", "--input", "64x64")
    assert "fassd_net_l2 at 64x64" in result.stdout
    assert all(info.name in result.stdout for info in PLANTS)
    assert run_fassd("info", "-w", plants / "best.safetensors", "--classes", 5).exit_code == 2


def test_serve_offers_each_file_with_its_classes(plants):
    offered = _offered([str(plants / "best.safetensors"), "fassd_net"], None, None, None)
    assert list(offered) == ["fassd_net_l2", "fassd_net"]
    alone = _offered(None, str(plants / "best.safetensors"), None, None)
    assert list(alone.values()) == [offered["fassd_net_l2"]]
    networks = cached(lambda choice: build_segmenter(offered[choice.model], *choice[1:], "cpu"))
    choices = [Choice(name, "auto", "float32") for name in offered]
    models = [_try_out(networks, choice, offered[choice.model]) for choice in choices]
    limits = Limits(max_bytes=1, max_pixels=1, queue=1, batch=1, timeout_s=1)
    catalog = _catalog(models, choices[0], "cpu", limits)
    assert catalog.classes == catalog.classes_of("fassd_net_l2") == class_table(PLANTS)
    assert catalog.classes_of("fassd_net") == class_table(19)
    assert [info.weights for info in catalog.models] == ["own", "streets"]
