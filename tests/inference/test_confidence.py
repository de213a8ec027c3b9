"""How certain labels are, and the probabilities behind them, by `Segmenter`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fassd
from fassd.inference.segmenter import Segmenter
from fassd.io.palette import overlay
from fassd.models.info import info_of, remember
from fassd.synth import render_street
from fassd_kernels.reference.upsample import certainty_of

MEASURES = ("probability", "margin", "entropy")


@pytest.fixture(scope="module")
def picture():
    return render_street(150, 200, seed=1, split="val")[0]


@pytest.fixture(scope="module")
def network():
    model = fassd.create_model("fassd_net_l2", weights="streets").eval()
    remember(model, replace(info_of(model), temperature=1.5))
    return model


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "reference"},
        {"backend": "auto"},
        {"backend": "auto", "size": (96, 128)},
        {"backend": "auto", "scales": (0.75, 1.25), "flip": True},
    ],
    ids=["reference", "fused", "resized", "views"],
)
def test_certainty_is_that_of_the_probabilities(network, picture, measure, settings):
    segmenter = Segmenter(network, **settings)
    labels, certainty = segmenter.predict(picture, confidence=measure)
    probabilities = segmenter.probabilities(picture)
    assert probabilities.shape == (19, 150, 200)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(150, 200))
    assert (labels == segmenter.predict(picture)).mean() > 0.9999
    right = 255 * certainty_of(probabilities[None], measure)[0].numpy()
    assert certainty.dtype == np.uint8 and certainty.shape == (150, 200)
    assert np.abs(certainty - right).max() <= 1
    assert len(np.unique(certainty)) > 40


def test_the_temperature_of_the_weights_counts(network, picture):
    softer = Segmenter(network).probabilities(picture)
    logits = Segmenter(network).logits(picture)
    torch.testing.assert_close(softer, (logits / 1.5).softmax(0), rtol=1e-3, atol=1e-5)


def test_a_list_gives_a_list(network, picture):
    segmenter = Segmenter(network)
    found = segmenter.predict([picture, picture[:100]], confidence="margin")
    assert [(labels.shape, sure.shape) for labels, sure in found] == [
        ((150, 200), (150, 200)),
        ((100, 200), (100, 200)),
    ]


def test_what_is_refused(network, picture):
    with pytest.raises(ValueError, match="confidence must be one of probability, margin, entropy"):
        Segmenter(network).predict(picture, confidence="certain")
    many = Segmenter(fassd.create_model("fassd_net_l2", 300))
    with pytest.raises(ValueError, match="at most 256 classes, the network has 300"):
        many.predict(picture, confidence="margin")


def test_an_overlay_fades_where_labels_are_uncertain(picture):
    labels = np.zeros(picture.shape[:2], np.uint8)
    certainty = np.full_like(labels, 255)
    certainty[:50], certainty[50:100] = 0, 128
    faded = overlay(picture, labels, 0.6, certainty=certainty)
    np.testing.assert_array_equal(faded[:50], picture[:50])
    np.testing.assert_array_equal(faded[100:], overlay(picture, labels, 0.6)[100:])
    half = overlay(picture, labels, 0.3)[50:100].astype(int)
    assert np.abs(faded[50:100] - half).max() <= 2


def test_labels_do_not_depend_on_the_temperature(picture):
    """Of several views either, of which there are two sums then."""
    cold, warm = (fassd.create_model("fassd_net_l2", weights="streets").eval() for _ in range(2))
    remember(warm, replace(info_of(warm), temperature=3.0))
    settings = {"backend": "reference", "scales": (0.75, 1.0), "flip": True}
    one, other = (Segmenter(each, **settings) for each in (cold, warm))
    labels, certainty = other.predict(picture, confidence="probability")
    np.testing.assert_array_equal(labels, one.predict(picture))
    np.testing.assert_array_equal(labels, other.predict(picture))
    assert certainty.mean() < 0.9 * one.predict(picture, confidence="probability")[1].mean()
    right = other.probabilities(picture).numpy().max(0)
    assert np.abs(certainty - 255 * right).max() <= 1
