"""An encoder of timm through every command: trained once, then used by its file alone."""

import json

import pytest
import torch
from training.streets import write_cityscapes

import fassd_kernels
from fassd.bench.costs.encoders import read_table
from fassd.bench.layers import HEAD, trace
from fassd.cli.common import pick_network, split_model
from fassd.cli.serve import _offered, _try_out
from fassd.export import ExportedNetwork
from fassd.io.images import read_image
from fassd.models import create_model, info_of, load, normalize, preprocessing_of
from fassd.serve.engine import Choice, cached, label_pictures
from fassd.training.loop import Trainer
from fassd.training.recipe import load_recipe

ENCODER = "mobilenetv4_conv_small"
NAME = f"fassd_net@{ENCODER}"


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("streets"), train=2, val=1)


@pytest.fixture
def picture(card):
    return next(card.root.glob("leftImg8bit/val/**/*.png"))


@pytest.fixture(scope="module")
def run(card, tmp_path_factory):
    """A run of one step, started as `fassd train --encoder-name` starts it."""
    from typer.testing import CliRunner

    from fassd.cli import app

    folder = tmp_path_factory.mktemp("run") / "a"
    arguments = (
        "train", "-p", "demo", "-d", card.root, "-o", folder, "--encoder-name", ENCODER,
        "--encoder", "random", "--steps", 1, "--batch", 2, "--workers", 0, "-s", "warmup=0",
        "-s", "crop=[64, 64]", "-s", "min_pixels=16", "--device", "cpu", "-s", "ema=null",
        "-s", "statistics=0", "-s", "weights=null", "-m", "fassd_net",
    )  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_tells_its_network(run, card):
    info = info_of(load(run / "best.safetensors"))
    assert info.model == NAME and info.preprocessing.channels == "RGB"
    assert list(info.class_names) == card.class_names
    assert f"model: {NAME}" in (run / "recipe.yaml").read_text()


def test_pictures_of_training_are_normalised_for_the_encoder(card, tmp_path):
    settings = {"model": NAME, "encoder": "random", "pad": "mean", "crop": [64, 128], "workers": 0}
    recipe = load_recipe("demo").replace(**settings, weights=None, flip=0, scale=[1, 1], jitter=0)
    trainer = Trainer(recipe.replace(gamma=0, blur=0, batch=1), card, tmp_path / "run")
    ((part,), *_) = trainer._batches()
    right = normalize(read_image(part.paths[0]), preprocessing_of(trainer.learner.model))
    assert torch.equal(part.images[0], torch.from_numpy(right))


def test_training_starts_from_timms_weights_unless_told(card, tmp_path, monkeypatch):
    monkeypatch.setenv("FASSD_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = load_recipe("demo").replace(model=NAME, encoder="imagenet", weights=None, workers=0)
    with pytest.raises(OSError, match=rf"put its model.safetensors at .*{ENCODER}\.e"):
        Trainer(recipe, card, tmp_path / "run")


def test_commands_take_the_file(run, card, picture, tmp_path, succeed, refusal):
    weights = run / "best.safetensors"
    model = load(weights)
    with torch.no_grad():
        batch = normalize(read_image(picture), preprocessing_of(model))
        right = model(torch.from_numpy(batch)[None]).argmax(1)[0].numpy()

    succeed("predict", picture, "-o", tmp_path, "-w", weights)
    (labels,) = tmp_path.glob("*_trainids.png")
    assert (read_image(labels)[..., 0] == right).mean() >= 0.999

    figures = tmp_path / "val.json"
    succeed("val", "--data", card.root, "-w", weights, "--json", figures)
    assert json.loads(figures.read_text())["settings"]["model"] == NAME
    for option in (("--encoder-name", "resnet18d"), ("-m", "fassd_net_l2")):
        assert "asked for was" in refusal("val", "--data", card.root, "-w", weights, *option)

    file = tmp_path / "net.pt2"
    succeed(
        "export", "-w", weights, "-o", file, "--size", "64x128", "--encoder-name", ENCODER,
        "--preprocess", "--output", "labels",
    )  # fmt: skip
    exported = ExportedNetwork(file)
    assert exported.metadata.variant == NAME and preprocessing_of(exported).channels == "RGB"
    whole = torch.from_numpy(read_image(picture))[None]
    assert (exported.predict_labels(whole)[0].numpy() == right).mean() >= 0.999
    assert "has an encoder: leave out" in refusal(
        "val", "--data", card.root, "-m", file, "--encoder-name", ENCODER
    )

    settings = ("--size", "64x128", "--repeats", 1, "--warmup", 0, "--no-memory", "--threads", 1)
    figures = tmp_path / "bench.json"
    succeed("bench", "run", "-w", weights, *settings, "--json", figures)
    measured = json.loads(figures.read_text())
    assert measured["job"]["model"] == NAME
    assert all(row["labels_equal_percent"] >= 99.9 for row in measured["results"])


def test_networks_by_name(succeed):
    result = succeed("info", "fassd_net", "--encoder-name", ENCODER, "--input", "256x512")
    for text in (NAME, "base.body", "base.project.3", "pictures: RGB, mean (0.485, 0.456, 0.406)"):
        assert text in result.stdout
    fast = fassd_kernels.accelerate(create_model(f"{NAME}+light", 3).eval(), output="labels")
    with torch.no_grad():
        calls = trace(fast, torch.zeros(1, 3, 64, 96))
    captured = [call.name for call in calls if call.name.startswith("base.body, call ")]
    names = [call.name for call in calls[len(captured) :]]
    assert captured == [call.name for call in calls[: len(captured)]]
    assert names[:5] == [*(f"base.project.{index}" for index in range(4)), "DAPF"]
    assert names[-1] == HEAD and names[5:7] == ["conv1x1_up.0", "mda.0"]


def test_launches_of_another_encoder_are_not_predicted(refusal):
    assert "its encoder is launched by PyTorch" in refusal("bench", "launches", "h200", "-m", NAME)


def test_networks_are_served_by_name(picture):
    (name,) = offered = _offered(None, None, 3, None, ENCODER)
    assert name == NAME
    torch.manual_seed(0)
    model = create_model(NAME, 3).eval()

    def load_it(_):
        import fassd

        return fassd.Segmenter(model, backend="reference")

    networks, choice = cached(load_it), Choice(name, "reference", "float32")
    assert _try_out(networks, choice, offered[name]).title == f"FASSD-Net, {ENCODER}"
    image = read_image(picture)
    found = label_pictures(networks(choice), [image, image[::-1]])
    for each, labels in zip((image, image[::-1]), found, strict=True):
        assert (networks(choice).predict(each) == labels).mean() >= 0.999


def test_a_full_name_and_an_option_say_the_same():
    assert pick_network(None, "random", encoder_name=ENCODER).model == NAME
    assert pick_network(NAME, None).model == NAME and pick_network(NAME, None).weights is None
    assert split_model(f"{NAME}=my.safetensors") == (NAME, "my.safetensors")
    assert split_model(NAME) == (NAME, None)
    with pytest.raises(
        ValueError, match="has encoder mobilenetv4_conv_small, asked for was resnet"
    ):
        pick_network(NAME, None, encoder_name="resnet18d")


def test_encoders_are_listed(succeed, refusal):
    result = succeed("info", "--encoders", "resnet18*")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert {"resnet18", "resnet18d"} <= rows.keys() and "resnet34" not in rows
    cost = read_table()["resnet18d"]
    assert rows["resnet18d"] == [f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.1f}"]
    part = succeed("info", "--encoders", "regnet").stdout  # of a name
    assert len(part.splitlines()) > 40 and "regnety_002" in part
    assert "that fits matches 'vit" in refusal("info", "--encoders", "vit_base_patch16_224")
    assert "matches 'resnt'" in refusal("info", "--encoders", "resnt")
