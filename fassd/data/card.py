"""Cards: the description of a dataset, and the paths of its pictures and masks.

`fassd.data.cardfile` describes how a card is written; the folder `cards` has those of known
datasets.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from fassd.data.masks import MaskCode
from fassd.data.patterns import HOLE, fill, match_files
from fassd.data.shapes import ShapeCode
from fassd.io.files import SUFFIXES
from fassd.io.levels import Range
from fassd.io.palette import LabelClass
from fassd.models.preprocess import Preprocessing

CARDS = Path(__file__).parent / "cards"


class CardError(ValueError):
    """A card, or the folder that it describes, cannot be used; the message says where and why."""


@dataclass(frozen=True)
class Pair:
    """A picture, its mask or file of shapes, the code of that file, the range of the picture's
    values, and its number of bands if it is not of three colours."""

    image: Path
    mask: Path
    code: MaskCode | ShapeCode
    range: Range = None
    bands: int | None = None


@dataclass(frozen=True)
class Split:
    """The pictures that belong together.

    Attributes:
        folder: value of {split} in patterns.
        images: pattern of the pictures' paths below the root.
        names: names of the pictures to take, in order; None for all that match.
        list_file: text file below the root that lists the names.
        column: number of its column with the names, from 1; None if whole lines are names.
        pictures: number of pictures of the full set, if the card states it.
    """

    folder: str
    images: str
    names: tuple[str, ...] | None = None
    list_file: str | None = None
    column: int | None = None
    pictures: int | None = None


@dataclass(frozen=True)
class Masks:
    """Location of masks, or shapes: a pattern with the pictures' holes; and the code of their
    pixels."""

    files: str
    code: MaskCode | ShapeCode


@dataclass(frozen=True)
class Card:
    """A dataset. Made by `load_card`; labels are positions in `classes`.

    `range` is the range of pictures of more than 8 bits (`fassd.io.images.read_image`); `covers`
    lists, for each class, the classes of a finer list that it consists of, and is empty if the card
    names none (`fassd.data.groups`); `preprocessing` is the normalisation of pictures with bands,
    and None for colours.
    """

    name: str
    root: Path
    classes: tuple[LabelClass, ...]
    splits: Mapping[str, Split]
    masks: tuple[Masks, ...]
    path: Path
    description: str = ""
    source: str = ""
    licence: str = ""
    range: Range = None
    covers: tuple[tuple[str, ...], ...] = ()
    preprocessing: Preprocessing | None = None

    @property
    def bands(self) -> int | None:
        """Number of the pictures' bands; None for three colours."""
        return None if self.preprocessing is None else self.preprocessing.bands

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        return [info.name for info in self.classes]

    @property
    def address(self) -> tuple[str, str]:
        """Arguments of `load_card` that load this card again from any working directory.

        The name of a shipped card, or the absolute path of the card's file; and the absolute root.
        """
        path = self.path.absolute()
        return path.stem if path.parent == CARDS.absolute() else str(path), str(
            self.root.absolute()
        )

    @property
    def named(self) -> str:
        """Name and file of the card, for errors."""
        return f"card {self.name!r} ({self.path})"

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours of the classes, (num_classes, 3) uint8 RGB."""
        return np.array([info.color for info in self.classes], np.uint8)

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            CardError: there is no such split.
        """
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise CardError(f"{self.named} has no split {name!r}; it has {known}")
        return self.splits[name]

    def pairs(self, split: str) -> list[Pair]:
        """The pictures of a split with their masks, in the order of their paths or of the list.

        Raises:
            CardError: there is no such split, it has no pictures, or a picture has no mask.
        """
        pairs, maskless = self.find(split)
        if maskless:
            image, expected = maskless[0]
            total = len(pairs) + len(maskless)
            raise CardError(
                f"{self.named}: {len(maskless)} of the {total} pictures of split {split!r} "
                f"have no mask; the first is {image}, which needs {either(expected)}"
            )
        return pairs

    def find(self, split: str) -> tuple[list[Pair], list[tuple[Path, list[Path]]]]:
        """The pairs of a split, and the pictures without a mask with the masks expected of them.

        Raises:
            CardError: there is no such split, or it has no pictures.
        """
        pairs: list[Pair] = []
        maskless: list[tuple[Path, list[Path]]] = []
        for image, holes in self._images(split):
            expected = [self.root / fill(masks.files, holes) for masks in self.masks]
            if any(".." in mask.parts[len(self.root.parts) :] for mask in expected):
                raise CardError(f"{self.named}: the mask of {image} lies outside the root")
            for mask, masks in zip(expected, self.masks, strict=True):
                if mask.is_file():
                    pairs.append(Pair(image, mask, masks.code, self.range, self.bands))
                    break
            else:
                maskless.append((image, expected))
        return pairs, maskless

    def _images(self, split: str) -> list[tuple[Path, dict[str, str]]]:
        """The pictures of a split, each with the values of its holes."""
        chosen = self.split(split)
        where = f"{self.named}: split {split!r}"
        there = sorted(match_files(self.root, chosen.images, {"split": chosen.folder}))
        if not there:
            raise CardError(f"{where} has no pictures: {_nothing(self.root, chosen)}")
        files = {path: holes for path, holes in there}
        if chosen.list_file is not None:
            wanted = _read_list(self.root / chosen.list_file, chosen.column, where)
        elif chosen.names is not None:
            wanted = [(name, f"{self.path}: splits.{split}.names") for name in chosen.names]
        else:
            return [(self.root / path, holes) for path, holes in files.items()]
        return [(self.root / path, files[path]) for path in _pick(files, wanted, self.root, chosen)]


# --------------------------------------------------------------------------------- finding files


def _nothing(root: Path, split: Split) -> str:
    """The reason why a pattern matched nothing: a missing folder, or no such pictures."""
    pattern = fill(split.images, {"split": split.folder})
    folder = root
    for part in pattern.split("/")[:-1]:
        if HOLE.search(part):
            break
        folder /= part
        if not folder.is_dir():
            return f"there is no folder {folder}"
    return f"nothing matches {root / HOLE.sub('*', pattern)}"


def _read_list(path: Path, column: int | None, where: str) -> list[tuple[str, str]]:
    """Entries of a list file, each with its line for errors."""
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = re.split(r"\r\n?|\n", content.decode("utf-16" if utf16 else "utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CardError(f"{where}: cannot read its list {path}: {reason}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        words = [line.strip()] if column is None else line.split()
        if not line.strip():
            continue
        if column is not None and len(words) < column:
            raise CardError(f"{path}, line {number}: has {len(words)} columns, needs {column}")
        entries.append((words[(column or 1) - 1], f"{path}, line {number}"))
    if not entries:
        raise CardError(f"{where} has no pictures: its list {path} is empty")
    return entries


def _pick(
    files: Mapping[str, Mapping[str, str]],
    wanted: list[tuple[str, str]],
    root: Path,
    split: Split,
) -> list[str]:
    """The file of each name, which is its path, {name}, the last part of {name}, or file name."""
    tables: list[dict[str, list[str]]] = [{}, {}, {}, {}]
    for path, holes in files.items():
        bare, hole = _bare(path), holes["name"]
        keys = bare, hole, hole.rpartition("/")[2], bare.rpartition("/")[2]
        for table, key in zip(tables, keys, strict=True):
            table.setdefault(key, []).append(path)
    pattern = root / HOLE.sub("*", fill(split.images, {"split": split.folder}))
    picked: dict[str, str] = {}
    for name, place in wanted:
        wholes = (_bare(name), _bare(name.replace("\\", "/")))  # with Windows' folders
        spellings = [part for whole in wholes for part in (whole, whole.rpartition("/")[2])]
        fitting = next((t[key] for key in spellings for t in tables if key in t), [])
        if len(fitting) != 1:
            several = f"fits {len(fitting)} pictures" if fitting else "is no picture"
            raise CardError(f"{place}: {name!r} {several} of {pattern}")
        if fitting[0] in picked:
            raise CardError(f"{place}: {name!r} occurs twice, at {picked[fitting[0]]}, too")
        picked[fitting[0]] = place
    return list(picked)


def _bare(name: str) -> str:
    """A path without the ending of a picture."""
    path = PurePosixPath(name)
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def either(paths: list[Path]) -> str:
    return " or ".join(str(path) for path in paths)


# ------------------------------------------------------------------------------- finding the card
