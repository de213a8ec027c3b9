"""What tests of the networks share."""

import pytest
import torch
from golden import golden as helper
from torch import nn

from fassd.models import CheckpointError, load_checkpoint


@pytest.fixture(scope="session")
def golden():
    """The module ``tests/golden/golden.py``: `fill` and `image`."""
    return helper


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
