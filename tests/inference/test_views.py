import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli.conftest import calibrated
from PIL import Image
from torch import nn
from training.fakes import FakeDataset, random_network

import fassd
from fassd.data import normalize
from fassd.export.exported import ExportedNetwork
from fassd.inference import views as module
from fassd.inference.segmenter import Segmenter, accelerated
from fassd.inference.views import SummedViews, Views, rows_of
from fassd.models.layers import logits_of
from fassd.training import evaluate


def enlarged(logits, size):
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def mean_of_views(network, image, scales, flip, size=None):
    """The mean probabilities in float64, every view at full size, (classes, H, W)."""
    own = image.shape[:2]
    views = []
    for scale in scales:
        height, width = (round(side * scale) for side in size or own)
        seen = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        for mirrored in (False, True) if flip else (False,):
            shown = np.ascontiguousarray(seen[:, ::-1]) if mirrored else seen
            logits = logits_of(network(torch.from_numpy(normalize(shown))[None])).double()
            shares = enlarged(logits, own).softmax(1)
            views.append(shares.flip(3) if mirrored else shares)
    return torch.stack(views).mean(0)[0].detach()


@pytest.fixture(autouse=True)
def bands(monkeypatch):
    """Bands of a few rows, so that every picture has several."""
    monkeypatch.setattr(module, "BAND", 3000)


@pytest.fixture(scope="module")
def street():
    return FakeDataset(1, num_classes=19, enlarged=2)[0].image


# ------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [(37, 53)],
        [(80, 100), (37, 53)],
        [(11, 30)],
        [(5, 4)],
        [(1, 1), (5, 7)],
        [(9, 9), (1, 3)],
    ],
)
def test_rows_are_those_of_the_whole(sizes, rows):
    logits = torch.randn(1, 5, 11, 17, generator=torch.Generator().manual_seed(0))
    expected = logits.double()
    for size in sizes:
        expected = enlarged(expected, size)
    height = expected.shape[2]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        parts = [
            rows_of(logits.to(dtype), sizes, top, min(top + rows, height))
            for top in range(0, height, rows)
        ]
        torch.testing.assert_close(torch.cat(parts, 2).double(), expected, rtol=0, atol=tolerance)


def test_many_views_become_one_sum_and_few_wait():
    torch.manual_seed(0)
    added = [torch.randn(1, 4, 10, 13) for _ in range(7)]
    total = SummedViews((40, 30))
    expected = torch.zeros(1, 4, 40, 30, dtype=torch.float64)
    for index, logits in enumerate(added):
        total.add(logits, (20, 26), index % 2 == 1)
        seen = logits.flip(3) if index % 2 else logits
        expected += enlarged(enlarged(seen.double(), (20, 26)), (40, 30)).softmax(1)
        held = sum(each.numel() for each, _ in total._waiting)
        assert held < 4 * 40 * 30
    torch.testing.assert_close(total.mean().double(), expected[0] / 7, rtol=0, atol=1e-6)
    assert (not total._totals) == (7 * 520 < 4800)
    for logits in added:  # as large as the picture: each is summed at once
        total.add(enlarged(logits, (40, 30)), None, False)
        assert not total._waiting and total._totals[1.0].shape == (4, 40, 30)


# -------------------------------------------------------------------------------------- segmenter


VIEWS = [((1.0,), True), ((0.75, 1.0, 1.6), False), ((2.0,), False), ((0.8, 1.25), True)]


@pytest.mark.parametrize(("scales", "flip"), VIEWS)
@pytest.mark.parametrize("size", [None, (80, 144)])
def test_the_largest_mean_probability(scales, flip, size):
    image = FakeDataset(1)[0].image
    network = random_network(stride=2)
    segmenter = Segmenter(network, backend="reference", scales=scales, flip=flip, size=size)
    expected = mean_of_views(network, image, scales, flip, size)
    probabilities = segmenter.logits(image).exp()
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=2e-6)
    labels = segmenter.predict(image)
    assert labels.dtype == np.uint8 and labels.shape == image.shape[:2]
    assert (labels != expected.argmax(0).numpy()).sum() <= 2  # ties that rounding breaks
    once = Segmenter(network, backend="reference", size=size).predict(image)
    assert (labels != once).mean() > 0.001


@pytest.mark.parametrize("name", ["fassd_net_l2", "fassd_net"])
def test_fused_networks_give_the_views_of_the_reference(name, street):
    """Their logits are never enlarged whole: `scores` is what runs."""
    model = calibrated(name)
    settings = {"scales": (1.0, 1.25), "flip": True, "device": "cpu"}
    fused = Segmenter(model, **settings)
    plain = Segmenter(model, backend="reference", **settings)
    fused.model.forward = lambda *_: pytest.fail("full-size logits were made")
    expected = plain.logits(street).exp()
    torch.testing.assert_close(fused.logits(street).exp(), expected, rtol=0, atol=1e-3)
    assert (fused.predict(street) == expected.argmax(0).numpy()).mean() > 0.999


def test_val_counts_the_same_labels():
    """One mechanism: what `evaluate` counts is what `predict` gives."""
    dataset = FakeDataset(2, num_classes=19, enlarged=2)
    model = accelerated(calibrated("fassd_net_l2"))
    seen = []
    evaluate(
        model, dataset, scales=(1.0, 1.3), flip=True, on_sample=lambda *what: seen.append(what)
    )
    segmenter = Segmenter(model, scales=(1.0, 1.3), flip=True)
    for _, sample, predicted in seen:
        np.testing.assert_array_equal(segmenter.predict(sample.image), predicted)


def test_hooks_of_a_network_are_called(street):
    model = accelerated(calibrated("fassd_net_l2"))
    calls = []
    segmenter = Segmenter(model, flip=True)
    segmenter.model.register_forward_hook(lambda *what: calls.append(what[2].shape))
    segmenter.predict(street)
    assert calls == [(1, 19, *street.shape[:2])] * 2


def test_labels_of_more_than_256_classes():
    network = nn.Conv2d(3, 300, 1)
    image = FakeDataset(1)[0].image
    labels = Segmenter(network, backend="reference", flip=True).predict(image)
    assert labels.dtype == np.uint16
    expected = mean_of_views(network, image, (1,), True).argmax(0).numpy()
    assert (labels == expected).mean() > 0.999


@pytest.mark.parametrize(
    "scales", [(), (1, 0), (-1,), (float("inf"),), (float("nan"),), 2.0, "1", None, ("1",)]
)
def test_scales_are_checked(scales):
    with pytest.raises(ValueError, match="scales must be one or more positive numbers, got"):
        Segmenter(random_network(), backend="reference", scales=scales)
    assert Views([1], False).plain and not Views((1.0, 1.0)).plain


def test_a_view_too_small_for_the_network_is_named(street):
    segmenter = Segmenter(fassd.create_model("fassd_net_l2"), device="cpu", scales=(1, 0.1))
    with pytest.raises(ValueError, match="picture 0: the input must be at least 57x57"):
        segmenter.predict([street])


class Fixed(ExportedNetwork):
    """A file that takes one size alone."""

    def __init__(self, output="logits"):
        nn.Module.__init__(self)
        self.path = "net.onnx"
        self.metadata = type("Metadata", (), {"output": output, "alpha": 2, "size": (64, 96)})()
        self.metadata.num_classes, self.metadata.dtype = 4, "float32"
        self.metadata.takes_pictures = True
        self.inside = random_network()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        x = torch.from_numpy(normalize(x[0].numpy()))[None]
        logits = self.inside(x)
        if self.metadata.output == "logits":
            return logits
        return F.one_hot(logits.argmax(1), 4).movedim(3, 1).float()


def test_a_file_of_one_size_can_be_mirrored_but_not_scaled():
    with pytest.raises(ValueError, match=r"net.onnx takes pictures of 64x96 alone: scales have"):
        Segmenter(Fixed(), scales=(0.5, 1))
    image = FakeDataset(1)[0].image
    network = Fixed()
    labels = Segmenter(network, flip=True).predict(image)
    assert network.seen == [(1, 64, 96, 3)] * 2
    expected = mean_of_views(network.inside, image, (1,), True, size=(64, 96))
    assert (labels != expected.argmax(0).numpy()).sum() <= 2


def test_of_a_file_of_labels_the_views_vote():
    image = FakeDataset(1)[0].image
    network = Fixed("labels")
    segmenter = Segmenter(network, flip=True)
    votes = segmenter.logits(image).exp()
    assert votes.max() == 1 and votes.min() == 0
    torch.testing.assert_close(votes.sum(0), torch.ones(image.shape[:2]))


# ----------------------------------------------------------------------------------------- memory

MEASURED = """
import resource, sys
import numpy as np, torch
import fassd
from fassd.inference.segmenter import Segmenter
torch.set_num_threads(1)
flip, classes = sys.argv[1] == "flip", 150
model = fassd.create_model("fassd_net_l2", num_classes=classes)
segmenter = Segmenter(model, device="cpu", flip=flip)
segmenter.predict(np.zeros((64, 64, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
segmenter.predict(np.zeros((1024, 1024, 3), np.uint8))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_of_views_is_not_that_of_their_full_size_logits():
    """150 classes at 1024x1024 are 629 MB of logits; the network itself takes far less."""
    peaks = {}
    for views in ("once", "flip"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, views], capture_output=True, text=True, check=True
        )
        peaks[views] = int(done.stdout)
    assert peaks["flip"] < peaks["once"] + 100, peaks
