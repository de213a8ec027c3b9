"""FASSD-Nets whose convolutions compute in bytes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs.test_quantized import error
from torch import Tensor, nn

import fassd
from fassd.data import normalize
from fassd.inference.strips import UnboundedError, plan
from fassd.models.preprocess import preprocessing_of
from fassd.synth import render_street
from fassd_kernels import FusedNetwork, accelerate

SCENES = [render_street(72, 136, seed=seed, split="train")[0] for seed in range(4)]


def prepared(scene: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(normalize(scene))[None]


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Any]:
    torch._dynamo.reset()
    model = fassd.create_model("fassd_net_l2", weights="streets").eval()
    return model, accelerate(model, dtype=torch.int8, calibration=map(prepared, SCENES))


@pytest.fixture(scope="module")
def segmenter(pair: tuple[nn.Module, Any]) -> fassd.Segmenter:
    return fassd.Segmenter(pair[0], dtype=torch.int8, calibration=iter(SCENES))


def test_every_convolution_but_the_first_and_last_is_measured(
    pair: tuple[nn.Module, Any],
) -> None:
    model, fast = pair
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    written = [name for name in fast.quantization.grids if "reads" not in name]
    assert len(written) == len(convolutions)


def test_labels_are_those_of_the_logits(
    pair: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fast = pair
    x = prepared(SCENES[1])
    with torch.no_grad():
        logits = fast(x)
        labels = fast.predict_labels(x)
        assert labels.dtype == torch.uint8
        assert (labels == logits.argmax(1)).double().mean() > 0.999
        monkeypatch.setattr(fast, "output", "labels+confidence")
        assert fast(x)[:, 0].equal(labels)


def test_pictures_are_normalised(pair: tuple[nn.Module, Any]) -> None:
    _, fast = pair
    own = preprocessing_of(fast)
    scene = render_street(72, 136, seed=3)[0]
    x = prepared(scene)
    with torch.no_grad():
        of_pictures = fast.label_pictures(
            torch.from_numpy(scene)[None], own.mean_levels, own.std_levels
        )
        assert (of_pictures == fast.predict_labels(x)).double().mean() > 0.99


def test_training_and_parts_are_the_models(pair: tuple[nn.Module, Any]) -> None:
    model, fast = (copy.deepcopy(each) for each in pair)
    x = torch.cat([*map(prepared, SCENES[:2])])
    with torch.no_grad():
        torch.testing.assert_close(fast.encode_part(x, 0, 3), model.encode_part(x, 0, 3))
        expected = model(x)
        hook = fast.base[1].register_forward_hook(lambda *_: None)
        torch.testing.assert_close(fast(x), expected, rtol=1e-3, atol=1e-3)
        hook.remove()
    fast.train(), model.train()
    torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


def test_segmenter(pair: tuple[nn.Module, Any], segmenter: fassd.Segmenter) -> None:
    _, fast = pair
    assert segmenter.dtype == torch.float32
    with torch.no_grad():
        expected = fast.predict_labels(prepared(SCENES[0]))[0].numpy()
    assert np.array_equal(segmenter.predict(SCENES[0]), expected)


def test_logits(pair: tuple[nn.Module, Any]) -> None:
    model, fast = pair
    assert isinstance(fast, FusedNetwork) and fast.dtype == torch.float32
    assert fast.state_dict().keys() == model.state_dict().keys()
    # Another size than above: from here on Dynamo captures for any, in twice the time.
    x = torch.cat([prepared(render_street(97, 130, seed=seed)[0]) for seed in range(2)])
    assert 0 < error(fast, model, x) < 0.1
    with torch.no_grad():
        assert (fast(x).argmax(1) == model(x).argmax(1)).double().mean() > 0.95


def test_bad_segmenters() -> None:
    scene = np.zeros((64, 96, 3), np.uint8)
    with pytest.raises(ValueError, match="int8 needs calibration, pictures like those"):
        fassd.Segmenter("fassd_net_l2", dtype=torch.int8)
    with pytest.raises(ValueError, match="calibration is for a network in int8 alone"):
        fassd.Segmenter("fassd_net_l2", calibration=[scene])
    with pytest.raises(ValueError, match=r"missing\.png: no such file"):
        settings: Any = {"dtype": torch.int8, "calibration": [Path("missing.png"), scene]}
        fassd.Segmenter("fassd_net_l2", **settings)


def test_strips_are_not_in_bytes(segmenter: fassd.Segmenter, tmp_path: Path) -> None:
    with pytest.raises(UnboundedError, match="strips are not computed in int8"):
        plan(segmenter, None, tmp_path)  # type: ignore[arg-type]
