"""The official scores of semantic segmentation, from one matrix of counts.

Source: the Cityscapes benchmark's intersection over union, and the mean and frequency weighted
scores of Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fassd.distributed import sum_over_ranks
from fassd.io.palette import IGNORE


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, all in 0 .. 1.

    Attributes:
        iou: intersection over union of every class: correct pixels over those that have the class
            in the truth, the prediction or both; NaN for a class that is in neither.
        precision: correct pixels of every class over the pixels predicted as it; NaN without any.
        recall: correct pixels of every class over the pixels that have it in the truth; NaN without
            any.
        pixel_accuracy: correct pixels over all pixels.
        frequency_weighted_accuracy: mean of `iou`, weighted by pixels in the truth.
        without: positions of the classes that are left out of every mean over classes. Their pixels
            still count in the two scores above.
    """

    iou: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    pixel_accuracy: float
    frequency_weighted_accuracy: float
    without: tuple[int, ...] = ()

    @property
    def dice(self) -> tuple[float, ...]:
        """Dice coefficient (F1 score) of every class, over all pixels together, as in `iou`."""
        return tuple(2 * iou / (1 + iou) for iou in self.iou)

    @property
    def miou(self) -> float:
        """The mean of `iou`, without classes that are in neither truth nor prediction."""
        return self.mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """The mean of `recall` over the classes in the truth."""
        return self.mean(self.recall)

    def mean(self, of_classes: Sequence[float]) -> float:
        """The mean over classes, except NaNs and those in `without`; NaN if none is left."""
        values = [
            value
            for index, value in enumerate(of_classes)
            if index not in self.without and not math.isnan(value)
        ]
        return math.fsum(values) / len(values) if values else math.nan


class ConfusionMatrix:
    """A count of pixels by true and predicted class.

    The counts are 64-bit integers, so that neither order nor grouping of the updates matters.

    Args:
        num_classes: number of classes C; labels and predictions are 0 .. C - 1.
        ignore_index: label of the pixels to leave out, whatever their prediction.

    Attributes:
        matrix: (C, C) int64, [truth, prediction], on the device of the last predictions.

    Raises:
        ValueError: `num_classes` is below 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def __repr__(self) -> str:
        pixels = int(self.matrix.sum())
        return (
            f"ConfusionMatrix(num_classes={self.num_classes}, ignore_index={self.ignore_index}, "
            f"pixels={pixels})"
        )

    def update(
        self, labels: Tensor | npt.NDArray[Any], predictions: Tensor | npt.NDArray[Any]
    ) -> None:
        """Count the pixels of a picture or batch.

        Args:
            labels: ground truth, integers of any shape.
            predictions: predicted classes, integers of the same shape; they are counted on their
                device.

        Raises:
            ValueError: the shapes differ, a dtype is not an integer, a label is neither a class nor
                `ignore_index`, or a prediction is not a class. Nothing is counted then.
        """
        predicted = _integers("predictions", predictions)
        truth = _integers("labels", labels).to(predicted.device)
        if truth.shape != predicted.shape:
            raise ValueError(
                "labels and predictions must have the same shape, got "
                f"{tuple(truth.shape)} and {tuple(predicted.shape)}"
            )
        counted = truth != self.ignore_index
        truth = truth[counted]
        self._check("labels", truth, f" (or {self.ignore_index} for pixels to ignore)")
        self._check("predictions", predicted)
        cell = truth * self.num_classes + predicted[counted]
        counts = torch.bincount(cell, minlength=self.num_classes**2)
        self.matrix = self.matrix.to(counts.device) + counts.view_as(self.matrix)

    def _check(self, name: str, values: Tensor, also: str = "") -> None:
        if values.numel() == 0:
            return
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{name} must be 0 to {self.num_classes - 1}{also}, got {low if low < 0 else high}"
            )

    def reduce(self) -> ConfusionMatrix:
        """Add up the counts of all torch.distributed processes, in place; once, at the end.

        Every process has to call this method. In a single process it changes nothing.
        """
        self.matrix = sum_over_ranks(self.matrix)
        return self

    def scores(self, without: Sequence[int] = ()) -> Scores:
        """Compute the scores of everything that was counted.

        Args:
            without: positions of classes to leave out of the means.

        Raises:
            ValueError: no pixel was counted.
        """
        counts = self.matrix.cpu().numpy().astype(np.float64)  # exact up to 2^53 pixels
        total = counts.sum()
        if total == 0:
            raise ValueError(
                "there is nothing to score: no pixel was counted, "
                f"or all are labelled {self.ignore_index} (to ignore)"
            )
        correct, truth, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
        with np.errstate(invalid="ignore"):  # absent classes give 0 / 0
            iou = correct / (truth + predicted - correct)
            precision = correct / predicted
            recall = correct / truth
        present = truth > 0
        return Scores(
            iou=tuple(iou.tolist()),
            precision=tuple(precision.tolist()),
            recall=tuple(recall.tolist()),
            pixel_accuracy=float(correct.sum() / total),
            frequency_weighted_accuracy=float((truth * iou)[present].sum() / total),
            without=tuple(without),
        )


def _integers(name: str, values: Tensor | npt.NDArray[Any]) -> Tensor:
    """`values` as an int64 tensor on its own device."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex() or values.dtype is torch.bool:
            raise ValueError(f"{name} must be integers, got {values.dtype}")
        return values.to(torch.int64)
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))
