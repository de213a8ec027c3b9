"""Labels and how certain they are, of whole networks."""

import json
from dataclasses import replace

import pytest
import torch

import fassd
from fassd.models.info import NetworkInfo, info_of, remember, temperature_of
from fassd.models.preprocess import MEAN, STD
from fassd_kernels import accelerate
from fassd_kernels.reference.upsample import confident_labels

MEASURES = ("probability", "margin", "entropy")


@pytest.fixture(scope="module")
def network():
    return fassd.create_model("fassd_net_l2", weights="streets").eval()


@pytest.fixture(scope="module")
def batch():
    return torch.randn(2, 3, 97, 130, generator=torch.Generator().manual_seed(3))


def with_temperature(network, temperature):
    network = fassd.create_model("fassd_net_l2", weights="streets").eval()
    remember(network, replace(info_of(network), temperature=temperature))
    return network


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_an_accelerated_network_gives_what_its_logits_say(network, batch, measure, temperature):
    network = with_temperature(network, temperature)
    with torch.no_grad():
        right = confident_labels(network(batch), measure, temperature)
    fused = accelerate(network, output="labels+confidence", measure=measure)
    assert temperature_of(fused) == temperature
    with torch.no_grad():
        result = fused(batch)
        again = accelerate(network).predict_labels(batch, measure)
    assert result.dtype == torch.uint8 and result.shape == (2, 2, 97, 130)
    assert torch.equal(result, again)
    assert (result[:, 0] == right[:, 0]).float().mean() > 0.9999
    assert (result[:, 1].int() - right[:, 1].int()).abs().max() <= 1
    assert len(result[:, 1].unique()) > 20  # a map, no constant


def test_pictures_of_bytes(network):
    pictures = torch.randint(0, 256, (1, 80, 100, 3), dtype=torch.uint8)
    levels = [[255 * value for value in values] for values in (MEAN, STD)]
    fused = accelerate(network)
    both = fused.label_pictures(pictures, *levels, measure="entropy")
    assert torch.equal(both[:, 0], fused.label_pictures(pictures, *levels))
    mean, std = (torch.tensor(values)[:, None, None] for values in levels)
    batch = (pictures.flip(3).permute(0, 3, 1, 2).float() - mean) / std
    expected = fused.predict_labels(batch, "entropy")[:, 1]
    assert (both[:, 1].int() - expected.int()).abs().max() <= 1


def test_in_training_mode_it_gives_logits(network, batch):
    fused = accelerate(network, output="labels+confidence").train()
    assert fused(batch).shape == (2, 19, 97, 130)


def test_traced(network, batch):
    """Where resizing is PyTorch's own."""
    fused = accelerate(network, output="labels+confidence", measure="probability")
    with torch.no_grad():
        traced = torch.jit.trace(fused, batch)
        difference = traced(batch).int() - fused(batch).int()
    assert difference.abs().float().mean() < 0.01


def test_what_is_refused(network):
    with pytest.raises(ValueError, match="measure is 'certainty'; expected one of probability, ma"):
        accelerate(network, output="labels+confidence", measure="certainty")
    with pytest.raises(TypeError, match=r"output='labels\+confidence' needs a fassd.models.FASSDN"):
        accelerate(torch.nn.Sequential(network), output="labels+confidence")
    many = fassd.create_model("fassd_net_l2", 257).eval()
    with pytest.raises(ValueError, match="for at most 256 classes; the model has 257"):
        accelerate(many, output="labels+confidence")


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_a_temperature_in_a_file_is_checked(wrong):
    info = NetworkInfo.of("fassd_net", 2, [("road", (0, 0, 0))]).to_json()
    text = json.dumps({"network": {**info, "temperature": wrong}})
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        NetworkInfo.from_metadata(text)


def test_a_temperature_is_kept_in_metadata():
    info = replace(NetworkInfo.of("fassd_net", 2, [("road", (0, 0, 0))]), temperature=1.5)
    text = json.dumps({"network": info.to_json()})
    assert NetworkInfo.from_metadata(text) == info
