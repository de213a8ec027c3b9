import pytest
from training.streets import Recorder, small_recipe, write_cityscapes

from fassd.models.device import torch_threads
from fassd.training.loop import Trainer


@pytest.fixture(scope="module")
def one_thread():
    """Sums over threads round by their number; another test may have changed it."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def card(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="session")
def whole(card, tmp_path_factory):
    """A run without interruption: its folder and what it reported."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    recorder = Recorder()
    with torch_threads(1):
        evaluation = Trainer(small_recipe(), card, folder, reporter=recorder).run()
    return folder, recorder, evaluation
