"""Fixtures around ``tests/golden``: the helper that seeds weights, and the figures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

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
