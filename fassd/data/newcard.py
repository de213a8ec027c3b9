"""Writing a card for a folder without one, from the folder's contents."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from fassd.data import coco, labelme, survey, yolo
from fassd.data.card import CardError
from fassd.data.cardfile import CARD_FILE, parse_card
from fassd.data.masks import color_key, read_values
from fassd.data.shapes import ShapeError
from fassd.data.survey import Layout, Pairs
from fassd.io.files import replacing
from fassd.io.images import ImageError, open_image
from fassd.io.palette import IGNORE
from fassd.io.untrusted import read_text, read_yaml

MOST_LOOKED_AT = 200
"""Number of label files that are read, evenly spread over all."""

HELD_OUT = 10
"""Number of pictures of which one, at the end, is held out for a split val if there is none."""

MOST_SETTINGS = 1 << 16
"""Maximum bytes of a YOLO settings file."""

MOST_VALUES = 1000
"""Maximum number of a mask's colours that are considered."""

UNLABELLED = ("__ignore__", "ignore", "void", "unlabeled", "unlabelled")
"""Names that LabelMe and other tools give to pixels without a class."""

BACKGROUNDS = ("_background_", "background")

T = TypeVar("T")


@dataclass
class LabelFormat:
    """Contents of the label files.

    Attributes:
        values: `values` of the card's masks.
        classes: entry of each class in the card: "name" and perhaps "ids", "color".
        ignore: ids or names without a class.
        background: class of the pixels outside all shapes.
        notes: assumptions made, for comments in the card.
    """

    values: str
    classes: list[dict[str, Any]]
    ignore: list[Any] = field(default_factory=list)
    background: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NewCard:
    """A card that was written: its file, number of pictures with labels, and of those without."""

    path: Path
    pairs: int
    unpaired: int
    labels: LabelFormat
    written: list[Path]


def write_card(folder: Path) -> NewCard:
    """Examine a folder of pictures with masks or shapes, and write its card.

    If the pictures are not divided into splits, the last of them are held out as val, by text files
    beside the card.

    Raises:
        CardError: the folder has a card already, or no pictures with labels that a pattern
            describes; the message says what was found.
        OSError: the folder cannot be read or written to.
    """
    target = folder / CARD_FILE
    if target.exists():
        raise CardError(f"{target} exists already: check it with fassd data check, or move it away")
    if not folder.is_dir():
        raise CardError(f"there is no folder {folder}")
    files = survey.files_in(folder)
    pictures = survey.pictures_of(files)
    if not pictures:
        raise CardError(f"{folder}: holds no pictures ({', '.join(sorted(survey.SUFFIXES))})")
    kind, pairs = _pairs(folder, files, pictures)
    if not pairs:
        raise CardError(
            f"{folder}: none of its {len(pictures):,} pictures, such as {pictures[0]}, has labels: "
            "masks have the same name in another folder (images/a.jpg, masks/a.png) or a longer "
            "one beside it (a.jpg, a_mask.png), polygons are in a.json or a.txt"
        )
    layout = survey.layout_of(pairs, kind == "coco")
    if layout is None:
        seen = "; ".join(f"{image} with {mask}" for image, mask in [pairs[0], pairs[-1]])
        raise CardError(
            f"{folder}: no pattern describes the paths of its {len(pairs):,} pictures and their "
            f"labels ({seen}): write the card by hand"
        )
    labels = _labels(folder, kind, files, pairs)
    covered = {mask for _, mask in pairs} | {image for image, _ in pairs}
    unpaired = sum(picture not in covered for picture in pictures)
    lists = _lists(folder, layout, pairs, unpaired)
    if not lists and (taken := survey.taken_for_picture(layout, pairs)):
        raise CardError(
            f"{folder}: the pattern {layout.images} of the pictures fits the mask {taken}, too; "
            "lists would separate them, but there is a train.txt or val.txt already: move it, or "
            "write the card by hand"
        )
    text = card_text(folder.resolve().name, layout, labels, len(pairs), lists)
    texts = {folder / f"{name}.txt": "\n".join(names) + "\n" for name, names in lists.items()}
    texts[target] = text
    try:
        for file, content in texts.items():
            _write(file, content)
        parse_card(target, None)
    except BaseException:
        for file in texts:
            file.unlink(missing_ok=True)
        raise
    return NewCard(target, len(pairs), unpaired, labels, list(texts))


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _pairs(
    folder: Path, files: Mapping[str, Sequence[str]], pictures: Sequence[str]
) -> tuple[str, Pairs]:
    """Kind of the labels, and the pictures with their label files."""
    jsons = files.get(".json", ())
    by_stem = survey.pair_by_stem(pictures, jsons)
    if by_stem:
        return "labelme", by_stem
    listed: dict[str, str] = {}
    for path in jsons[:MOST_LOOKED_AT]:
        with contextlib.suppress(ShapeError):  # the file is of another kind
            for picture in pictures:  # instances come before person_keypoints
                if picture not in listed and _is_listed(folder, picture, path):
                    listed[picture] = path
    if listed:
        return "coco", sorted(listed.items())
    by_stem = survey.pair_by_stem(pictures, files.get(".txt", ()))
    if by_stem:
        return "yolo", by_stem
    return "masks", survey.pair_masks(pictures, files.get(".npy", ()))


def _is_listed(folder: Path, picture: str, file: str) -> bool:
    """True if a COCO file lists a picture and, if several files might, is of its split."""
    splits = [part for part in picture.split("/")[:-1] if part.lower() in survey.SPLITS]
    return (not splits or splits[0] in file) and coco.lists(folder / file, folder / picture)


# ------------------------------------------------------------------------------------------ labels


def _spread(paths: Sequence[str]) -> list[str]:
    unique = sorted(set(paths))
    count = min(len(unique), MOST_LOOKED_AT)
    return [unique[number * len(unique) // count] for number in range(count)]


def _labels(
    folder: Path, kind: str, files: Mapping[str, Sequence[str]], pairs: Pairs
) -> LabelFormat:
    looked_at = _spread([mask for _, mask in pairs])
    if kind == "masks":
        return _of_masks([folder / path for path in looked_at])
    if kind == "yolo":
        return _of_yolo(folder, files, looked_at)
    names: set[str] = set()
    for found in _readable(folder, looked_at, coco.names_in if kind == "coco" else _names_drawn):
        names |= found
    labels = _named(kind, sorted(names))
    if len(looked_at) < len({mask for _, mask in pairs}):
        labels.notes.append(f"The classes are those of {len(looked_at)} of the files.")
    return labels


def _names_drawn(path: Path) -> set[str]:
    return {str(shape.key) for shape in labelme.read(path).shapes}


def _readable(
    folder: Path, paths: Sequence[str], read: Callable[[Path], set[T]]
) -> Iterator[set[T]]:
    """Contents of the files that can be read; fassd data check names the others.

    Raises:
        CardError: none of them can be read.
    """
    troubles: list[str] = []
    for path in paths:
        try:
            yield read(folder / path)
        except ShapeError as error:
            troubles.append(f"{folder / path}: {error}")
    if len(troubles) == len(paths):
        raise CardError(troubles[0])


def _named(kind: str, names: list[str]) -> LabelFormat:
    """Classes by name, with a background first."""
    background = next((name for name in names if name in BACKGROUNDS), "background")
    ignore = [name for name in names if name.lower() in UNLABELLED]
    others = [name for name in names if name not in (background, *ignore)]
    classes = [{"name": name} for name in (background, *others)]
    return LabelFormat(kind, classes, ignore, background)


def _of_yolo(
    folder: Path, files: Mapping[str, Sequence[str]], looked_at: Sequence[str]
) -> LabelFormat:
    names = _names_of_yolo(folder, files)
    numbers: set[int] = set(names)
    for found in _readable(folder, looked_at, _numbers_drawn):
        numbers |= found
    classes: list[dict[str, Any]] = [{"name": "background"}]
    for number in sorted(numbers):
        name = names.get(number, f"class {number}")
        classes.append(
            {"name": f"{name} {number}" if name == "background" else name, "ids": number}
        )
    notes = [] if names else ["No file names the numbers: data.yaml or classes.txt would."]
    return LabelFormat("yolo", classes, [], "background", notes)


def _numbers_drawn(path: Path) -> set[int]:
    return {int(shape.key) for shape in yolo.read(path, (1, 1)).shapes}


def _names_of_yolo(folder: Path, files: Mapping[str, Sequence[str]]) -> dict[int, str]:
    """The names in a file of YOLO's settings (names: a list or a mapping) or in classes.txt."""
    for path in (*files.get(".yaml", ()), *files.get(".yml", ())):
        try:
            values = read_yaml(read_text(folder / path, MOST_SETTINGS))
        except ValueError:
            continue
        found = _numbered(values.get("names") if isinstance(values, dict) else None)
        if found:
            return found
    for path in files.get(".txt", ()):
        if path.rpartition("/")[2] in ("classes.txt", "names.txt", "labels.txt"):
            try:
                lines = read_text(folder / path).splitlines()
            except ValueError as error:
                raise CardError(f"{folder / path}: cannot be read as text ({error})") from error
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    return {}


def _numbered(names: Any) -> dict[int, str]:
    """Names by number, from a list or a mapping; empty for any other value or long names."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return {}
    found = {
        int(key): name
        for key, name in names.items()
        if isinstance(name, str) and re.fullmatch(r"[0-9]{1,9}", str(key))
    }
    return found if sum(map(len, found.values())) <= MOST_SETTINGS else {}


def _of_masks(paths: Sequence[Path]) -> LabelFormat:
    """The values of masks, as classes."""
    greys: Counter[int] = Counter()
    colors: set[int] = set()
    palette: dict[int, list[int]] = {}
    troubles: list[ImageError] = []
    for path in paths:
        try:
            values, _ = read_values(path, "ids")
        except ImageError:  # the mask has colours, or cannot be read at all
            try:
                found = np.unique(read_values(path, "colors")[0])
            except ImageError as error:  # fassd data check names it
                troubles.append(error)
            else:
                colors |= set(found[:MOST_VALUES].tolist())
            continue
        found, counts = np.unique(values, return_counts=True)
        greys.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        palette |= _palette(path)
    if len(troubles) == len(paths):
        raise troubles[0]
    if colors:
        return _of_colors(sorted(colors | {color_key((g, g, g)) for g in greys}), paths)
    return _of_greys(greys, palette, paths)


def _palette(path: Path) -> dict[int, list[int]]:
    """Colours of the ids in a mask with a palette."""
    if path.suffix == ".npy":
        return {}
    with open_image(path) as image:
        levels = image.getpalette("RGB") if image.mode == "P" else None
    return dict(enumerate(np.reshape(levels or [], (-1, 3)).tolist()))


def _of_colors(colors: list[int], paths: Sequence[Path]) -> LabelFormat:
    if not 2 <= len(colors) <= IGNORE:
        raise CardError(
            f"{paths[0]}: the masks have {len(colors):,} colours; classes are 2 to {IGNORE}: are "
            "they pictures, or were they saved with loss?"
        )
    classes = [
        {"name": f"class {index}", "color": [key >> 16, key >> 8 & 255, key & 255]}
        for index, key in enumerate(colors)
    ]
    return LabelFormat(
        "colors", classes, notes=["The classes are the colours that the masks have."]
    )


def _of_greys(
    greys: Mapping[int, int], palette: Mapping[int, list[int]], paths: Sequence[Path]
) -> LabelFormat:
    ids = sorted(greys)
    total = sum(greys.values())
    dark, bright = [n for n in ids if n <= 32], [n for n in ids if n >= 223]
    extreme = sum(greys[grey] for grey in (*dark, *bright))
    # Lossy compression leaves many values around both; ids are many at one end only.
    lossy = min(len(dark), len(bright)) > 4 and max(ids) <= 255 and not palette
    if lossy and extreme > 0.9 * total:
        two = [{"name": "background"}, {"name": "object"}]
        return LabelFormat("threshold", two, notes=["Greys between black and white: lossy masks."])
    ignore = [value for value in ids if value == -1 or (value == 255 and len(ids) > 2)]
    ids = [value for value in ids if value not in ignore]
    if not 2 <= len(ids) <= IGNORE or min(ids) < 0:
        raise CardError(
            f"{paths[0]}: the masks have {len(ids):,} values; classes are 2 to {IGNORE}: are they "
            "pictures?"
        )
    names = ["background", "object"] if len(ids) == 2 and ids[0] == 0 else [f"id {n}" for n in ids]
    classes: list[dict[str, Any]] = [
        {"name": name, "ids": number} for name, number in zip(names, ids, strict=True)
    ]
    if all(number in palette for number in ids):
        classes = [{**entry, "color": palette[entry["ids"]]} for entry in classes]
    notes = ["255 is taken for what has no class."] if IGNORE in ignore else []
    return LabelFormat("ids", classes, ignore, notes=notes)


# -------------------------------------------------------------------------------------------- text


def _lists(folder: Path, layout: Layout, pairs: Pairs, unpaired: int) -> dict[str, list[str]]:
    """Lists of each split's pictures, if patterns alone would match others, or do not divide them.

    Empty if patterns suffice, or if files of these names exist.
    """
    images = sorted(image for image, _ in pairs)
    lists = {"train": images}
    if "{split}" in layout.images:
        at = layout.images.split("/").index("{split}")
        lists = {
            name: [image for image in images if image.split("/")[at] == part]
            for name, part in layout.splits.items()
        }
    elif len(images) >= HELD_OUT:
        last = len(images) - len(images) // HELD_OUT
        lists = {"train": images[:last], "val": images[last:]}
    taken = survey.taken_for_picture(layout, pairs)
    if len(lists) == len(layout.splits) and not unpaired and taken is None:
        return {}
    return {} if any((folder / f"{name}.txt").exists() for name in lists) else lists


def card_text(
    name: str, layout: Layout, labels: LabelFormat, pairs: int, lists: Mapping[str, Sequence[str]]
) -> str:
    """The YAML of a card, with comments on the meaning of its lines and on assumptions."""
    lines = [
        "# Contents of this folder as found by fassd data new: check them, and give the classes",
        "# their names. Then fassd data check reads every file. All keys and what they mean are in",
        "# the docstring of fassd/data/cardfile.py, an example in docs/own-data.md.",
        f"name: {_plain(name)}",
        "",
        "# In the order of the network's outputs. color: [220, 60, 60] is what is drawn; all have",
        "# one or none has.",
        "classes:",
    ]
    lines += [f"  - {_entry(entry)}" for entry in labels.classes]
    lines += ["", f"# {pairs:,} pictures have labels.", *_splits(layout, lists)]
    lines += [
        "",
        "# Paths from this folder. {split} is the split's folder, {name} the same in both.",
        f"images: {json.dumps(layout.images, ensure_ascii=False)}",
        "",
        *[f"# {note}" for note in (MEANS[labels.values], *labels.notes)],
        "masks:",
        f"  files: {json.dumps(layout.files, ensure_ascii=False)}",
        f"  values: {labels.values}",
    ]
    if labels.background is not None:
        lines += [
            "  # The class of pixels outside all shapes; or ignore, if it is unknown.",
            f"  background: {_plain(labels.background)}",
        ]
    if labels.values != "threshold":
        lines += [
            "  # Values without a class, which are neither learnt nor scored:",
            f"  {'' if labels.ignore else '# '}ignore: [{', '.join(map(_plain, labels.ignore))}]",
            "  # Values that are not listed are errors; this line ignores them:",
            "  # unlisted: ignore",
        ]
    return "\n".join(lines) + "\n"


MEANS = {
    "ids": "A pixel of a mask is one of the ids of a class above.",
    "colors": "A pixel of a mask is the color, or one of the colors, of a class above.",
    "threshold": "A pixel of a mask is the second class where it is brighter than `above` (127).",
    "labelme": "Polygons of LabelMe. Their labels are the classes' names; other labels of a class "
    "go\n# under labels: {name: tree, labels: [Tree, bush]}.",
    "coco": "Polygons or run lengths of COCO. Their categories are the classes' names; other names "
    "of a\n# class go under labels: {name: tree, labels: [Tree, bush]}.",
    "yolo": "Polygons of YOLO. Their numbers are the ids of the classes.",
}


def _splits(layout: Layout, lists: Mapping[str, Sequence[str]]) -> list[str]:
    folders = {name: layout.splits.get(name) or "." for name in lists or layout.splits}
    lines = ["splits:"]
    for name, part in folders.items():
        listed = f"{{folder: {_plain(part)}, list: {name}.txt}}" if lists else _plain(part)
        lines.append(f"  {_plain(name)}: {listed}")
    if len(lists) > len(layout.splits):
        lines[:0] = [
            "# The last tenth is held out, to choose the best weights by. Neighbours resemble each",
            "# other: edit the lists if that part is not a fair one.",
        ]
    if lists:
        lines.insert(0, "# The lists have the pictures with labels.")
    if "train" not in folders:
        lines.insert(0, "# Training wants a split train: rename one.")
    elif "val" not in folders:
        lines.insert(0, "# Without a split val nothing chooses the best weights.")
    return lines


def _entry(entry: Mapping[str, Any]) -> str:
    if len(entry) == 1:
        return _plain(entry["name"])
    return f"{{{', '.join(f'{key}: {_plain(value)}' for key, value in entry.items())}}}"


def _plain(value: Any) -> str:
    """A value as YAML, without quotes if it needs none."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w -]*\w|\.", value):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)
