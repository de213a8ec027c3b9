"""Class weights for the loss, from the number of pixels of each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from fassd.data.check import WORKERS, count_pair
from fassd.data.dataset import SegmentationDataset
from fassd.data.groups import LabelSpace, Members
from fassd.distributed import is_main, rank, sum_over_ranks, world_size
from fassd.io.images import ImageError
from fassd.io.palette import IGNORE
from fassd.training.recipe import Recipe


def class_weights(
    recipe: Recipe,
    space: LabelSpace,
    datasets: Sequence[SegmentationDataset],
    tell: Callable[[str], object],
) -> list[float] | None:
    """Compute the weight of each class and group for a recipe's `balance`; None if that is 0.

    Every picture and mask is read once; files that cannot be read do not count.
    """
    if not recipe.balance:
        return None
    if is_main():  # it may take minutes
        tell(f"balance: counting the labels of {sum(map(len, datasets)):,} pictures")
    shares = recipe.shares or [len(dataset) for dataset in datasets]
    seen = sum(
        share * counts / max(1, counts.sum())
        for share, counts in zip(shares, map(count_labels, datasets), strict=True)
    )
    weights = weights_of(seen, len(space.classes), space.groups, recipe.balance)
    if is_main():
        named = sorted(zip(weights, space.class_names, strict=False))
        (low, frequent), (high, rare) = named[0], named[-1]
        tell(f"balance: pixels weigh from {low:.3g} ({frequent}) to {high:.3g} ({rare})")
    return weights


def count_labels(dataset: SegmentationDataset) -> npt.NDArray[np.int64]:
    """Pixels of each label but `IGNORE`, (IGNORE,), of all pictures that can be read.

    Of several processes each counts its share, and all have the sum.
    """
    total = np.zeros(IGNORE, np.int64)
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        for counts in pool.map(count_pair, dataset.pairs[rank() :: world_size()]):
            if not isinstance(counts, ImageError):
                total += counts[1][:IGNORE]
    return sum_over_ranks(torch.from_numpy(total)).numpy()


def weights_of(
    counts: npt.NDArray[np.floating], classes: int, groups: Sequence[Members], balance: float
) -> list[float]:
    """Compute the weights of classes and groups from their numbers of pixels.

    A group's pixels count in equal parts for its members, and its weight is the mean of theirs.
    Classes
    """
    sizes = np.array(counts[:classes], np.float64)
    for number, group in enumerate(groups, classes):
        sizes[list(group)] += counts[number] / len(group)
    weights = np.ones(classes)
    there = sizes > 0
    weights[there] = (sizes[there] / sizes.sum()) ** -balance
    every = np.array([*weights, *(weights[list(group)].mean() for group in groups)])
    seen = np.asarray(counts[: len(every)], np.float64)
    if seen.sum():
        mean = (every * seen).sum() / seen.sum()
        every[: len(weights)][there] /= mean
        every[len(weights) :] /= mean
    return [float(weight) for weight in every]
