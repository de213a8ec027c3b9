"""What was measured, put beside what was predicted. The measuring itself needs a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fassd.bench import timeline
from fassd.bench.costs import cuda as predict
from fassd.bench.timeline import Kernel, Timeline
from fassd_kernels.triton import availability

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)


@pytest.fixture(scope="module")
def prediction():
    return predict.predict_network("fassd_net_l2", 64, 128, predict.find_device("h200"))


def replay(prediction, seconds):
    """Kernels that each end so many seconds after the one before, and overlap with it."""
    return [
        Kernel(f"void fassd::cuda::{launch.kernel}<8, 2>()", (i - 0.5) * seconds, (i + 1) * seconds)
        for i, launch in enumerate(prediction.launches)
    ]


def test_medians_of_the_replays(prediction):
    replays = [replay(prediction, seconds) for seconds in (1.0, 5.0, 2.0)]
    found = timeline.measured(prediction, Timeline(replays, [70.0, 90.0, 80.0]))
    assert found.replay == 80.0
    first, *others = [launch.measured for launch in found.launches]
    assert first == 3.0  # nothing ends before it: from its own begin
    assert others == pytest.approx([2.0] * (len(prediction.launches) - 1))
    assert found.total("measured") == pytest.approx(2 * len(prediction.launches) + 1)
    assert [replace(launch, measured=None) for launch in found.launches] == [*prediction.launches]
    assert found.to_json()["measured_s"] == 80.0
    assert found.groups()[0].to_json()["measured_s"] == 3.0


def test_other_kernels_than_predicted(prediction):
    kernels = replay(prediction, 1.0)
    kernels[2] = replace(kernels[2], name="void at::native::copy")
    with pytest.raises(ValueError, match=r"launch 3, conv, is predicted .*; the GPU ran .*copy"):
        timeline.measured(prediction, Timeline([kernels], [1.0]))
    with pytest.raises(ValueError, match="launches are predicted; the GPU ran 2"):
        timeline.measured(prediction, Timeline([replay(prediction, 1.0)[:2]], [1.0]))


def test_where_it_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timeline.unmeasurable("NVIDIA H200") == "torch sees no CUDA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert timeline.unmeasurable("NVIDIA H200") == "this machine's GPU is NVIDIA L4"
    backend = {"cuda": predict.torch.nn.Module()}
    backend["cuda"].reason = "not built"
    monkeypatch.setattr(timeline, "backends", lambda: backend)
    expected = "the cuda backend is not available: not built"
    assert timeline.unmeasurable("NVIDIA L4") == expected
    backend["cuda"].reason = ""
    assert timeline.unmeasurable("NVIDIA L4") == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_this_gpu():
    why = timeline.unmeasurable(torch.cuda.get_device_name())
    if why:
        pytest.skip(why)
    device = predict.find_device(torch.cuda.get_device_name())
    prediction = predict.predict_network("fassd_net_l2", 256, 512, device)
    found = timeline.measured(prediction, timeline.time_network(prediction, 3, 19, 2))
    assert all(launch.measured > 0 for launch in found.launches)
    assert 0 < found.replay < 1
