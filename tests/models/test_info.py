"""What weights say of their network, what the network then knows, and when it forgets it."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fassd
from fassd.io.palette import classes_of, default_classes
from fassd.models import CheckpointError, NetworkInfo, create_model, info_of, load_checkpoint
from fassd.models.info import read_info, remember
from fassd_kernels import accelerate

CLASSES = (("plant 0", (1, 200, 3)), ("soil", (90, 60, 30)), ("pot", (200, 0, 200)))
NAMES = [name for name, _ in CLASSES]
INFO = NetworkInfo.of("fassd_net_l2", 4, CLASSES)


def known_names(network):
    info = info_of(network)
    return list(info.class_names) if info is not None and info.class_names else None


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    state = create_model("fassd_net_l2", 3, 4).state_dict()
    save_file(state, path, {"fassd": json.dumps({"network": INFO.to_json()})})
    return path


@pytest.fixture
def model(file):
    return fassd.load(file)


def test_load_needs_the_file_alone(model, file):
    assert not model.training
    assert (model.num_classes, model.alpha) == (3, 4)
    assert info_of(model) == INFO == read_info(file)
    assert classes_of(model) == CLASSES


def test_what_a_network_knows_goes_with_it(model):
    for same in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        accelerate(model),
        accelerate(model, inplace=False, output="labels"),
        nn.DataParallel(model),
        torch.compile(model),
    ):
        assert known_names(same) == NAMES


def test_the_segmenter_has_the_files_classes(file):
    for segmenter in (
        fassd.Segmenter(file),
        fassd.Segmenter(str(file), backend="reference"),
        fassd.Segmenter("fassd_net_l2", weights=file),
        fassd.Segmenter(create_model("fassd_net_l2", 3, 4), weights=file),
    ):
        assert segmenter.classes == CLASSES
        assert segmenter.palette.tolist() == [list(color) for _, color in CLASSES]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"num_classes": 19}, "classes 19"),
        ({"alpha": 2}, "alpha 2"),
        ({"name": "baseline"}, "base"),
    ],
)
def test_arguments_that_contradict_the_file_are_errors(file, arguments, asked):
    with pytest.raises(ValueError, match=f"3 classes and alpha 4; asked for was .*{asked}"):
        create_model(**{"name": "fassd_net_l2", "weights": file, **arguments})
    if "name" not in arguments:
        with pytest.raises(ValueError, match=f"asked for was {asked}"):
            fassd.Segmenter(file, **arguments)


def test_a_network_of_the_same_shapes_is_another_one(tmp_path):
    path = tmp_path / "w.safetensors"
    network = NetworkInfo.of("fassd_net_l1", 2, default_classes(19)).to_json()
    facts = {"fassd": json.dumps({"network": network})}
    save_file(create_model("fassd_net_l1").state_dict(), path, facts)
    with pytest.raises(ValueError, match=r"holds fassd_net_l1 .* model fassd_net$"):
        create_model("fassd_net", weights=path)


def test_names_without_colours_are_read_too(tmp_path):
    path = tmp_path / "last.safetensors"
    facts = {"recipe": {"model": "fassd_net_l2", "alpha": 2}, "data": {"classes": NAMES}}
    save_file(create_model("fassd_net_l2", 3).state_dict(), path, {"fassd": json.dumps(facts)})
    model = fassd.load(path)
    assert known_names(model) == NAMES
    assert [info.color for info in classes_of(model)] == [info.color for info in default_classes(3)]


def test_files_without_names_work_as_ever(tmp_path):
    state = create_model("fassd_net_l2", 3).state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    for path in tmp_path.iterdir():
        model = create_model("fassd_net_l2", 3, weights=path)
        assert known_names(model) is None and classes_of(model) == default_classes(3)
        with pytest.raises(CheckpointError, match="does not say which network it holds"):
            fassd.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        fassd.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        '{"network": {"model": "x", "alpha": 2, "classes": []}}',
        "[", "{" * 5000, '{"network": 5}', '{"network": {"model": 1, "alpha": 2, "classes": []}}',
        '{"network": {"model": "x", "alpha": 1e999, "classes": []}}',
        '{"network": {"model": "x", "alpha": 2, "classes": [{"name": "", "color": [0, 0, 0]}]}}',
        '{"network": {"model": "x", "alpha": 2, "classes": [{"name": "a", "color": [0, 0, 256]}]}}',
        '{"network": {"model": "x", "alpha": 2, "classes": [{"name": "a", "color": [0, 0]}]}}',
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"fassd": text})
    with pytest.raises(ValueError, match=r"w\.safetensors: its metadata cannot be understood"):
        read_info(path)


@pytest.mark.parametrize("fused", [False, True])
def test_classes_follow_a_head_exchanged_by_hand(model, fused):
    network = accelerate(model) if fused else model
    for head, count in (
        (nn.Conv2d(64, 7, 1), 7),
        (nn.Sequential(nn.Conv2d(64, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 300, 1)), 300),
        (nn.ConvTranspose2d(64, 5, 2, 2), 5),
        (nn.LazyConv2d(6, 1), 6),
        (nn.Conv2d(64, 3, 1), 3),
    ):
        network.finalConv = head
        assert network.num_classes == count
        assert known_names(network) is None and classes_of(network) == default_classes(count)
    network.finalConv.weight = nn.Parameter(torch.zeros(2, 64, 1, 1))  # cut by hand
    assert network.num_classes == 2
    network.finalConv = nn.Identity()  # tells nothing
    network.num_classes = 64
    assert network.num_classes == 64


def test_names_stay_with_their_head(model):
    model.finalConv = nn.Sequential(nn.Dropout(), model.finalConv)
    assert known_names(model) == NAMES
    model.finalConv[1].weight = nn.Parameter(model.finalConv[1].weight[:2])
    assert known_names(model) is None


def test_other_weights_bring_other_names(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    load_checkpoint(model, tmp_path / "w.pth")
    assert known_names(model) is None
    remember(model, INFO)
    torch.save(model.base.state_dict(), tmp_path / "encoder.pth")
    load_checkpoint(model, tmp_path / "encoder.pth")
    assert known_names(model) == NAMES


@pytest.mark.parametrize("training", [False, True])
def test_labels_of_a_large_head_do_not_wrap(model, training):
    fast = accelerate(model, output="labels").train(training)
    fast.finalConv = nn.Conv2d(64, 300, 1)
    with pytest.raises((ValueError, RuntimeError), match="300"):
        fast.predict_labels(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="the model has 300"):
        accelerate(fast, output="labels")
    assert fassd.Segmenter(fast.eval()).predict(torch.zeros(64, 64)).dtype == "uint16"
