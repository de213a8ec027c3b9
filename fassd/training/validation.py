"""Scores of a network during training, on a val split or on some of its pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch import nn

from fassd.data.dataset import SegmentationDataset
from fassd.distributed import rank, world_size
from fassd.evaluation.evaluate import Evaluation, evaluate
from fassd.io.images import ImageError
from fassd.training.logs import ScenePanel


class Validation(NamedTuple):
    """Scores on one data set, and some of its scenes to look at."""

    evaluation: Evaluation
    panel: ScenePanel


def validate(
    network: nn.Module,
    dataset: SegmentationDataset,
    pictures: int | None,
    advance: Callable[[int, int], object],
    tell: Callable[[str], object],
) -> Validation:
    """Score a network; under torchrun by all processes together, with the statistics of the first.

    Args:
        network: network to score, plain or accelerated.
        dataset: the val split.
        pictures: maximum number of its pictures to use, evenly spread; None for all.
        advance: function called with the number of this process's pictures done and in total.
        tell: function called with the reason when a picture is left out.

    Raises:
        ValueError, RuntimeError: as in `evaluate`.
    """
    if world_size() > 1:
        # Each process has batch norm statistics of its own; those of the first are used.
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
    total = len(dataset)
    count = min(total, pictures or total)
    indices = [number * total // count for number in range(count)]
    own = indices[rank() :: world_size()]
    panel = ScenePanel(dataset.card, own)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        advance(done, len(own))

    def on_sample(index: int, sample: Any, labels: npt.NDArray[np.uint8]) -> None:
        panel.add(index, sample, labels)
        step()

    def on_bad(error: ImageError) -> None:
        tell(f"skipped: {error}")
        step()

    evaluation = evaluate(network, dataset, indices=indices, on_sample=on_sample, on_bad=on_bad)
    return Validation(evaluation, panel)
