"""Examining a folder of pictures: the label file of each picture, and their path patterns."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fassd.data.card import CardError
from fassd.io.files import SUFFIXES, folders_below

MOST_FILES = 500_000
MOST_FOLDERS = 300
"""Maximum number of folders with pictures that are compared with each other."""

LABEL_WORDS = re.compile(r"mask|label|annot|seg|truth|(?<![a-z])gt(?![a-z])", re.I)
"""Words in the names of folders and files of masks."""

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""Usual names of splits, and their names here."""

Pairs = list[tuple[str, str]]
"""Pictures and the files with their labels, as paths below the folder."""


@dataclass(frozen=True)
class Layout:
    """Path patterns of pictures and their labels, and the folder of each split."""

    images: str
    files: str
    splits: Mapping[str, str]


def files_in(folder: Path) -> dict[str, list[str]]:
    """Visible files below a folder, by their ending: paths in order.

    Raises:
        CardError: there are too many files.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    count = 0
    for place, names in folders_below(folder):
        count += len(names)
        if count > MOST_FILES:
            raise CardError(f"{folder}: has more than {MOST_FILES:,} files: write the card by hand")
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            found[suffix].append((place / name).relative_to(folder).as_posix())
    return {suffix: sorted(paths) for suffix, paths in found.items()}


def pictures_of(files: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted(path for suffix in SUFFIXES for path in files.get(suffix, ()))


def stem(path: str) -> str:
    return PurePosixPath(path).stem


def pair_by_stem(pictures: Iterable[str], others: Iterable[str]) -> Pairs:
    """Pictures with the file of the same stem: in the same folder, or in the most similar one."""
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for path in others:
        by_stem[stem(path)].append(path)
    pairs = []
    for picture in pictures:
        candidates = by_stem.get(stem(picture), [])
        if candidates:
            pairs.append((picture, max(candidates, key=lambda path: _likeness(picture, path))))
    return pairs


def _likeness(path: str, other: str) -> int:
    """Number of folder names that two paths share."""
    return len(set(PurePosixPath(path).parts[:-1]) & set(PurePosixPath(other).parts[:-1]))


def pair_masks(pictures: Sequence[str], arrays: Sequence[str]) -> Pairs:
    """Pictures with their masks, matched by folders with corresponding file names.

    Raises:
        CardError: there are too many folders.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for path in (*pictures, *arrays):
        folders[str(PurePosixPath(path).parent)].append(path)
    if len(folders) > MOST_FOLDERS:
        raise CardError(
            f"pictures lie in {len(folders):,} folders, of which at most {MOST_FOLDERS} are "
            "compared: write the card by hand"
        )
    shared = set.intersection(*(set(name.split("/")) for name in folders))
    masks = {name: p for name, p in folders.items() if _is_of_labels(name, shared, p)}
    pairs: Pairs = []
    for name, paths in folders.items():
        if name in masks:
            continue
        options = [
            (len(found), _likeness(f"{name}/x", f"{other}/x"), found)
            for other, own in masks.items()
            if (found := _pair_folders(paths, own))
        ]
        pairs += max(options, key=lambda option: option[:2])[2] if options else _within(paths)
    return pairs


def _is_of_labels(folder: str, shared: set[str], paths: Sequence[str]) -> bool:
    """True if a folder's name, without parts that all share, or .npy indicates masks."""
    own = "/".join(part for part in folder.split("/") if part not in shared)
    return bool(LABEL_WORDS.search(own)) or all(path.endswith(".npy") for path in paths)


def _within(paths: Sequence[str]) -> Pairs:
    """Pictures and masks that lie in one folder: a.jpg with a_mask.png or a.png."""
    masks = [p for p in paths if LABEL_WORDS.search(stem(p)) or p.endswith(".npy")]
    if not masks:
        masks = [p for p in paths if p.endswith(".png")]
    return _pair_folders([p for p in paths if p not in set(masks)], masks)


def _pair_folders(pictures: Sequence[str], masks: Sequence[str]) -> Pairs:
    """Pictures and masks whose stems are equal except for one common ending of the masks'."""
    stems = {stem(path): path for path in pictures}
    endings: Counter[str] = Counter()
    for path in masks[:100]:
        name = stem(path)
        fitting = max((s for s in stems if name.startswith(s)), key=len, default=None)
        if fitting is not None:
            endings[name[len(fitting) :]] += 1
    if not endings:
        return []
    ending = endings.most_common(1)[0][0]
    by_stem = {stem(path): path for path in masks}
    found = ((path, by_stem.get(name + ending)) for name, path in sorted(stems.items()))
    return [(path, mask) for path, mask in found if mask is not None]


# ---------------------------------------------------------------------------------------- patterns


def taken_for_picture(layout: Layout, pairs: Pairs) -> str | None:
    """A mask that also matches the pattern of the pictures, if there is one."""
    splits = "|".join(map(re.escape, layout.splits.values()))
    pattern = re.escape(layout.images)
    for hole, text in (("split", f"(?:{splits})"), ("name", "[^/]+"), ("ending", "[^/]+")):
        pattern = pattern.replace(re.escape(f"{{{hole}}}"), text)
    fits = re.compile(pattern)
    masks = (mask for _, mask in pairs if os.path.splitext(mask)[1].lower() in SUFFIXES)
    return next((mask for mask in masks if fits.fullmatch(mask)), None)


def layout_of(pairs: Sequence[tuple[str, str]], shared: bool) -> Layout | None:
    """A pattern for pictures and one for their labels, with the splits; None if there is none.

    Args:
        pairs: pairs of a picture and its labels.
        shared: True if one file has the labels of many pictures, whatever their names.
    """
    images = _pattern([image for image, _ in pairs])
    for split_at in _split_places(images):
        chosen = _layout(pairs, split_at, shared)
        if chosen is not None:
            return chosen
    return None


def _pattern(paths: Sequence[str]) -> list[set[str]]:
    """Names of folders at each depth; empty if depths differ."""
    depths = {path.count("/") for path in paths}
    if len(depths) != 1:
        return []
    columns = zip(*(path.split("/")[:-1] for path in paths), strict=True)
    return [set(column) for column in columns] or [set()]


def _split_places(names: list[set[str]]) -> list[int | None]:
    """Depths that may separate splits: where names differ, or one is a split's; else None."""
    differing = [depth for depth, here in enumerate(names) if len(here) > 1]
    usual = [d for d, here in enumerate(names) if here and all(_usual(n) in SPLITS for n in here)]
    places: list[int | None] = [d for d in usual if not differing or differing == [d]]
    places += [d for d in differing if len(differing) == 1 and d not in places]
    return places if differing else [*places, None]


def _layout(pairs: Sequence[tuple[str, str]], split_at: int | None, shared: bool) -> Layout | None:
    images, files, splits = set(), set(), set()
    for image, mask in pairs:
        parts = image.split("/")
        split = "" if split_at is None else parts[split_at]
        splits.add(split)
        if split_at is not None:
            parts[split_at] = "{split}"
        name = stem(image)
        parts[-1] = parts[-1].replace(name, "{name}", 1)
        images.add("/".join(parts))
        files.add(_mask_pattern(mask, None if shared else name, split))
    if len(files) != 1:
        return None
    if len(images) > 1:  # with several endings
        images = {f"{path.rpartition('.')[0]}.{{ending}}" for path in images}
    if len(images) != 1:
        return None
    pattern = files.pop()
    found = {_usual(split) or "train": split for split in sorted(splits)}
    return Layout(images.pop(), pattern, found) if len(found) == len(splits) else None


def _usual(split: str) -> str:
    """The usual name of a split: "train" of train2017, "val" of Validation."""
    return SPLITS.get(split.lower().rstrip("0123456789_-"), split)


def _mask_pattern(mask: str, name: str | None, split: str) -> str:
    folders, _, last = mask.rpartition("/")
    if split:
        folders = re.sub(rf"(^|/){re.escape(split)}", r"\1{split}", folders)
    if name is not None:
        last = f"{{name}}{last[len(name) :]}"
    elif split and "{split}" not in folders:
        last = last.replace(split, "{split}", 1)
    return f"{folders}/{last}" if folders else last
