"""Fixtures around ``tests/golden``: the helper that seeds weights, and the figures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fassd.models import CheckpointError, load_checkpoint

FOLDER = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """The module ``tests/golden/golden.py``: `fill` and `image`."""
    spec = importlib.util.spec_from_file_location("golden", FOLDER / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def numbers():
    return json.loads((FOLDER / "numbers.json").read_text())


@pytest.fixture(scope="session")
def state_keys():
    return json.loads((FOLDER / "state_keys.json").read_text())


@pytest.fixture(scope="session")
def golden_logits():
    return np.load(FOLDER / "logits.npz")


@pytest.fixture(scope="session")
def golden_modules():
    return np.load(FOLDER / "modules.npz")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def refused(model, path):
    """The message of the error, after a look that the model did not change."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(path) in str(caught.value)
    return str(caught.value)
