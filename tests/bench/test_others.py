"""Networks of others: found by name, and measured as ours are."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fassd.bench import stopwatch
from fassd.bench.candidates import candidates
from fassd.bench.jobs import Job, network_of
from fassd.bench.onnx_runtimes import exported, onnx_runtime, openvino
from fassd.bench.others import (
    OTHERS,
    build_other,
    prepare_for_inference,
    published,
    runs_foreign_code,
)
from fassd.bench.results import Results
from fassd.bench.run import run
from fassd.evaluation.agreement import Agreement, agreement_of

FACTORIES = """
import torch
from torch import nn


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 5, 3, 2, 1), nn.Conv2d(5, 5, 1))

    def forward(self, x):
        first = self.first(x)
        return first, self.second(first)


class Named(Maps):
    def forward(self, x):
        return {"out": self.first(x)}


def small_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 7, 1))


def number():
    return 5


made = small_net()
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the working folder."""
    (tmp_path / "networks_of_mine.py").write_text(FACTORIES)
    (tmp_path / "broken_of_mine.py").write_text("import what_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    for name in ("networks_of_mine", "broken_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "networks_of_mine"


def need(package: str) -> None:
    """Skip without a package; importing it comes behind `import_torchvision`."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


def job(model: str) -> Job:
    return Job(model, size=(64, 96), repeats=2, warmup=0, memory=False)


# --- by name --------------------------------------------------------------------------------------


def test_a_factory_of_the_working_folder_is_found(factories: str) -> None:
    for name in ("small_net", "made"):
        assert not build_other(f"{factories}:{name}").training


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("networks_of_mine:smal_net", ValueError, "has no smal_net; did you mean small_net"),
        ("networks_of_mine:number", ValueError, r"gives a int; expected a torch\.nn\.Module"),
        ("networks_of_mine:", ValueError, "is not package.module:factory"),
        ("nowhere_at_all:net", ImportError, "No module named 'nowhere_at_all'"),
        ("broken_of_mine:net", ImportError, "No module named 'what_nobody_has'"),
        ("timm:resnet18e", ValueError, "unknown encoder 'resnet18e'.*did you mean .*resnet18d"),
        ("smp:Unet", ValueError, "'Unet' is not ARCH/ENCODER"),
    ],
)
def test_what_is_wrong_with_a_name(
    factories: str, place: str, kind: type[Exception], message: str
) -> None:
    if place.startswith("timm"):
        need("timm")
    with pytest.raises(kind, match=message):
        build_other(place)


def test_networks_of_smp() -> None:
    need("segmentation_models_pytorch")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert build_other("smp:unet/resnet18")(x).shape == (1, 19, 64, 96)
    with pytest.raises(ValueError, match="no architecture 'Umet'; did you mean Unet"):
        build_other("smp:Umet/resnet18")
    with pytest.raises(ValueError, match="no encoder 'resnet19'; did you mean resnet18"):
        build_other("smp:Unet/resnet19")


def test_smp_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'fassd-net\[smp\]'"):
        build_other("smp:Unet/resnet18")


def test_encoders_of_timm_give_maps_at_four_strides() -> None:
    need("timm")
    with torch.no_grad():
        maps = build_other("timm:resnet18d")(torch.rand(1, 3, 64, 96))
    assert [tuple(each.shape[2:]) for each in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("network", OTHERS, ids=lambda network: network.title)
def test_published_networks_give_logits_of_full_size(network) -> None:
    if network.missing:
        pytest.skip(f"needs {network.missing}")
    with torch.no_grad():
        assert build_other(network.model)(torch.randn(1, 3, 128, 256)).shape == (1, 19, 128, 256)


def test_only_known_names_are_built_of_a_file() -> None:
    assert runs_foreign_code("os:abort")
    known = ("fassd_net", "timm:resnet18d", "smp:Unet/resnet18", OTHERS[0].model)
    assert not any(map(runs_foreign_code, known))


def test_settings_lose_weights_auxiliary_heads_and_synchronised_norms() -> None:
    settings = {
        "auxiliary_head": [{"type": "FCNHead"}],
        "data_preprocessor": {"type": "X"},
        "backbone": {
            "pretrained": "somewhere",
            "norm_cfg": {"type": "SyncBN"},
            "stages": ({"init_cfg": {"checkpoint": "there"}},),
        },
    }
    prepare_for_inference(settings)
    assert settings == {
        "data_preprocessor": None,
        "backbone": {
            "pretrained": None,
            "norm_cfg": {"type": "BN"},
            "stages": ({"init_cfg": None},),
        },
    }


# --- measured -------------------------------------------------------------------------------------


def test_a_network_of_others_is_measured_as_ours_are(factories: str) -> None:
    chosen = candidates(only=["eager", "channels_last", "ours"])
    report = run([job(f"{factories}:small_net")], chosen, compiler="eager")
    (measured,) = report.results.comparisons
    assert list(measured.by_name) == ["eager NCHW", "eager channels_last", "ours"]  # no labels
    for result in measured.results:
        assert result.comparable and 0 < result.max_relative_difference < 1e-5
    assert measured.params == 3 * 8 * 9 + 8 + 8 * 7 + 7
    assert measured.macs == (3 * 8 * 9 + 8 * 7) * 64 * 96
    assert report.scenes == () and not measured.notes
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert json.loads(json.dumps(Results.of(record).to_json())) == record
    console = Console(width=100, highlight=False)
    with console.capture() as text:
        console.print(report)
    assert "frames/s" in text.get() and max(map(len, text.get().splitlines())) <= 100


def test_several_outputs_are_compared_each(factories: str) -> None:
    chosen = candidates(only=["eager", "ours"])
    (measured,) = run([job(f"{factories}:Maps")], chosen).results.comparisons
    for result in measured.results:
        assert result.comparable and result.max_relative_difference < 1e-5


def test_an_output_that_is_no_tensor_is_an_error(factories: str) -> None:
    with pytest.raises(ValueError, match="Named gives a dict; expected a tensor"):
        run([job(f"{factories}:Named")], candidates(only=["eager"]))


def test_other_runtimes_give_several_outputs(factories: str) -> None:
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    network, x = network_of(job(f"{factories}:Maps")), torch.rand(1, 3, 64, 96)
    onnx = exported(network, (x,))
    with torch.no_grad():
        right = network(x)
    for start in (onnx_runtime, openvino):
        found = start(onnx, x.device, torch.float32)(x)
        assert agreement_of(right, found).relative < 1e-5


def test_of_several_outputs_the_worst_counts() -> None:
    x = torch.rand(1, 4, 8, 8)
    wrong = x.clone()
    wrong[0, 0] += 0.5 * x.max()
    assert agreement_of([x, x], (x, x)) == Agreement(100.0, 0.0)
    assert agreement_of([x, x], [x, wrong]).relative == pytest.approx(0.5)
    assert math.isnan(agreement_of([x, x], [x * math.nan, wrong]).relative)
    with pytest.raises(ValueError, match="expected 2 outputs, got 1"):
        agreement_of([x, x], [x])
    with pytest.raises(ValueError, match=r"outputs must be tensors.*got list and Tensor"):
        agreement_of([x], x)


def test_published_rates_are_quoted() -> None:
    (sentence,) = published("fassd.bench.others:pidnet_s")
    assert sentence.startswith("published: 93.2 frames/s at 1024x2048 on RTX 3090")
    assert published("timm:resnet18d") == []
