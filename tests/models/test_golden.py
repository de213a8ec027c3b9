"""The networks against figures and arrays of the original authors' implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.analogy import BY_ANALOGY

from fassd.models import DAPF, MDA, VARIANTS, HarDBlock, create_model, list_models

FOLDER = Path(__file__).parents[1] / "golden"
NUMBERS = json.loads((FOLDER / "numbers.json").read_text())
KEYS = json.loads((FOLDER / "state_keys.json").read_text())
LOGITS, OUTPUTS = np.load(FOLDER / "logits.npz"), np.load(FOLDER / "modules.npz")
VARIANT_NUMBERS = {**NUMBERS["variants"], **BY_ANALOGY}
WITH_KEYS = ["fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70"]

MODULES = {
    "dapf_c32_alpha2_48x96": (lambda: DAPF(32, 2), (1, 32, 48, 96)),
    "dapf_c48_alpha4_33x50": (lambda: DAPF(48, 4), (2, 48, 33, 50)),
    "mda_c63_d2_24x40": (lambda: MDA(63, 2), (1, 63, 24, 40)),
    "mda_c119_d4_17x23": (lambda: MDA(119, 4), (1, 119, 17, 23)),
    "mda_c32_d8_20x28": (lambda: MDA(32, 8), (2, 32, 20, 28)),
    "hardblock_c48_g10_n4_20x28": (lambda: HarDBlock(48, 10, 1.7, 4), (1, 48, 20, 28)),
    "hardblock_c96_g18_n8_12x20": (lambda: HarDBlock(96, 18, 1.7, 8), (1, 96, 12, 20)),
}


def test_the_nine_names_and_those_by_analogy():
    assert set(list_models()) == set(VARIANT_NUMBERS)
    assert len(NUMBERS["variants"]) == 9
    analogous = {name for name, variant in VARIANTS.items() if variant.by_analogy}
    assert analogous == set(BY_ANALOGY)
    for name in analogous:
        variant = VARIANTS[name]
        assert variant.description.startswith("Unpublished, by analogy: ")
        assert variant.published is None and not variant.reports


def test_further_published_scores():
    reports = [
        (name, report.source, report.data, report.miou, report.fps, report.device)
        for name, variant in VARIANTS.items()
        for report in variant.reports
    ]
    icpr, t_its, gtx = "abstract, ICPR 2020", "abstract, IEEE T-ITS 2021", "GTX 1080 Ti"
    assert reports == [
        ("fassd_net", icpr, "Cityscapes val", 78.8, 41.1, gtx),
        ("fassd_net", t_its, "Cityscapes", 77.5, 41, gtx),
        ("fassd_net", t_its, "CamVid", 69.3, 80, gtx),
        ("fassd_net_l2", icpr, "Cityscapes val", 74.1, 133.1, gtx),
        ("fassd_net_l2", t_its, "Cityscapes", 74.0, 32, "Jetson Xavier NX"),
        ("fc_hardnet_70", "its authors", "Cityscapes val", 77.7, None, ""),
        ("fc_hardnet_70", "its authors", "Cityscapes test", 75.9, 67, "Titan V"),
        ("fc_hardnet_70", "PaddleSeg", "Cityscapes val", 79.0, None, ""),
    ]


@pytest.mark.parametrize("name", list_models())
def test_parameters(name):
    params = sum(parameter.numel() for parameter in create_model(name).parameters())
    assert params == VARIANT_NUMBERS[name]["params"]


@pytest.mark.parametrize("name", list_models())
def test_published_figures(name):
    talk = VARIANT_NUMBERS[name]["talk"]
    published = VARIANTS[name].published
    assert (published and vars(published)) == talk


@pytest.mark.parametrize("alpha", [4, 6, 8])
def test_parameters_by_alpha(alpha):
    params = sum(p.numel() for p in create_model("fassd_net", alpha=alpha).parameters())
    assert params == NUMBERS["fassd_net_by_alpha"][str(alpha)]["params"]


@pytest.mark.parametrize("name", WITH_KEYS)
def test_state_keys_in_order(name):
    state = create_model(name).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == KEYS[name]


@pytest.mark.parametrize("name", WITH_KEYS)
def test_logits(name, golden):
    model = golden.fill(create_model(name))
    with torch.no_grad():
        logits = model(golden.image((1, 3, 256, 512)))
    assert logits.shape == (1, 19, 256, 512)
    np.testing.assert_allclose(logits[..., ::8, ::8], LOGITS[name], rtol=0, atol=2e-3)


def test_every_golden_module_is_tested():
    assert set(MODULES) == set(OUTPUTS)


@pytest.mark.parametrize("name", MODULES)
def test_modules(name, golden):
    build, shape = MODULES[name]
    with torch.no_grad():
        output = golden.fill(build())(golden.image(shape))
    np.testing.assert_allclose(output, OUTPUTS[name], rtol=0, atol=2e-4)
