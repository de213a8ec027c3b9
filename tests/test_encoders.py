"""FASSD-Net on encoders of timm: networks, files, fused kernels, exported files, training."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernels.conftest import exact, relative_error, shake
from safetensors.torch import save_file
from torch import Tensor, nn

import fassd
import fassd_kernels
from fassd.bench.costs.counts import analyze
from fassd.bench.costs.encoders import cost_of, read_table
from fassd.export import ExportedNetwork, Exporter, Request, staged, verify
from fassd.models import NetworkInfo, create_model, info_of, preprocessing_of
from fassd.models.encoder import import_timm, pretrained_file, reparameterize
from fassd.models.info import read_info, remember
from fassd.models.layers import init_xavier
from fassd.models.preprocess import OURS, Preprocessing, normalize
from fassd.models.variants import full_name, get_variant
from fassd.models.weights import DownloadError
from fassd.synth import render_street
from fassd.training.distillation import renormalized
from fassd.training.precision import avoid_unsound_gradients
from fassd.training.state import save_weights
from fassd.training.sync_norm import synchronized
from fassd_kernels.modules import FusedDAPF, FusedMDA, FusedNetwork

timm = import_timm()

ENCODERS = (
    "resnet18d",
    "resnet34d",
    "repvgg_a0",
    "mobilenetv4_conv_small",
    "mobilenetv3_large_100",
    "hgnetv2_b0",
    "convnext_atto",
    "hrnet_w18_small",
)
SMALL = "mobilenetv4_conv_small"
CLASSES = (("plant", (1, 200, 3)), ("soil", (90, 60, 30)), ("pot", (200, 0, 200)))
SIZE = (64, 96)
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB")
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@functools.cache
def made(encoder: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return shake(create_model("fassd_net", len(CLASSES), encoder=encoder, **options)).eval()


def network(encoder: str, **options: Any) -> Any:
    """A network in eval mode whose batch norms have statistics."""
    return copy.deepcopy(made(encoder, **options))


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def street(size: tuple[int, int] = SIZE) -> Any:
    return render_street(*size, seed=1)[0]


# --- networks -------------------------------------------------------------------------------------


@every_encoder
def test_the_decoder_is_that_of_fassd_net(encoder: str) -> None:
    with torch.device("meta"):
        own = create_model("fassd_net").state_dict()
        found = create_model("fassd_net", encoder=encoder).state_dict()

    def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in state.items() if not key.startswith("base.")}

    assert shapes(found) == shapes(own)


@every_encoder
def test_maps_and_logits_of_any_size(encoder: str) -> None:
    model = network(encoder)
    with torch.no_grad():
        for height, width in (SIZE, (65, 131)):
            maps = model.encode(picture(height, width))
            sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
            found = [(each.shape[1], tuple(each.shape[2:])) for each in maps]
            assert found == [*zip((48, 78, 160, 224), sizes, strict=True)]
            assert model(picture(height, width)).shape == (1, len(CLASSES), height, width)
        # What is padded is cut off: the maps of the upper left are those of the padded picture.
        padded = nn.functional.pad(picture(65, 131), (0, 29, 0, 31))
        for cut, whole in zip(model.encode(picture(65, 131)), model.encode(padded), strict=True):
            part = whole[:, :, : cut.shape[2], : cut.shape[3]]
            assert (cut - part).norm() <= 1e-5 * part.norm()  # threads sum in another order
    with pytest.raises(ValueError, match="at least 32x32 pixels for this variant, got 31x64"):
        model(picture(31, 64))


def test_the_maps_are_timms_own() -> None:
    model = network("resnet18d")
    own = timm.create_model("resnet18d", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    own.load_state_dict(model.base.body.state_dict())
    with torch.no_grad():
        right = own(picture(*SIZE))
        for project, each, found in zip(
            model.base.project, right, model.base(picture(*SIZE)), strict=True
        ):
            assert torch.equal(found, project(each))


def test_maps_of_other_dimension_order_are_permuted() -> None:
    model = network("swin_tiny_patch4_window7_224")
    with torch.no_grad():
        maps = model.base.body(picture(*SIZE))
        assert maps[0].shape == (1, 16, 24, 96)
        found = model.base(picture(*SIZE))[0]
        assert torch.equal(found, model.base.project[0](maps[0].permute(0, 3, 1, 2)))
        assert model(picture(70, 100)).shape == (1, len(CLASSES), 70, 100)


def test_options() -> None:
    model = network(SMALL, light_decoder=True, dilations=(3, 6, 9), alpha=4)
    assert info_of(model).model == f"fassd_net@{SMALL}+light+dilations3-6-9"
    assert not any(key.startswith("denseBlocksUp.0.layers") for key in model.state_dict())
    assert model.DAPF.pyBranch3.atrous_conv1x3.dilation == (1, 6)
    assert "dilations=(3, 6, 9)" in repr(model.DAPF)
    fast, x = fassd_kernels.accelerate(model), picture(*SIZE)
    with torch.no_grad():
        assert relative_error(fast(x), exact(model, x)) <= 2e-6
    hardnet = create_model("fassd_net_l2", dilations=[1, 2, 3]).DAPF
    assert hardnet.pyBranch4.atrous_conv3x1.dilation == (3, 1)


def test_an_encoder_begins_as_timm_has_it() -> None:
    torch.manual_seed(3)
    own = timm.create_model("convnext_atto", features_only=True, out_indices=(0, 1, 2, 3))
    torch.manual_seed(3)
    model = create_model("fassd_net", encoder="convnext_atto")
    model.initialize(init_xavier)
    for key, value in own.state_dict().items():
        assert torch.equal(value, model.base.body.state_dict()[key]), key


# --- names ----------------------------------------------------------------------------------------


def test_a_full_name_says_it_all() -> None:
    name = full_name("fassd_net", "resnet18d", True, (6, 12, 18))
    assert name == full_name(name) == "fassd_net@resnet18d+light+dilations6-12-18"
    assert full_name("baseline", dilations=(12, 24, 36)) == "baseline"
    assert get_variant("baseline_dapf@resnet18d").title == "Baseline + DAPF, resnet18d"
    assert get_variant("fassd_net+light").switches == {"light_decoder": True}
    by_name = create_model("fassd_net@repvgg_a0+light", 5)
    by_arguments = create_model("fassd_net", 5, encoder="repvgg_a0", light_decoder=True)
    assert by_name.state_dict().keys() == by_arguments.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnt18"}, "unknown encoder 'resnt18': timm .* did you mean resnet18 or"),
        ({"encoder": "resnet18.x"}, "timm .* has no weights 'x' of it, but resnet18.a1_in1k, "),
        ({"encoder": "../resnet18"}, r"must be a name of timm's, got '\.\./resnet18'"),
        ({"encoder": 18}, "must be a name of timm's, got 18"),
        (
            {"encoder": "vit_tiny_patch16_224"},
            "strides 16, 16, .* none at 4, 8, 32; 4, .* are needed",
        ),
        ({"encoder": "coatnet_0_224"}, "made for pictures of 224x224 and does not take any size"),
        ({"name": "fassd_net_l2", "encoder": SMALL}, "place of HarDNet with its stem"),
        ({"name": "fassd_nt@resnet18d"}, "unknown model .*did you mean 'fassd_net'"),
        ({"name": "fassd_net@resnet18d", "encoder": SMALL}, "has encoder resnet18d, asked for was"),
        ({"name": "fassd_net@resnet18d+dilations0-1-2"}, "dilations must be an integer from 1 to"),
        ({"dilations": (1, 2)}, r"dilations must be three integers, got \(1, 2\)"),
        ({"pretrained": True}, "no encoder is given"),
        ({"encoder": SMALL, "weights": "imagenet"}, "pretrained=True starts from timm's weights"),
        ({"encoder": SMALL, "weights": "cityscapes"}, "none were published for 'fassd_net@mobile"),
    ],
)
def test_what_cannot_be_built_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "fassd_net", **arguments})


def test_without_timm_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"need timm .*pip install 'fassd-net\[encoders\]'"):
        create_model("fassd_net", encoder="repvgg_a1")
    create_model("fassd_net_l2")  # nothing else changes


# --- weights --------------------------------------------------------------------------------------


@every_encoder
def test_a_file_tells_its_network(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = network(encoder)
    remember(model, NetworkInfo.of(f"fassd_net@{encoder}", 2, CLASSES))
    save_weights(path, model, {"network": info_of(model).to_json()})
    loaded, x = fassd.load(path), picture(*SIZE)
    assert info_of(loaded) == info_of(model) == read_info(path)
    assert info_of(loaded).model == f"fassd_net@{encoder}"
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_files_own_normalisation_counts(tmp_path: Path) -> None:
    """Another version of timm may have another one."""
    path = tmp_path / "best.safetensors"
    own = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "RGB")
    model = network(SMALL)
    model.base.preprocessing = own
    remember(model, NetworkInfo.of(f"fassd_net@{SMALL}", 2, CLASSES))
    save_weights(path, model, {"network": info_of(model).to_json()})
    assert preprocessing_of(fassd.load(path)) == own
    segmenter = fassd.Segmenter(path, backend="reference")
    with torch.no_grad():
        right = model(torch.from_numpy(normalize(street(), own))[None])
    assert torch.equal(segmenter.logits(street()), right[0])
    with pytest.raises(ValueError, match="asked for was model fassd_net@resnet18d"):
        create_model("fassd_net", encoder="resnet18d", weights=path)
    create_model("fassd_net", weights=path)


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": [0, 0]}, {"std": [0.1, 0, 0.1]}, {"channels": "RBG"}, {"mean": ["x", 0, 0]},
        {"std": [1e999, 1, 1]}, {"more": 1},
    ],
)  # fmt: skip
def test_a_normalisation_that_makes_no_sense_is_an_error(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    info = NetworkInfo.of(f"fassd_net@{SMALL}", 2, CLASSES).to_json()
    own = {"mean": [0.1, 0.1, 0.1], "std": [0.1, 0.1, 0.1], "channels": "RGB", **damage}
    text = json.dumps({"network": {**info, "preprocessing": own}})
    save_file({"x": torch.zeros(1)}, path, {"fassd": text})
    with pytest.raises(ValueError, match=r"w\.safetensors: its metadata cannot be understood"):
        read_info(path)


def test_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASSD_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = pretrained_file("resnet18d")
    assert path == tmp_path / "timm/resnet18d.ra2_in1k.safetensors"
    with pytest.raises(DownloadError, match=f"timm/resnet18d.ra2_in1k of the.*\n.*at {path}"):
        create_model("fassd_net", encoder="resnet18d", pretrained=True)
    torch.manual_seed(5)
    state = timm.create_model("resnet18d").state_dict()  # as the hub has it, classifier and all
    path.parent.mkdir()
    save_file(state, path)
    model = create_model("fassd_net", encoder="resnet18d", pretrained=True)
    found = model.base.body.state_dict()
    assert found and all(torch.equal(value, state[key]) for key, value in found.items())
    del state["layer3.0.conv1.weight"]
    save_file(state, path)
    fails = r"resnet18d\.ra2_in1k\.safetensors does not fit the encoder 'resnet18d': .*"
    with pytest.raises(ValueError, match=fails + r"without layer3\.0\.conv1\.weight"):
        create_model("fassd_net", encoder="resnet18d", pretrained=True)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=fails):
        create_model("fassd_net", encoder="resnet18d", pretrained=True)
    without = next(name for name, cost in read_table().items() if cost and not has_weights(name))
    with pytest.raises(ValueError, match=f"timm has no pretrained weights for the enc.*{without}"):
        create_model("fassd_net", encoder=without, pretrained=True)


def has_weights(encoder: str) -> bool:
    config = timm.get_pretrained_cfg(encoder)
    return config is not None and bool(config.has_weights)


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_normalised_as_the_encoder_has_it() -> None:
    image = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 7)], 1)[None].astype(
        "uint8"
    )
    found = normalize(image, IMAGENET).astype(np.float64).transpose(1, 2, 0)
    right = (image / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    assert np.abs(found - right).max() < 1e-6
    assert np.array_equal(normalize(image, IMAGENET)[::-1], normalize(image))  # the same constants
    assert IMAGENET.mean_color == OURS.mean_color == (124, 116, 104)
    assert preprocessing_of(network(SMALL)) == IMAGENET
    assert preprocessing_of(create_model("fassd_net_l2")) == OURS
    assert preprocessing_of(nn.Identity()) == preprocessing_of(None) == OURS
    half = create_model("fassd_net", encoder="mobilenetv3_large_100.miil_in21k_ft_in1k")
    assert preprocessing_of(half) == Preprocessing((0.0,) * 3, (1.0,) * 3, "RGB")


def test_a_teacher_gets_pictures_as_it_takes_them() -> None:
    own, other = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "RGB"), OURS
    batch = torch.from_numpy(normalize(street(), own))[None]
    right = torch.from_numpy(normalize(street(), other))[None]
    assert (renormalized(batch, own, other) - right).abs().max() < 1e-5
    assert renormalized(right, other, other) is right


# --- fused kernels --------------------------------------------------------------------------------


@every_encoder
def test_accelerated(encoder: str) -> None:
    model = network(encoder)
    fast = fassd_kernels.accelerate(model)
    assert isinstance(fast, FusedNetwork) and isinstance(fast.DAPF, FusedDAPF)
    assert all(isinstance(part, FusedMDA) for part in fast.mda)
    for size in (SIZE, (65, 131)):
        x = picture(*size, batch=2)
        right = exact(model, x)
        with torch.no_grad():
            assert relative_error(fast(x), right) <= 4e-6
            labels = fast.predict_labels(x)
        assert (labels == right.argmax(1)).double().mean() >= 0.999
    assert fast.state_dict().keys() == model.state_dict().keys()


def test_edits_of_an_accelerated_copy() -> None:
    model = network(SMALL)
    copied = copy.deepcopy(fassd_kernels.accelerate(model))
    with torch.no_grad():
        copied.base.project[0].conv.weight.mul_(2)
        model.base.project[0].conv.weight.mul_(2)
        x = picture(*SIZE)
        assert relative_error(copied(x), exact(model, x)) <= 4e-6
        for each in (copied, model):
            next(each.base.body.parameters()).mul_(-1)
        assert relative_error(copied(x), exact(model, x)) <= 4e-6


def test_pictures_of_an_accelerated_network() -> None:
    model, frames = network(SMALL), np.stack([street(), street()[::-1]])
    batch = torch.from_numpy(np.stack([normalize(frame, IMAGENET) for frame in frames]))
    right = exact(model, batch).argmax(1)
    fast = fassd_kernels.accelerate(model, output="labels")
    with torch.no_grad():
        own = IMAGENET.mean_levels, IMAGENET.std_levels
        labels = fast.label_pictures(torch.from_numpy(frames), *own)
    assert (labels == right).double().mean() >= 0.999
    for wrapped in (model, nn.Sequential(model)):
        run = fassd_kernels.Runner(wrapped, size=SIZE, device="cpu", batch=2)
        assert (torch.from_numpy(run(frames)) == right).double().mean() >= 0.999
    for backend in ("auto", "reference"):
        found = fassd.Segmenter(model, backend=backend).predict(list(frames))
        assert (torch.from_numpy(np.stack(found)) == right).double().mean() >= 0.999


def test_branches_are_merged_for_inference() -> None:
    model, x = network("repvgg_a0"), picture(*SIZE)
    merged = reparameterize(copy.deepcopy(model))
    assert len(merged.base.body.state_dict()) < len(model.base.body.state_dict()) / 3
    with torch.no_grad():
        assert relative_error(merged(x), exact(model, x)) <= 2e-6
    for backend in ("auto", "reference"):
        own = fassd.Segmenter(model, backend=backend).model
        assert own.state_dict().keys() == merged.state_dict().keys()
    assert set(model.state_dict()) - set(merged.state_dict())  # the caller's own is as it was


def test_dtypes() -> None:
    model, x = network("resnet18d"), picture(*SIZE)
    with torch.no_grad():
        half = fassd_kernels.accelerate(model, dtype=torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, exact(model, x)) <= 5e-2


# --- training -------------------------------------------------------------------------------------


@every_encoder
def test_a_training_step(encoder: str) -> None:
    # Float32's rounding grows in statistics of few pixels.
    model = network(encoder).double().train()
    fast = fassd_kernels.accelerate(model)
    x = picture(*SIZE, batch=2).double()
    for each in (model, fast):
        each(x).square().mean().backward()
    gradients = dict(model.named_parameters())
    for name, parameter in fast.named_parameters():
        right = gradients[name].grad
        assert right is not None and parameter.grad is not None, name
        assert (parameter.grad - right).norm() <= 1e-8 * max(right.norm().item(), 1e-6), name


def test_a_strided_1x1_of_few_channels_trains_in_nchw() -> None:
    model = network("repvgg_a0").to(memory_format=torch.channels_last).train()
    avoid_unsound_gradients(model, torch.device("cpu"), "float32")
    seen: dict[tuple[int, ...], bool] = {}

    def look(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        key = (module.in_channels, *module.kernel_size, *module.stride)
        seen[key] = inputs[0].is_contiguous()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    model.encode(picture(*SIZE, batch=2).contiguous(memory_format=torch.channels_last))
    assert seen[3, 1, 1, 2, 2] and not seen[3, 3, 3, 2, 2] and not seen[48, 1, 1, 2, 2]


def test_synchronised_batch_norms_keep_their_activations(monkeypatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    model = network(SMALL)
    found = synchronized(copy.deepcopy(model))
    kinds = [type(part).__name__ for part in found.modules()]
    assert "SyncBatchNormAct" in kinds and "SyncBatchNorm" in kinds
    assert not any(isinstance(part, nn.BatchNorm2d) for part in found.modules())
    assert found.state_dict().keys() == model.state_dict().keys()
    acts = sum(hasattr(part, "act") for part in model.base.body.modules())
    assert sum(hasattr(part, "act") for part in found.base.body.modules()) == acts


# --- exported files -------------------------------------------------------------------------------


# The command exports another, and of one that merges branches pictures of any size go in below.
SAMPLE = {("convnext_atto", "onnx"), ("hgnetv2_b0", "torch"), (SMALL, "onnx")}


def exports() -> Iterator[Any]:
    """Every encoder in every kind of file; a few where time is short."""
    for pair in itertools.product(ENCODERS, ("onnx", "torch")):
        yield pytest.param(*pair, marks=[] if pair in SAMPLE else [pytest.mark.slow])


@pytest.mark.parametrize(("encoder", "kind"), list(exports()))
def test_exported(encoder: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("net.onnx" if kind == "onnx" else "net.pt2")
    backend = "reference" if kind == "onnx" else "auto"
    request = Request(f"fassd_net@{encoder}", kind, num_classes=3, size=SIZE, backend=backend)
    exporter = Exporter(request)
    with staged(path) as unnamed:
        exporter.write(unnamed)
    exported = ExportedNetwork(path)
    assert exported.metadata.variant == f"fassd_net@{encoder}"
    assert preprocessing_of(exported) == IMAGENET
    found = json.loads(exported.metadata.to_json())["input"]
    assert (found["channels"], found["mean_channels"]) == ("RGB", "RGB")
    assert found["mean"] == pytest.approx([123.675, 116.28, 103.53])
    result = verify(exported, exporter.source, [street()])
    assert result.logits is not None and result.logits <= 1e-4
    right = fassd.Segmenter(exporter.source, backend="reference").predict(street())
    assert (fassd.Segmenter(exported).predict(street()) == right).mean() >= 0.999


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_pictures_of_any_size_exported(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("net.onnx" if kind == "onnx" else "net.pt2")
    options: dict[str, Any] = {"size": None, "preprocess": True, "output": "labels+confidence"}
    # Whose labels, of random weights, tell maps that are cut too short.
    exporter = Exporter(Request("fassd_net@repvgg_a0", kind, num_classes=3, **options))
    with staged(path) as unnamed:
        exporter.write(unnamed)
    exported = ExportedNetwork(path)
    found = json.loads(exported.metadata.to_json())["input"]
    assert (found["channels"], found["mean_channels"], found["layout"]) == ("RGB", "RGB", "NHWC")
    pictures = [street((96, 160)), street((70, 101)), street((65, 64))]
    assert verify(exported, exporter.source, pictures).labels >= 0.999
    normal = torch.from_numpy(normalize(pictures[1], IMAGENET))[None]  # made a picture again
    image = torch.from_numpy(pictures[1])[None]
    assert torch.equal(exported.predict_labels(normal), exported.predict_labels(image))


# --- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder", [*ENCODERS, "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]
)
def test_the_table_of_encoders_is_what_is_counted(encoder: str) -> None:
    assert read_table()[encoder] == cost_of(encoder)


def test_the_cost_of_a_network_has_its_encoder() -> None:
    cost = analyze(create_model("fassd_net", encoder="resnet18d"))
    own = read_table()["resnet18d"]
    (body,) = (part for part in cost.parts if part.name == "base.body")
    assert own is not None and (body.params, body.conv_macs) == own

    def decoder(complexity: Any) -> int:
        return sum(part.conv_macs for part in complexity.parts if not part.name.startswith("base."))

    assert decoder(cost) == decoder(analyze(create_model("fassd_net")))
