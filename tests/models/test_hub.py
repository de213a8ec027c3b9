"""Networks in folders and repositories as the Hugging Face hub has them; nothing is sent."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.hub_mixin import HfApi
from safetensors.torch import save_file

import fassd_kernels
from fassd.models import (
    CheckpointError,
    DownloadError,
    FASSDNet,
    NetworkInfo,
    Preprocessing,
    create_model,
    info_of,
    load,
)
from fassd.models.hub import Score, model_card
from fassd.models.info import remember

CLASSES = (("road", (128, 64, 128)), ("sky | é", (70, 130, 180)), ("pot", (200, 0, 200)))


def named(name, classes=CLASSES, temperature=1.0, **settings):
    """A network with random weights that knows its classes."""
    torch.manual_seed(0)
    network = create_model(name, len(classes), **settings).eval()
    found = NetworkInfo.of(info_of(network).model, network.alpha, classes)
    remember(network, NetworkInfo(**{**vars(found), "temperature": temperature}))
    return network


def same(first, second):
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network, and the folder that it was written into."""
    folder = tmp_path_factory.mktemp("hub") / "net"
    network = named("fassd_net_l2", temperature=1.5)
    network.save_pretrained(folder)
    return network, folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of that folder that a test may spoil."""
    return shutil.copytree(saved[1], tmp_path / "net")


@pytest.mark.parametrize("name", ["fassd_net_l1", "fc_hardnet_70", "baseline_aspp_mda"])
def test_a_network_comes_back(name, tmp_path):
    network = named(name, alpha=3)
    network.save_pretrained(tmp_path)
    back = FASSDNet.from_pretrained(tmp_path)
    assert same(back, network) and info_of(back) == info_of(network)
    assert type(back) is FASSDNet and not back.training


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet18d"},
        {"encoder": "mobilenetv3_small_100", "light_decoder": True, "dilations": (2, 4, 8)},
        {"in_channels": 4},
        {"encoder": "resnet18d", "in_channels": 5},
    ],
    ids=str,
)
def test_encoders_bands_and_what_else_a_name_has(settings, tmp_path):
    network = named("fassd_net", **settings)
    if "in_channels" in settings:
        bands = settings["in_channels"]
        network.preprocessing = Preprocessing((0.25,) * bands, (0.125,) * bands, "bands")
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["encoder"] == settings.get("encoder")
    assert config["in_channels"] == settings.get("in_channels", 3)
    back = FASSDNet.from_pretrained(tmp_path)
    assert same(back, network) and info_of(back) == info_of(network)
    x = torch.randn(1, config["in_channels"], 64, 64)
    assert torch.equal(back(x), network(x))


def test_the_configuration_says_all(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    assert (config["model"], config["num_classes"], config["alpha"]) == ("fassd_net_l2", 3, 2)
    assert config["classes"][1] == {"name": "sky | é", "color": [70, 130, 180]}
    assert config["temperature"] == 1.5
    assert config["preprocessing"]["channels"] == "BGR"
    assert config["preprocessing"]["mean"] == [0.406, 0.456, 0.485]


def test_the_weights_are_a_file_like_those_of_training(saved, copied):
    network, folder = saved
    found = load(folder / "model.safetensors")
    assert same(found, network) and info_of(found) == info_of(network)
    (copied / "config.json").unlink()
    assert info_of(FASSDNet.from_pretrained(copied)) == info_of(network)


def test_classes_without_names_need_the_configuration(tmp_path):
    network = create_model("fassd_net_l2", 7).eval()
    network.save_pretrained(tmp_path)
    back = FASSDNet.from_pretrained(tmp_path)
    assert back.num_classes == 7 and same(back, network)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not say which network"):
        FASSDNet.from_pretrained(tmp_path)


def test_accelerated_networks_are_published_as_plain_ones(saved, tmp_path):
    network, _ = saved
    fassd_kernels.accelerate(network, dtype=torch.float16).save_pretrained(tmp_path)
    back = FASSDNet.from_pretrained(tmp_path)
    assert same(back.half(), copy.deepcopy(network).half()) and info_of(back) == info_of(network)


def test_a_repository_is_read_from_the_cache(saved, tmp_path):
    network, folder = saved
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(FASSDNet.from_pretrained("owner/name", **options), network)
    with pytest.raises(DownloadError, match="could not get owner/other from the Hugging Face hub"):
        FASSDNet.from_pretrained("owner/other", **options)


def test_pushing_sends_the_folder(saved, tmp_path, monkeypatch):
    """`upload_folder` is all that would reach the hub; here it copies."""
    made = []

    def create_repo(self, repo_id, private, exist_ok):
        made.append((repo_id, private))
        return type("Made", (), {"repo_id": repo_id})

    def upload_folder(self, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "sent")
        return "https://huggingface.co/owner/name/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    network, _ = saved
    assert network.push_to_hub("owner/name", private=True).endswith("commit/1")
    assert made == [("owner/name", True)]
    assert same(FASSDNet.from_pretrained(tmp_path / "sent"), network)
    assert 'from_pretrained("owner/name")' in (tmp_path / "sent/README.md").read_text()


def test_the_card_is_what_the_hub_reads(saved):
    network, folder = saved
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "fassd" and card.data.pipeline_tag == "image-segmentation"
    assert "| 1 | sky \\| é | 70, 130, 180 |" in card.text
    scores = [Score("my data", "miou", 0.5), Score("my data", "pixel_accuracy", 0.75)]
    text = model_card(network, "owner/name", license="cc-by-4.0", data=["my data"], scores=scores)
    data = ModelCard(text).data
    assert data.license == "cc-by-4.0"
    assert [(e.dataset_type, e.metric_value) for e in data.eval_results] == [
        ("my-data", 0.5),
        ("my-data", 0.75),
    ]
    assert "# FASSD-Net-L2 on my data" in text


def test_a_card_that_is_there_stays_unless_another_is_given(saved, copied):
    network, _ = saved
    (copied / "README.md").write_text("mine")
    network.save_pretrained(copied)
    assert (copied / "README.md").read_text() == "mine"
    network.save_pretrained(copied, "given")
    assert (copied / "README.md").read_text() == "given"


def test_networks_that_cannot_be_named_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say which of the family"):
        FASSDNet(3).save_pretrained(tmp_path / "a")
    network = named("fassd_net_l2")
    network.DAPF = torch.nn.Identity()
    with pytest.raises(ValueError, match="not fassd_net_l2 as it was built: DAPF"):
        network.save_pretrained(tmp_path / "b")
    assert not list(tmp_path.glob("*/*"))


FOREIGN = {
    "transformers": (
        {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]},
        "config.json is another library's .*model_type segformer",
    ),
    "timm": ({"architecture": "resnet18", "num_classes": 1000}, "architecture resnet18"),
    "no network": ({}, "without a model"),
    "a list": ([1], "holds a list"),
    "nan classes": ({"num_classes": float("nan")}, "num_classes is nan"),
    "too many classes": ({"num_classes": 10**9}, "num_classes is 1000000000"),
    "unknown network": ({"model": "resnet"}, "unknown model 'resnet'"),
    "other encoder": ({"encoder": "resnet18d"}, "encoder 'resnet18d'"),
    "bands": (
        {"preprocessing": {"mean": [0.5], "std": [0.2], "channels": "bands"}},
        "preprocessing is of 1 channels",
    ),
    "mean": (
        {"preprocessing": {"mean": [1e400] * 3, "std": [1] * 3, "channels": "RGB"}},
        "must be finite",
    ),
    "temperature": ({"temperature": 0}, "temperature must be"),
    "alpha": ({"alpha": "2"}, "'2' is not a whole number"),
    "classes": ({"classes": 5}, "TypeError"),
    "colour": ({"classes": [{"name": "a", "color": [0, 0, 256]}] * 3}, "256 is not a whole"),
}


@pytest.mark.parametrize("config, message", FOREIGN.values(), ids=FOREIGN)
def test_configurations_that_are_not_ours(config, message, copied):
    path = copied / "config.json"
    own = json.loads(path.read_text())
    whole = isinstance(config, dict) and config.keys() <= own.keys() and config
    path.write_text(json.dumps({**own, **config} if whole else config))
    with pytest.raises(CheckpointError, match=message) as error:
        FASSDNet.from_pretrained(copied)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is no JSON"),
        (b'{"model": "fassd', "is no JSON"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b" " * (1 << 24), "16,777,216 bytes, at most"),
    ],
    ids=["empty", "cut off", "no text", "deep", "huge"],
)
def test_broken_configurations(content, message, copied):
    (copied / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        FASSDNet.from_pretrained(copied)
    assert str(copied / "config.json") in str(error.value)


def test_weights_that_are_not_those_of_the_configuration(copied, tmp_path):
    weights = copied / "model.safetensors"
    save_file({"embed.weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit"):
        FASSDNet.from_pretrained(copied)
    encoder = {f"base.{k}": v for k, v in named("fassd_net_l2").base.state_dict().items()}
    save_file(encoder, weights)
    with pytest.raises(CheckpointError, match="holds an encoder alone"):
        FASSDNet.from_pretrained(copied)
    weights.rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors.*pytorch_model\.bin"):
        FASSDNet.from_pretrained(copied)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match="it holds nothing"):
        FASSDNet.from_pretrained(tmp_path / "nothing")


def test_names_that_are_neither_folder_nor_repository(saved):
    with pytest.raises(ValueError, match="neither a folder here nor the name of a repository"):
        FASSDNet.from_pretrained("runs/a/best")
    with pytest.raises(ValueError, match=r"is read by fassd\.load"):
        FASSDNet.from_pretrained(saved[1] / "model.safetensors")


def test_without_huggingface_hub_the_rest_works():
    program = """
import sys
sys.modules["huggingface_hub"] = None
import fassd, fassd.training
model = fassd.create_model("fassd_net_l2", 2)
for call in (lambda: model.push_to_hub("a/b"), lambda: type(model).from_pretrained("a/b"),
             lambda: fassd.training.model_card("x")):
    try:
        call()
    except ImportError as error:
        assert "pip install 'fassd-net[hub]'" in str(error), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)
