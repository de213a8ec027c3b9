import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fassd.models.encoder import import_torchvision
from fassd.training import ConfusionMatrix

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/training.json").read_text())


def labelled(shape, salt, num_classes=19):
    """The golden file's labels: 250 for about a tenth of the pixels."""
    rng = np.random.default_rng([11, salt])
    labels = rng.integers(0, num_classes, shape)
    labels[rng.random(shape) < 0.1] = 250
    return labels


def guessed(labels, salt, num_classes=19):
    """The golden file's predictions, right for some 6 of 10 pixels."""
    rng = np.random.default_rng([17, salt])
    right = rng.random(labels.shape) < 0.6
    return np.where(
        right, np.where(labels == 250, 0, labels), rng.integers(0, num_classes, labels.shape)
    )


def counted(labels, predictions, num_classes=19, ignore_index=250):
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(labels, predictions)
    return matrix


def test_scores_equal_the_authors():
    golden = GOLDEN["score"]
    labels = labelled((2, 64, 96), golden["salt"])
    scores = counted(labels, guessed(labels, golden["salt"])).scores()
    assert scores.pixel_accuracy == pytest.approx(golden["Overall Acc"], rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(golden["Mean Acc"], rel=1e-12)
    assert scores.frequency_weighted_accuracy == pytest.approx(golden["FreqW Acc"], rel=1e-12)
    assert scores.miou == pytest.approx(golden["Mean IoU"], rel=1e-12)
    assert scores.iou == pytest.approx(golden["iou"], rel=1e-12)


@pytest.mark.parametrize("absent", [(), (0, 3), (1, 2, 3, 5)])
def test_equal_to_torchmetrics_with_absent_classes(absent):
    import_torchvision()  # which torchmetrics imports where there is one
    from torchmetrics.classification import (  # three seconds, which every worker would take
        MulticlassAccuracy,
        MulticlassConfusionMatrix,
        MulticlassF1Score,
        MulticlassJaccardIndex,
        MulticlassPrecision,
        MulticlassRecall,
    )

    labels = labelled((3, 40, 50), 1, 6)
    predictions = guessed(labels, 1, 6)
    for index in absent:  # in truth and prediction
        labels[labels == index] = 4
        predictions[predictions == index] = 4
    labels[labels == 0] = 4  # class 0 is only ever predicted, except where it is absent
    truth, guess = torch.from_numpy(labels), torch.from_numpy(predictions)
    kwargs = {"num_classes": 6, "ignore_index": 250}
    matrix = counted(labels, predictions, 6)
    torch.testing.assert_close(matrix.matrix, MulticlassConfusionMatrix(**kwargs)(guess, truth))
    scores = matrix.scores()
    assert scores.miou == pytest.approx(MulticlassJaccardIndex(**kwargs)(guess, truth).item())
    micro = MulticlassAccuracy(**kwargs, average="micro")(guess, truth).item()
    assert scores.pixel_accuracy == pytest.approx(micro)
    iou = MulticlassJaccardIndex(**kwargs, average="none")(guess, truth)
    dice = MulticlassF1Score(**kwargs, average="none")(guess, truth)
    precision = MulticlassPrecision(**kwargs, average="none")(guess, truth)
    recall = MulticlassRecall(**kwargs, average="none")(guess, truth)
    for index in range(6):
        # Theirs are 0 where ours are NaN.
        for own, theirs in ((scores.precision, precision), (scores.recall, recall)):
            assert np.nan_to_num(own[index]) == pytest.approx(theirs[index].item(), abs=1e-6)
        if index in absent:
            assert math.isnan(scores.iou[index]) and math.isnan(scores.dice[index])
        else:
            assert scores.iou[index] == pytest.approx(iou[index].item(), abs=1e-6)
            assert scores.dice[index] == pytest.approx(dice[index].item(), abs=1e-6)


def test_small_case_by_hand():
    matrix = counted([[0, 0, 0, 1], [1, 1, 255, 255]], [[0, 0, 1, 1], [1, 2, 2, 0]], 4, 255)
    assert matrix.matrix.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = matrix.scores()
    assert scores.iou[:3] == (2 / 3, 2 / 4, 0.0) and math.isnan(scores.iou[3])
    assert scores.dice[:3] == pytest.approx((4 / 5, 4 / 6, 0.0)) and math.isnan(scores.dice[3])
    assert scores.miou == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.mean_accuracy == pytest.approx(2 / 3)  # class 2 has no truth: not in the mean
    assert scores.frequency_weighted_accuracy == pytest.approx((3 * 2 / 3 + 3 * 1 / 2) / 6)


def test_precision_recall_and_means_by_hand():
    """Class 2 is never right, class 3 is predicted alone, class 4 is nowhere."""
    matrix = counted([0, 0, 0, 1, 1, 2, 255], [0, 0, 1, 1, 3, 0, 2], 5, 255)
    scores = matrix.scores()
    assert scores.precision[:2] == (2 / 3, 1 / 2) and scores.precision[3] == 0
    assert scores.recall[:3] == (2 / 3, 1 / 2, 0)
    nothing = (*scores.precision[2::2], *scores.recall[3:], scores.iou[4], scores.dice[4])
    assert len(nothing) == 6 and all(map(math.isnan, nothing))
    assert scores.mean(scores.precision) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.mean(scores.recall) == scores.mean_accuracy == pytest.approx(7 / 6 / 3)
    assert scores.iou[:4] == (2 / 4, 1 / 3, 0, 0)
    assert scores.miou == scores.mean(scores.iou) == pytest.approx(5 / 6 / 4)
    assert scores.mean(scores.dice) == pytest.approx((4 / 6 + 2 / 4) / 4)

    left = matrix.scores(without=[0, 2])
    assert left.iou[:4] == scores.iou[:4] and left.pixel_accuracy == scores.pixel_accuracy
    assert left.frequency_weighted_accuracy == scores.frequency_weighted_accuracy
    assert left.miou == pytest.approx((1 / 3 + 0) / 2)
    assert left.mean_accuracy == 1 / 2 and left.mean(left.precision) == 1 / 4
    assert math.isnan(matrix.scores(without=[0, 1, 2, 3]).miou)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_updates_add_up_whatever_the_dtype_and_container(dtype):
    labels = labelled((4, 20, 30), 3)
    predictions = guessed(labels, 3)
    whole = counted(labels, predictions)
    parts = ConfusionMatrix(19, 250)
    read_only = labels[:3].astype(dtype)
    read_only.flags.writeable = False
    parts.update(read_only, torch.from_numpy(predictions[:3].astype(dtype)))
    parts.update(torch.from_numpy(labels[3:].astype(dtype)), predictions[3:].astype(dtype))
    assert torch.equal(parts.matrix, whole.matrix)
    assert whole.matrix.sum() == (labels != 250).sum()


def test_one_class_only():
    scores = counted([[0, 0]], [[0, 0]], 1).scores()
    assert (scores.iou, scores.miou, scores.pixel_accuracy) == ((1.0,), 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0, 1, 1], r"same shape, got \(2,\) and \(3,\)"),
        ([0, 3], [0, 1], r"labels must be 0 to 2 \(or 255 for pixels to ignore\), got 3"),
        ([0, -1], [0, 1], "labels must be 0 to 2 .*, got -1"),
        ([0, 1], [0, 3], "predictions must be 0 to 2, got 3"),
        ([0, 255], [0, 255], "predictions must be 0 to 2, got 255"),
        ([0, 1], [-2, 1], "predictions must be 0 to 2, got -2"),
        ([0.0, 1.0], [0, 1], "labels must be integers, got float64"),
        ([0, 1], torch.tensor([0.0, 1.0]), r"predictions must be integers, got torch.float32"),
        ([0, 1], torch.tensor([False, True]), r"predictions must be integers, got torch.bool"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_changes_nothing(labels, predictions, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(labels, predictions)
    assert matrix.matrix.sum() == 0


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match=r"nothing to score: no pixel .* labelled 255"):
        counted([255, 255], [0, 1], 2, 255).scores()
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)


def test_reduce_in_one_process_changes_nothing():
    matrix = counted([0, 1, 1], [0, 0, 1], 2)
    assert matrix.reduce() is matrix
    assert matrix.matrix.tolist() == [[1, 0], [1, 1]]
    assert "num_classes=2" in repr(matrix) and "pixels=3" in repr(matrix)
