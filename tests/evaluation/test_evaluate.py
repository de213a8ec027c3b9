import io
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn
from training.fakes import CLASSES, FakeDataset, random_network

from fassd.bench.jobs import calibrate
from fassd.inference.segmenter import Segmenter, accelerated
from fassd.io.images import ImageError
from fassd.io.palette import CITYSCAPES
from fassd.models import NetworkInfo, create_model
from fassd.models.info import remember
from fassd.models.preprocess import normalize
from fassd.training import ConfusionMatrix, evaluate

TESTS = Path(__file__).parents[1]


def matrix_of(dataset, predict, indices=None):
    """Count what `predict(image)` says of every picture."""
    matrix = ConfusionMatrix(dataset.card.num_classes)
    for index in range(len(dataset)) if indices is None else indices:
        sample = dataset[index]
        matrix.update(sample.labels, predict(sample.image))
    return matrix.matrix


def input_of(image):
    return torch.from_numpy(normalize(image))[None]


# ------------------------------------------------------------------------------- the same figures


def test_the_same_labels_as_segmenter_and_its_scores():
    dataset = FakeDataset(2, num_classes=19, enlarged=2)
    torch.manual_seed(0)
    model = calibrate(create_model("fassd_net_l2"), input_of(dataset[0].image))
    segmenter = Segmenter(model, backend="reference")
    seen = []
    evaluation = evaluate(model, dataset, on_sample=lambda *what: seen.append(what))
    assert torch.equal(evaluation.matrix, matrix_of(dataset, segmenter.predict))
    assert evaluation.matrix.count_nonzero() > 20  # varied labels
    assert (evaluation.count, evaluation.skipped) == (2, ())
    assert [index for index, *_ in seen] == [0, 1]
    for index, sample, predicted in seen:
        np.testing.assert_array_equal(sample.image, dataset[index].image)
        np.testing.assert_array_equal(predicted, segmenter.predict(sample.image))
        assert predicted.dtype == np.uint8

    fused = evaluate(accelerated(model), dataset)
    moved = (fused.matrix - evaluation.matrix).abs().sum() / 2
    assert moved <= 0.002 * evaluation.matrix.sum()


@pytest.mark.parametrize(
    ("scales", "flip"),
    [((1.0,), True), ((0.5, 1.0, 1.7), False), ((2.0,), False), ((0.7, 1), True)],
)
def test_flip_and_scales_average_probabilities(scales, flip):
    model, dataset = random_network(), FakeDataset()

    def predict(image):
        height, width = image.shape[:2]
        views = []
        for scale in scales:
            size = (round(width * scale), round(height * scale))
            resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            for mirrored in (False, True) if flip else (False,):
                shown = resized[:, ::-1].copy() if mirrored else resized
                logits = model(input_of(shown))
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)
                probabilities = logits.softmax(1) if len(scales) > 1 or flip else logits
                views.append(probabilities.flip(3) if mirrored else probabilities)
        return torch.stack(views).mean(0)[0].argmax(0)

    expected = matrix_of(dataset, predict)
    actual = evaluate(model, dataset, scales=scales, flip=flip).matrix
    assert (actual - expected).abs().sum() <= 4  # ties that rounding breaks
    assert (actual - evaluate(model, dataset).matrix).abs().sum() > 100


def test_logits_at_a_fraction_of_the_size_are_enlarged():
    model, dataset = random_network(stride=4), FakeDataset()

    def predict(image):
        logits = F.interpolate(
            model(input_of(image)), image.shape[:2], mode="bilinear", align_corners=True
        )
        return logits[0].argmax(0)

    assert torch.equal(evaluate(model, dataset).matrix, matrix_of(dataset, predict))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_what_the_network_computes_in(dtype):
    dataset, half = FakeDataset(3), random_network().to(dtype)
    expected = matrix_of(dataset, lambda image: half(input_of(image).to(dtype))[0].argmax(0))
    assert torch.equal(evaluate(half, dataset).matrix, expected)


def test_every_module_keeps_its_mode_even_after_an_error():
    class Network(nn.Sequential):
        def forward(self, x):
            assert not any(module.training for module in self.modules())
            return super().forward(x)

    model = Network(nn.BatchNorm2d(3), random_network(), nn.Dropout(0.9)).train()
    model[0].eval()  # frozen, as in fine-tuning
    before = model[0].running_mean.clone()
    first = evaluate(model, FakeDataset())
    assert torch.equal(first.matrix, evaluate(model, FakeDataset()).matrix)
    with pytest.raises(ImageError):
        evaluate(model, FakeDataset(broken=[1]))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert torch.equal(model[0].running_mean, before)


def test_indices_choose():
    model, dataset = random_network(), FakeDataset()
    expected = matrix_of(dataset, lambda image: model(input_of(image))[0].argmax(0), [3, 1])
    evaluation = evaluate(model, dataset, indices=[3, 1])
    assert torch.equal(evaluation.matrix, expected) and evaluation.count == 2


# -------------------------------------------------------------------------------------- bad input


def test_bad_pictures_are_told_and_skipped_and_the_rest_counts():
    model, told = random_network(), []
    evaluation = evaluate(model, FakeDataset(broken=[0, 3]), on_bad=told.append)
    good = evaluate(model, FakeDataset(), indices=[1, 2, 4])
    assert torch.equal(evaluation.matrix, good.matrix)
    assert evaluation.count == 3
    assert evaluation.skipped == (
        "picture0.png: is damaged or truncated",
        "picture3.png: is damaged or truncated",
    )
    assert [str(error) for error in told] == list(evaluation.skipped)


def test_without_on_bad_the_first_bad_picture_ends_it():
    with pytest.raises(ImageError, match=r"picture3\.png: is damaged"):
        evaluate(random_network(), FakeDataset(broken=[3]))


def test_nothing_left_says_so_with_the_first_reason():
    with pytest.raises(ValueError, match=r"none of 2 pictures can be used; the first: picture0"):
        evaluate(random_network(), FakeDataset(2, broken=[0, 1]), on_bad=lambda _: None)
    with pytest.raises(ValueError, match=r"no pictures to evaluate \(of 0 in this split\)"):
        evaluate(random_network(), FakeDataset(0))
    with pytest.raises(ValueError, match="index must be 0 to 4 in this split, got 5"):
        evaluate(random_network(), FakeDataset(), indices=[1, 5])
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate(random_network(), FakeDataset(2, ignored=1))


def test_a_picture_too_small_for_the_network_is_named():
    told = []
    dataset = FakeDataset(1, num_classes=19)
    with pytest.raises(ValueError, match=r"none of 1 pictures"):
        evaluate(create_model("fassd_net"), dataset, scales=(0.5,), on_bad=told.append)
    assert str(told[0]).startswith("picture0.png: the input must be at least")


def test_labels_beyond_the_card_are_named():
    dataset = FakeDataset(3, shift=1)  # 1 to 4, where 0 to 3 are known
    with pytest.raises(ImageError, match=r"picture0\.png: labels must be 0 to 3 .*, got 4"):
        evaluate(random_network(), dataset)


def test_a_head_of_another_number_of_classes_is_refused_before_anything_runs():
    def never(*_):
        raise AssertionError("a picture was read")

    dataset = FakeDataset()
    dataset.__class__ = type("Unread", (FakeDataset,), {"__getitem__": never})
    message = "the network has 19 classes, but the data's labels have 4"
    with pytest.raises(ValueError, match=message):
        evaluate(create_model("fassd_net_l2"), dataset)
    message = "the network has 3 classes, but the data's labels have 4"
    with pytest.raises(ValueError, match=message):  # known from its first logits only
        evaluate(random_network(3), FakeDataset(), on_bad=never)


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (math.nan, r"its 0\.weight is not finite"),
        (1e38, r"its weights are finite, its computations .* overflow torch\.float32"),
    ],
)
def test_nan_is_an_error_not_a_score(factor, reason):
    model = nn.Sequential(random_network(3), random_network())
    with torch.no_grad():
        for weight in model.parameters():
            weight *= factor
    with pytest.raises(
        RuntimeError, match=rf"picture\d\.png: the network's logits .* NaN: {reason}"
    ):
        evaluate(model, FakeDataset(), on_bad=lambda _: None)


@pytest.mark.parametrize("scales", [(), (1, 0), (-1,), (math.inf,), (math.nan,)])
def test_scales_are_checked(scales):
    with pytest.raises(ValueError, match="scales must be one or more positive numbers"):
        evaluate(random_network(), FakeDataset(), scales=scales)


# ----------------------------------------------------------------------------------- what it tells


def test_classes_are_matched_by_name():
    model, dataset, seen = random_network(), FakeDataset(3), []
    evaluation = evaluate(model, dataset)
    order = [2, 0, 3, 1]
    remember(model, NetworkInfo("fassd_net", 2, tuple(f"kind {i}" for i in order)))
    renamed = evaluate(model, dataset, on_sample=lambda *what: seen.append(what[2]))
    places = np.argsort(order).tolist()  # of each kind among the network's classes
    assert torch.equal(renamed.matrix, evaluation.matrix[:, places])
    assert renamed.class_names == evaluation.class_names
    counts = np.bincount(np.concatenate([labels.ravel() for labels in seen]), minlength=CLASSES)
    assert np.count_nonzero(counts) > 2
    remember(model, NetworkInfo("fassd_net", 2, ("kind 0", "kind 1", "kind 2", "sort 3")))
    with pytest.raises(ValueError, match="only the network has 'sort 3'"):
        evaluate(model, dataset)


GROUPS = [(0, 3), (2,)]


def coarser(names=("kind 0", "kind 1", "kind 2", "kind 3")):
    """Pictures of two classes, which cover three of four; and a network that knows those."""
    dataset, model = FakeDataset(num_classes=2), random_network()
    dataset.card.named = "card 'coarse' (card.yaml)"
    dataset.card.covers = tuple(tuple(names[i] for i in group) for group in GROUPS)
    read = type(dataset).__getitem__

    class Halves(FakeDataset):
        def __getitem__(self, index):
            sample = read(self, index)
            sample.labels[sample.labels < 255] %= 2
            return sample

    dataset.__class__ = Halves
    remember(model, NetworkInfo("fassd_net", 2, tuple(f"kind {i}" for i in range(CLASSES))))
    return model, dataset


@pytest.mark.parametrize("flip", [False, True])
def test_groups_are_scored_by_the_sum_of_their_probabilities(flip):
    model, dataset = coarser()

    def predict(image):
        x = input_of(image)
        total = model(x).softmax(1)
        if flip:
            total = total + model(x.flip(3)).softmax(1).flip(3)
        return torch.stack([total[:, list(group)].sum(1) for group in GROUPS], 1)[0].argmax(0)

    seen = []
    evaluation = evaluate(model, dataset, flip=flip, on_sample=lambda *what: seen.append(what[2]))
    assert torch.equal(evaluation.matrix, matrix_of(dataset, predict))
    assert evaluation.class_names == ("kind 0", "kind 1")
    assert {label for labels in seen for label in np.unique(labels)} == {0, 1}

    def of_most_likely(image):
        """What the largest class says, where the sum of two smaller ones may be larger."""
        return torch.tensor([0, 1, 1, 0])[model(input_of(image))[0, [0, 2, 3]].argmax(0)]

    assert not torch.equal(evaluation.matrix, matrix_of(dataset, of_most_likely))


def test_what_gives_labels_alone_is_scored_by_their_groups():
    """An exported file: 1 for a class is all of its probability, be the other group larger."""
    model, dataset = coarser()
    dataset.card.covers = (("kind 0", "kind 1", "kind 3"), ("kind 2",))

    class Labels(nn.Module):
        metadata = SimpleNamespace(output="labels")

        def forward(self, x):
            return F.one_hot(model(x).argmax(1), CLASSES).movedim(3, 1).float()

    network = Labels()
    remember(network, NetworkInfo("fassd_net", 2, tuple(f"kind {i}" for i in range(CLASSES))))
    expected = matrix_of(dataset, lambda image: model(input_of(image))[0].argmax(0).eq(2).int())
    assert torch.equal(evaluate(network, dataset).matrix, expected)


def test_a_card_that_covers_classes_which_the_network_lacks():
    model, dataset = coarser(("kind 0", "kind 1", "kind 2", "kind 9"))
    message = r"card 'coarse' \(card.yaml\): its class 'kind 0' covers 'kind 9', which is none of"
    with pytest.raises(ValueError, match=message):
        evaluate(model, dataset)


def test_a_network_that_tells_no_names_has_cityscapes_if_it_has_19_classes():
    dataset = FakeDataset(1, num_classes=3, enlarged=2)
    dataset.card.named = "card 'coarse' (card.yaml)"
    names = [info.name for info in CITYSCAPES]
    dataset.card.covers = (tuple(names[:5]), tuple(names[5:11]), tuple(names[11:]))
    torch.manual_seed(0)
    model = calibrate(create_model("fassd_net_l2"), input_of(dataset[0].image))

    def predict(image):
        parts = model(input_of(image)).softmax(1)[0].split([5, 6, 8])
        return torch.stack([part.sum(0) for part in parts]).argmax(0)

    dataset.__class__ = type(
        "Three", (FakeDataset,), {"__getitem__": lambda self, index: of_three(self, index)}
    )
    assert torch.equal(evaluate(model, dataset).matrix, matrix_of(dataset, predict))


def of_three(dataset, index):
    sample = FakeDataset.__getitem__(dataset, index)
    sample.labels[sample.labels < 255] %= 3
    return sample


def test_json_and_table():
    dataset = FakeDataset(broken=[1], num_classes=CLASSES + 1)  # the last class never comes
    model = random_network(CLASSES + 1)
    nn.init.constant_(model.bias[CLASSES:], -1e4)
    evaluation = evaluate(model, dataset, on_bad=lambda _: None)
    figures = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert figures["miou"] == evaluation.scores.miou
    assert figures["classes"][0] == {
        "name": "kind 0",
        "iou": evaluation.scores.iou[0],
        "dice": evaluation.scores.dice[0],
        "precision": evaluation.scores.precision[0],
        "recall": evaluation.scores.recall[0],
        "pixels": evaluation.matrix[0].sum().item(),
    }
    assert set(figures["classes"][CLASSES].values()) == {f"kind {CLASSES}", None, 0}
    assert figures["mean"]["iou"] == figures["miou"] and figures["without"] == []
    assert figures["mean"]["recall"] == figures["mean_accuracy"]
    assert figures["confusion"] == evaluation.matrix.tolist()
    assert (figures["pictures"], figures["skipped"]) == (4, list(evaluation.skipped))
    assert figures["pictures_per_second"] == pytest.approx(4 / figures["seconds"])

    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation)
    lines = console.file.getvalue().splitlines()
    scores = evaluation.scores
    kinds = (scores.iou, scores.dice, scores.precision, scores.recall)
    percents = [f"{100 * score[0]:.2f}" for score in kinds]
    assert lines[1].split()[:6] == ["kind", "0", *percents]
    assert lines[1 + CLASSES].split() == ["kind", str(CLASSES), "absent", "0.00"]
    means = [f"{100 * scores.mean(score):.2f}" for score in kinds]
    assert lines[2 + CLASSES].split() == ["mean", *means]
    assert f"mIoU {100 * evaluation.scores.miou:.2f}%, pixel accuracy" in lines[-2]
    assert "4 pictures in" in lines[-1] and "1 skipped" in lines[-1]


def test_classes_are_left_out_of_the_means():
    model, dataset = random_network(), FakeDataset()
    whole = evaluate(model, dataset).scores
    evaluation = evaluate(model, dataset, without=["kind 2", "kind 0", "kind 2"])
    assert evaluation.scores.without == (0, 2) and evaluation.scores.iou == whole.iou
    assert evaluation.scores.miou == pytest.approx((whole.iou[1] + whole.iou[3]) / 2)
    assert evaluation.to_json()["without"] == ["kind 0", "kind 2"]
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation)
    assert f"mIoU {100 * evaluation.scores.miou:.2f}% without kind 0, kind 2, pixel" in (
        console.file.getvalue()
    )
    with pytest.raises(ValueError, match="the data has no class 'kind 9'; it has 'kind 0', "):
        evaluate(model, dataset, without=["kind 0", "kind 9"])
    with pytest.raises(ValueError, match="without leaves none of the data's 4 classes"):
        evaluate(model, dataset, without=[f"kind {index}" for index in range(CLASSES)])


# ---------------------------------------------------------------------------------- many processes


@pytest.fixture(scope="module")
def two_processes():
    """What each of two processes of one Gloo group has to tell: two_processes.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "training/two_processes.py"],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output) for output in outputs]


def test_two_processes_count_what_one_does(two_processes):
    evaluation = evaluate(random_network(), FakeDataset(broken=[1, 2]), on_bad=lambda _: None)
    for rank, told in enumerate(two_processes):
        assert told["rank"] == [rank, 2, rank == 0]
        assert told["matrix"] == evaluation.matrix.tolist()
        assert told["miou"] == evaluation.scores.miou
        assert told["count"] == 3
        assert told["skipped"] == list(evaluation.skipped)
    # Each had every second picture.
    assert [told["seen"] for told in two_processes] == [[0, 4], [3]]


def test_more_processes_than_pictures(two_processes):
    alone = evaluate(random_network(), FakeDataset(1))
    assert [told["one picture"] for told in two_processes] == [alone.matrix.tolist()] * 2


def test_what_stops_one_process_stops_the_other(two_processes):
    first, second = (told["error"] for told in two_processes)
    assert first == "RuntimeError: process 1: picture1.png: is damaged or truncated"
    assert second == "ImageError: picture1.png: is damaged or truncated"
