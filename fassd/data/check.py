"""Reading a whole dataset before training on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fassd.data.card import Card, CardError, Pair, either
from fassd.data.dataset import examine_pair
from fassd.io.images import ImageError
from fassd.io.palette import IGNORE

WORKERS = 8  # decoding releases Python's lock; more threads hardly help, because counting does not


@dataclass(frozen=True)
class Finding:
    """An error or a warning about a split; the message names the files."""

    level: Literal["error", "warning"]
    split: str
    message: str


@dataclass
class SplitReport:
    """Contents of a split.

    Attributes:
        pictures: number of its pictures; `expected` is that of the full set, according to the card.
        read: number of pictures that could be read with their masks.
        sizes: number of pictures of each (height, width).
        pixels: int64 (num_classes,), number of labelled pixels of each class.
        ignored: number of pixels without a class.
    """

    name: str
    expected: int | None
    pixels: npt.NDArray[np.int64]
    pictures: int = 0
    read: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    ignored: int = 0

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels in all pixels, 0 .. 1; 0 if nothing was read."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_card`."""

    card: Card
    splits: list[SplitReport]
    problems: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [problem for problem in self.problems if problem.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        """All results as numbers, text, lists and dicts."""
        return {
            "card": self.card.name,
            "root": str(self.card.root),
            "classes": self.card.class_names,
            "splits": {
                split.name: {
                    "pictures": split.pictures,
                    "expected": split.expected,
                    "read": split.read,
                    "sizes": {f"{h}x{w}": count for (h, w), count in split.sizes.most_common()},
                    "pixels": split.pixels.tolist(),
                    "ignored": split.ignored,
                }
                for split in self.splits
            },
            "errors": [[problem.split, problem.message] for problem in self.errors],
            "warnings": [[problem.split, problem.message] for problem in self.warnings],
        }


def check_card(
    card: Card,
    splits: Iterable[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Read every picture and mask of a dataset, and report all problems at once.

    Errors: an empty split, pictures without a mask, files that cannot be read, sizes that differ,
    ids outside the card. Warnings: pictures without a labelled pixel, classes without a pixel in a
    split, splits of a single class, pictures in two splits, pictures of more than 8 bits that are
    nearly black without a `range`, skipped pages and frames.

    Args:
        card: card of the dataset.
        splits: names of the splits; all of the card's by default.
        workers: number of threads; by default one per core, at most 8.
        progress: function called with the number of pictures done and of all pictures.

    Raises:
        CardError: the card has no such split.
        ValueError: `workers` is below 1.
    """
    if workers is None:
        workers = min(WORKERS, os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    names = list(card.splits) if splits is None else list(dict.fromkeys(splits))
    for name in names:
        card.split(name)
    report = CheckReport(card, [], [])
    found = {name: _find(report, name) for name in names}
    report.problems.extend(_shared_pictures(found))
    total = sum(len(pairs) for pairs in found.values())
    done = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for split in report.splits:
            for problems in _read_all(split, found[split.name], pool):
                report.problems.extend(problems)
                done += 1
                if progress is not None:
                    progress(done, total)
            report.problems.extend(_odd_classes(card, split))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the pictures in the queue are not read
    return report


def _find(report: CheckReport, name: str) -> list[Pair]:
    """List a split's files; missing ones are added to the report."""
    card = report.card
    split = SplitReport(name, card.split(name).pictures, np.zeros(card.num_classes, np.int64))
    report.splits.append(split)
    try:
        pairs, maskless = card.find(name)
    except CardError as error:
        report.problems.append(Finding("error", name, str(error)))
        return []
    split.pictures = len(pairs) + len(maskless)
    for image, expected in maskless:
        report.problems.append(
            Finding("error", name, f"{image}: has no mask; expected {either(expected)}")
        )
    return pairs


def _shared_pictures(found: dict[str, list[Pair]]) -> Iterator[Finding]:
    """Pictures that are in two splits, and so might be both trained on and scored."""
    first_seen: dict[Path, str] = {}
    for name, pairs in found.items():
        for pair in pairs:
            before = first_seen.setdefault(pair.image.resolve(), name)
            if before != name:
                yield Finding("warning", name, f"{pair.image}: is in split {before!r}, too")


def _read_all(
    split: SplitReport, pairs: list[Pair], pool: ThreadPoolExecutor
) -> Iterator[list[Finding]]:
    """Read the pairs of a split and add them up; return the problems of each."""
    for pair, counts in zip(pairs, pool.map(count_pair, pairs), strict=True):
        if isinstance(counts, ImageError):
            yield [Finding("error", split.name, str(counts))]
            continue
        size, pixels, remarks = counts
        split.read += 1
        split.sizes[size] += 1
        split.pixels += pixels[: len(split.pixels)]
        split.ignored += int(pixels[IGNORE])
        if pixels[IGNORE] == size[0] * size[1]:
            remarks.append(f"{pair.mask}: every pixel is ignored")
        yield [Finding("warning", split.name, remark) for remark in remarks]


def count_pair(
    pair: Pair,
) -> tuple[tuple[int, int], npt.NDArray[np.int64], list[str]] | ImageError:
    """Size, pixels of each label, (256,), and remarks on one pair, or the reason if unreadable."""
    try:
        sample, remarks = examine_pair(pair)
    except ImageError as error:
        return error
    height, width = sample.labels.shape
    return (height, width), np.bincount(sample.labels.ravel(), minlength=IGNORE + 1), remarks


def _odd_classes(card: Card, split: SplitReport) -> Iterator[Finding]:
    there = [name for name, count in zip(card.class_names, split.pixels, strict=True) if count]
    absent = [name for name in card.class_names if name not in there]
    if split.read and not there:
        yield Finding("warning", split.name, "no pixel has a class")
    elif len(there) == 1:
        yield Finding("warning", split.name, f"only one class is there: {there[0]}")
    elif there and absent:
        yield Finding("warning", split.name, f"no pixel of {', '.join(absent)}")
