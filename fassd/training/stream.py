"""Training samples by number: an endless stream that any process can enter at any position.

Sample n of a run is always the same: the picture and its augmentation follow from the seed and n
alone. The number and timing of the workers do not matter, a resumed run sees the same samples as an
uninterrupted one, and processes share a batch by dividing its numbers.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fassd.data.dataset import SegmentationDataset
from fassd.data.transforms import TrainTransform
from fassd.io.images import ImageError
from fassd.models.preprocess import OURS, Preprocessing, normalize
from fassd.training.recipe import Recipe

ORDER, AUGMENTATION = 1, 2  # separate random streams for the two
MOST_SKIPPED_IN_A_ROW = 20
BLACK = (0, 0, 0)


class TrainingSample(NamedTuple):
    """One augmented sample: (3, h, w) float32, normalised as the network takes it, and (h, w) uint8
    labels."""

    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    path: Path
    skipped: list[str]


@dataclass
class MicroBatch:
    """The input of one forward pass.

    Attributes:
        images: (N, 3, h, w) float32, normalised.
        labels: (N, h, w) uint8.
        paths: paths of the pictures.
        skipped: reasons why pictures were left out; each names its file.
    """

    images: Tensor
    labels: Tensor
    paths: list[Path]
    skipped: list[str]

    def pin_memory(self) -> MicroBatch:
        """Pin the tensors, for faster copies to a GPU; called by the DataLoader."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class SampleStream(Dataset[TrainingSample]):
    """Sample n is picture n of the concatenation of all epochs, each in an order of its own.

    Every picture comes once per epoch, even if the batch does not divide the epoch. A picture that
    cannot be read is reported in `TrainingSample.skipped`, and the next one of its epoch replaces
    it.

    Args:
        datasets: one or several data sets; the samples of each are spread evenly over the stream,
            and each has epochs of its own.
        transform, seed: augmentation and seed of the recipe.
        shares: proportion of samples from each data set, in any unit; by default its number of
            pictures.
        earlier: pairs of a number, ascending, and the transform of the samples below it.
        preprocessing: normalisation of the network's pictures.
    """

    def __init__(
        self,
        datasets: Sequence[SegmentationDataset],
        transform: TrainTransform,
        seed: int,
        shares: Sequence[float] | None = None,
        earlier: Sequence[tuple[int, TrainTransform]] = (),
        preprocessing: Preprocessing = OURS,
    ) -> None:
        self.datasets = datasets
        self.transform = transform
        self.earlier = earlier
        self.preprocessing = preprocessing
        self.seed = seed
        self.shares = [len(dataset) for dataset in datasets] if shares is None else shares

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        datasets: Sequence[SegmentationDataset],
        preprocessing: Preprocessing = OURS,
    ) -> SampleStream:
        """The stream of samples of a recipe."""
        names = "crop", "scale", "flip", "rotate", "jitter", "gamma", "blur", "focus"
        settings = {name: getattr(recipe, name) for name in names}
        mean = preprocessing.mean_color
        padding = (0,) * len(mean) if recipe.pad == "black" else mean
        transform = TrainTransform(padding=padding, **settings)
        earlier = [(end * recipe.batch, replace(transform, crop=c)) for end, c in recipe.stages]
        return cls(datasets, transform, recipe.seed, recipe.shares, earlier, preprocessing)

    def __getitem__(self, number: int) -> TrainingSample:
        source, own = divide(number, self.shares)
        dataset = self.datasets[source]
        epoch, place = divmod(own, len(dataset))
        order = _order(self.seed, epoch, len(dataset))
        skipped: list[str] = []
        for index in np.roll(order, -place)[:MOST_SKIPPED_IN_A_ROW]:
            try:
                sample = dataset[int(index)]
            except ImageError as error:
                skipped.append(str(error))
                continue
            rng = np.random.default_rng([AUGMENTATION, self.seed, number])
            transform = next((own for end, own in self.earlier if number < end), self.transform)
            image, labels = transform(sample.image, sample.labels, rng)
            normalized = normalize(image, self.preprocessing)
            return TrainingSample(normalized, labels, sample.path, skipped)
        raise ImageError(
            f"none of {len(skipped)} pictures in a row could be read; the last: {skipped[-1]}"
        )


def divide(number: int, shares: Sequence[float]) -> tuple[int, int]:
    """The data set that sample `number` is from, and the sample's number within that data set.

    Any run of samples has each data set's share, to within one for itself and each one before it.
    """
    for source in range(len(shares) - 1):
        part = shares[source] / sum(shares[source:])
        before, after = (math.floor(count * part) for count in (number, number + 1))
        if after > before:
            return source, before
        number -= before  # its number among the samples of the other data sets
    return len(shares) - 1, number


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, length: int) -> npt.NDArray[np.intp]:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(length)


def loader(
    stream: SampleStream,
    steps: range,
    batch: int,
    accumulate: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[MicroBatch]]:
    """A loader that gives, for each step, the `accumulate` micro-batches of this process.

    Step s takes the samples s * batch to (s + 1) * batch - 1, shared evenly by all processes.
    """
    size = batch // (world_size * accumulate)
    numbers = (
        list(range(first, first + size))
        for step in steps
        for part in range(accumulate)
        # One micro-batch at a time over all processes: theirs together have consecutive numbers, so
        # that synchronised batch norm sees the same samples as a single process with larger ones.
        for first in [step * batch + (part * world_size + rank) * size]
    )
    data_loader = DataLoader(
        stream,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        persistent_workers=False,
    )
    with _held_back():
        source = iter(data_loader)
    try:
        for _ in steps:
            yield [_next(source) for _ in range(accumulate)]
    finally:
        # A traceback may keep `source`, and with it workers that ignore SIGTERM: Python would wait
        # for them when it exits.
        getattr(source, "_shutdown_workers", lambda: None)()


def _next(source: Iterator[MicroBatch]) -> MicroBatch:
    try:
        return next(source)
    except ImageError as error:
        # An error in a worker has a traceback in its text; the last line says what happened.
        raise ImageError(str(error).rsplit("ImageError: ", 1)[-1].strip()) from None


def _collate(items: Sequence[TrainingSample]) -> MicroBatch:
    return MicroBatch(
        torch.from_numpy(np.stack([item.image for item in items])),
        torch.from_numpy(np.stack([item.labels for item in items])),
        [item.path for item in items],
        [reason for item in items for reason in item.skipped],
    )


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends; in workers started inside, for good."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(_: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the
    # job; only the trainer decides how to react. Workers exit when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(0)
