"""The weights in the package: what they weigh, whom they fit, and that they mean something."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fassd
import fassd_kernels
from fassd.data import normalize
from fassd.models.weights import SHIPPED, SHIPPED_NETWORKS, shipped
from fassd.models.zoo import default_weights
from fassd.synth import render_street
from fassd.training import ConfusionMatrix

SCENES = 4
FILES = [(name, weights) for name in SHIPPED_NETWORKS for weights in SHIPPED]
# Of a few scenes; the model card has the figures of a hundred.
LEAST_MIOU = {
    ("fassd_net", "synthetic"): 0.5,
    ("fassd_net", "streets"): 0.4,
    ("fassd_net_l2", "synthetic"): 0.4,
    ("fassd_net_l2", "streets"): 0.3,
}


@pytest.fixture(scope="module")
def scenes():
    """Held-out scenes: of textures that training never saw."""
    return [render_street(512, 1024, 0, split="val", index=index) for index in range(SCENES)]


@pytest.fixture(scope="module", params=FILES, ids="-".join)
def predictions(request, scenes):
    """Logits of plain PyTorch for each scene."""
    name, weights = request.param
    model = fassd.create_model(name, weights=weights).eval()
    with torch.inference_mode():
        logits = [model(torch.from_numpy(normalize(image))[None]) for image, _ in scenes]
    return request.param, model, logits


@pytest.mark.parametrize(("name", "which"), FILES)
def test_every_tensor_is_there_convolutions_in_half(name, which):
    assert shipped(name, which).stat().st_size < 6e6
    weights = load_file(shipped(name, which))
    assert weights.keys() == fassd.create_model(name).state_dict().keys()
    assert all(value.dtype == torch.float16 for value in weights.values() if value.dim() == 4)
    assert all(value.isfinite().all() for value in weights.values())


def test_they_know_scenes_that_they_never_saw(predictions, scenes):
    file, _, logits = predictions
    matrix = ConfusionMatrix(19)
    for (_, labels), scores in zip(scenes, logits, strict=True):
        matrix.update(labels, scores[0].argmax(0))
    assert matrix.scores().miou > LEAST_MIOU[file]


def test_fused_modules_give_the_same_labels(predictions, scenes):
    """In float32 at least 99.9% of them."""
    _, model, logits = predictions
    fast = fassd_kernels.accelerate(model)
    same = total = 0
    with torch.inference_mode():
        for (image, _), expected in zip(scenes, logits, strict=True):
            result = fast(torch.from_numpy(normalize(image))[None])
            error = (result.double() - expected.double()).norm() / expected.double().norm()
            assert error < 1e-4
            same += (result.argmax(1) == expected.argmax(1)).sum().item()
            total += expected[0, 0].numel()
    assert same / total >= 0.999


def test_they_are_the_default_of_the_networks_that_have_them():
    assert default_weights("fassd_net") == default_weights("fassd_net_l2") == "streets"
    assert default_weights("fassd_net_l1") is None
    assert default_weights("fassd_net", 11) is None and default_weights("fassd_net", 19, 4) is None


def test_a_segmenter_takes_them_by_name(predictions, scenes):
    (name, weights), _, logits = predictions
    segmenter = fassd.Segmenter(name, weights=weights, backend="reference", device="cpu")
    labels = segmenter.predict(scenes[0][0])
    np.testing.assert_array_equal(labels, logits[0][0].argmax(0).numpy())
