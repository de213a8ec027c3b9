"""A network's scores on a data set: every picture at full resolution, one at a time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fassd.data.groups import Members, members_of
from fassd.distributed import all_gather, rank, world_size
from fassd.evaluation.calibration import Calibration
from fassd.evaluation.metrics import ConfusionMatrix, Scores
from fassd.inference.views import Views, small_logits, summed
from fassd.io.images import ImageError
from fassd.io.palette import classes_of, labels_by_name, some_of
from fassd.models.info import temperature_of
from fassd.models.layers import logits_of
from fassd.models.preprocess import normalize, preprocessing_of

if TYPE_CHECKING:
    from fassd.data.card import Card
    from fassd.data.dataset import Sample, SegmentationDataset

READ_AHEAD = 2  # number of pictures, so that the disk works while the network does


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; prints itself with rich.

    Attributes:
        scores: scores over all pixels of all pictures together.
        matrix: (C, C) int64 on the CPU, number of pixels by [truth, prediction].
        class_names: names of the C classes.
        count: number of pictures that were evaluated.
        skipped: reasons why the other pictures were not; each names its file.
        seconds: time of the slowest process, reading included.
        calibration: calibration of the probabilities; None if it was not asked for.
    """

    scores: Scores
    matrix: Tensor
    class_names: tuple[str, ...]
    count: int
    skipped: tuple[str, ...]
    seconds: float
    calibration: Calibration | None = None

    @property
    def images_per_second(self) -> float:
        return self.count / self.seconds

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; scores in 0 .. 1, None without anything to score."""
        scores, kinds = self.scores, self._of_classes
        pixels = self.matrix.sum(1).tolist()
        return {
            "miou": _or_none(scores.miou),
            "pixel_accuracy": scores.pixel_accuracy,
            "mean_accuracy": _or_none(scores.mean_accuracy),
            "frequency_weighted_accuracy": scores.frequency_weighted_accuracy,
            "mean": {kind: _or_none(scores.mean(values)) for kind, values in kinds.items()},
            "without": [self.class_names[index] for index in scores.without],
            "classes": [
                {
                    "name": name,
                    **{kind: _or_none(values[index]) for kind, values in kinds.items()},
                    "pixels": pixels[index],
                }
                for index, name in enumerate(self.class_names)
            ],
            **({} if self.calibration is None else {"calibration": self.calibration.to_json()}),
            "confusion": self.matrix.tolist(),
            "pictures": self.count,
            "skipped": list(self.skipped),
            "seconds": self.seconds,
            "pictures_per_second": self.images_per_second,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()
        scores, plural = self.scores, "" if self.count == 1 else "s"
        left_out = ", ".join(self.class_names[index] for index in scores.without)
        yield Text.assemble(
            ("mIoU ", "bold"),
            (f"{100 * scores.miou:.2f}%", "bold green"),
            f" without {left_out}" if left_out else "",
            f", pixel accuracy {100 * scores.pixel_accuracy:.2f}%, "
            f"mean accuracy {100 * scores.mean_accuracy:.2f}%, "
            f"weighted IoU {100 * scores.frequency_weighted_accuracy:.2f}%",
        )
        if self.calibration is not None:
            yield Text(str(self.calibration))
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        yield Text(
            f"{self.count} picture{plural} in {self.seconds:.1f} s "
            f"({self.images_per_second:.2f} per second){skipped}"
        )

    @property
    def _of_classes(self) -> dict[str, tuple[float, ...]]:
        """The scores that every class has, and over which there is a mean."""
        scores = self.scores
        return {
            "iou": scores.iou,
            "dice": scores.dice,
            "precision": scores.precision,
            "recall": scores.recall,
        }

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("class", no_wrap=True)
        for heading in ("IoU %", "Dice %", "precision %", "recall %", "% of pixels"):
            table.add_column(heading, justify="right")
        truth = self.matrix.sum(1)
        shares = (100 * truth.double() / truth.sum()).tolist()
        scores, kinds = self.scores, self._of_classes.values()
        for index, name in enumerate(self.class_names):
            absent = math.isnan(scores.iou[index])
            figures = [_percent(values[index]) for values in kinds]
            figures = ["absent", "", "", ""] if absent else figures
            dim = absent or index in scores.without
            table.add_row(
                escape(name), *figures, f"{shares[index]:.2f}", style="dim" if dim else None
            )
        means = [_percent(scores.mean(values)) for values in kinds]
        table.add_row("mean", *means, "", style="bold")
        return table


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def _percent(score: float) -> str:
    return "" if math.isnan(score) else f"{100 * score:.2f}"


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    indices: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    without: Sequence[str] = (),
    calibration: Calibration | None = None,
    on_sample: Callable[[int, Sample, npt.NDArray[np.uint8]], object] | None = None,
    on_bad: Callable[[ImageError], object] | None = None,
) -> Evaluation:
    """Score `model` on `dataset`, each picture at its own size, alone in its batch.

    The predicted class is the one with the largest logit; with several `scales`, or `flip`, the one
    with the largest mean probability over all views of the picture. If the network knows the names
    of its classes, the prediction is the data's class of the same name
    (`fassd.io.palette.labels_by_name`). If the card's classes differ, but contain those of the
    network (`fassd.data.groups`), it is the class with the largest probability summed over the
    classes that it contains; classes of the network that are in none are left out.

    In a torch.distributed group process r takes the pictures r, r + world size, ... and every
    process returns the same scores, which are those of a single process: counts are whole numbers.

    Args:
        model: a network, plain or accelerated, that takes normalised BGR (1, 3, H, W), or the input
            described by `fassd.models.preprocessing_of`, and returns logits (1, classes, h, w),
            alone or in a structure that `fassd.Segmenter` accepts; logits smaller than the picture
            are resized to it (bilinear, align_corners=True). It runs in eval mode; the mode of
            every module is restored.
        dataset: a data set like `fassd.data.SegmentationDataset`.
        indices: indices of the pictures to use; all by default.
        scales: factors by which each picture is resized (bilinear, antialiased), as
            `fassd.Segmenter` does. An exported file that takes only one size gets all views at that
            size.
        flip: True also evaluates the mirrored picture.
        without: names of the data's classes to leave out of mIoU and the other means over classes,
            a background for instance. Their pixels still count in the other classes' scores.
        calibration: calibration to update, which becomes part of the result; its temperature must
            be 1 or the network's if there are several views.
        on_sample: function called with the index, the sample and the predicted classes, (H, W)
            uint8, of each picture that this process evaluates.
        on_bad: function called with the error of a picture that cannot be read, does not fit the
            card, or is too small for the network; the picture is skipped and counted. Without it
            the error is raised.

    Raises:
        ImageError: see `on_bad`.
        ValueError: there are no pictures; a name in `without` is unknown; the classes of network
            and card differ in number or name and the card does not map them; an index or scale is
            out of range; or no pixel could be scored.
        RuntimeError: the logits hold NaN, or another process failed.
    """
    chosen = _checked_indices(indices, len(dataset))
    views = Views(scales, flip)
    if calibration is not None and not views.plain:
        own = temperature_of(model)
        if calibration.fits:
            raise ValueError("a temperature is fitted to one view: leave out scales and flip")
        if calibration.temperature not in (1, own):
            raise ValueError(
                f"with several views the temperature is 1 or the network's, {own:g}, got "
                f"{calibration.temperature:g}"
            )
    left_out = _positions(without, dataset.card.class_names)
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the wrapper waits for all processes in each call; shares differ
    labels, members = matched(model, dataset.card)
    matrix = ConfusionMatrix(dataset.card.num_classes)
    count, skipped = 0, []
    failure: Exception | None = None
    started = time.perf_counter()
    try:
        with (
            _eval_mode(model),
            torch.inference_mode(),
            closing(_read_ahead(dataset, chosen[rank() :: world_size()])) as reading,
        ):
            for index, sample in reading:
                try:
                    read = sample.result()
                    predicted, probabilities = _predicted(model, read, views, members, dataset.card)
                    if labels is not None:
                        predicted = torch.tensor(labels, device=predicted.device)[predicted]
                    with _naming(read.path):
                        matrix.update(read.labels, predicted)
                    if calibration is not None:
                        of_data = in_order(probabilities, labels)
                        calibration.update(of_data, read.labels, predicted)
                except ImageError as error:
                    if on_bad is None:
                        raise
                    skipped.append((index, str(error)))
                    on_bad(error)
                    continue
                count += 1
                if on_sample is not None:
                    on_sample(index, read, predicted.to(torch.uint8).cpu().numpy())
    except Exception as error:  # the other processes must learn of it, or they would wait for ever
        failure = error
    message = None if failure is None else str(failure) or type(failure).__name__
    parts = all_gather((count, skipped, time.perf_counter() - started, message))
    if failure is not None:
        raise failure
    for number, (*_, reason) in enumerate(parts):
        if reason is not None:
            raise RuntimeError(f"process {number}: {reason}")
    counts, lists, seconds, _ = zip(*parts, strict=True)
    reasons = tuple(reason for _, reason in sorted(chain.from_iterable(lists)))
    if not sum(counts):
        raise ValueError(f"none of {len(reasons)} pictures can be used; the first: {reasons[0]}")
    return Evaluation(
        scores=matrix.reduce().scores(left_out),
        matrix=matrix.matrix.cpu(),
        class_names=tuple(dataset.card.class_names),
        count=sum(counts),
        skipped=reasons,
        seconds=max(seconds),
        calibration=None if calibration is None else calibration.reduce(),
    )


def in_order(
    probabilities: Callable[[float], Tensor], labels: Sequence[int] | None
) -> Callable[[float], Tensor]:
    """Probabilities of a network's classes at a temperature, in the order of the data's labels."""
    if labels is None:
        return probabilities
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return lambda temperature: probabilities(temperature)[order]


def label_by_groups(
    model: nn.Module, sample: Sample, members: Sequence[Members]
) -> npt.NDArray[np.uint8]:
    """The data's classes, (H, W), from a network with other classes, computed as in `evaluate`.

    Args:
        model, sample: network and sample, as in `evaluate`.
        members: the network's classes in each of the data's, from `matched`.

    Raises:
        ImageError: the picture is too small for the network.
    """
    with _eval_mode(model), torch.inference_mode():
        labels, _ = _predicted(model, sample, Views(), members)
    return labels.to(torch.uint8).cpu().numpy()


# ------------------------------------------------------------------------------------- the network


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _predicted(
    network: nn.Module,
    sample: Sample,
    views: Views,
    members: Sequence[Members] | None,
    card: Card | None = None,
) -> tuple[Tensor, Callable[[float], Tensor]]:
    """Predict the class of every pixel, (H, W) int64, by the largest logit of one view at full
    size, or else by the largest sum of probabilities; and a function from a temperature to the
    probabilities.

    Args:
        network: network in eval mode; its input has the device and dtype of its weights.
        sample: picture to predict.
        views: views of the picture.
        members: the network's classes in each of the data's; None if they are the same.
        card: card of the data, whose number of classes must then match the network's logits.
    """
    alone = views.plain and members is None
    own, like = preprocessing_of(network), next(network.parameters(), torch.empty(0))

    def run(picture: npt.NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int] | None]:
        batch = torch.from_numpy(normalize(picture, own))[None].to(like.device, like.dtype)
        with _naming(sample.path):
            logits, size = (
                (logits_of(network(batch)).float(), None) if alone else small_logits(network, batch)
            )
        if logits.isnan().any():
            reason = _nan_because(network, like.dtype)
            raise RuntimeError(f"{sample.path}: the network's logits hold NaN: {reason}")
        if card is not None and members is None:
            _check_head(logits.shape[1], card)
        return logits, size

    total = summed(network, sample.image, views, run, temperature=temperature_of(network))

    def probabilities(temperature: float) -> Tensor:
        return total.mean(members, temperature)

    if not alone:
        return total.labels(members).long(), probabilities
    logits = total.logits()
    return logits[0].max(0).indices, probabilities  # takes a quarter of argmax's time on a CPU


def _nan_because(network: nn.Module, dtype: torch.dtype) -> str:
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if not tensor.isfinite().all():
            return f"its {name} is not finite"
    further = "; float32 and bfloat16 have a larger range" if dtype == torch.float16 else ""
    return f"its weights are finite, its computations on this picture overflow {dtype}{further}"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn any ValueError into an ImageError that names the file."""
    try:
        yield
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


# ----------------------------------------------------------------------------------------- reading


def _read_ahead(
    dataset: SegmentationDataset, indices: Sequence[int]
) -> Generator[tuple[int, Future[Sample]], None, None]:
    """Samples in the order of `indices`, read by one thread slightly ahead of their use."""
    waiting: deque[tuple[int, Future[Sample]]] = deque()
    with ThreadPoolExecutor(1, "fassd-reader") as reader:
        for index in indices:
            waiting.append((index, reader.submit(dataset.__getitem__, index)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


# ------------------------------------------------------------------------------------------ checks


def _checked_indices(indices: Sequence[int] | None, length: int) -> Sequence[int]:
    chosen = range(length) if indices is None else indices
    if not chosen:
        raise ValueError(f"there are no pictures to evaluate (of {length} in this split)")
    for index in chosen:
        if not 0 <= index < length:
            raise ValueError(f"index must be 0 to {length - 1} in this split, got {index}")
    return chosen


def _positions(without: Sequence[str], names: Sequence[str]) -> list[int]:
    """Positions of the classes to leave out among those of the data."""
    unknown = [name for name in without if name not in names]
    if unknown:
        raise ValueError(
            f"without: the data has no class {some_of(unknown)}; it has {some_of(names)}"
        )
    if set(without) == set(names):
        raise ValueError(f"without leaves none of the data's {len(names)} classes")
    return sorted({names.index(name) for name in without})


Match = tuple[list[int] | None, tuple[Members, ...] | None]


def matched(model: nn.Module, card: Card) -> Match:
    """The data's labels of the network's classes, or the network's classes in each of the data's.

    Neither if both have the same classes.

    Raises:
        ValueError: the classes differ, and the card does not map them; or the pictures' bands
            differ.
    """
    taken, there = preprocessing_of(model).bands, getattr(card, "bands", None)
    if taken != there:
        raise ValueError(
            f"the network takes {taken or 'three colours'}{' bands' if taken else ''}, the data's "
            f"pictures have {there or 'three colours'}{' bands' if there else ''}"
        )
    head = getattr(model, "num_classes", None)
    try:
        labels = labels_by_name(model, card.class_names)
        _check_head(head, card)
        return labels, None
    except ValueError:
        if not card.covers:
            raise
    names = [info.name for info in classes_of(model)]
    return None, members_of(card, names, "the network")


def _check_head(head: Any, card: Card) -> None:
    """Compare the model's number of classes, where it is known, with the card's."""
    if isinstance(head, int) and head != card.num_classes:
        raise ValueError(
            f"the network has {head} classes, but the data's labels have {card.num_classes}"
        )
