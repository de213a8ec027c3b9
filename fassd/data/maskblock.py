"""A card's blocks of masks: the meaning of the pixels of masks, or of shapes instead of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fassd.data.card import Masks
from fassd.data.masks import MAX_ID, UNLABELLED, MaskCode, color_key
from fassd.data.node import Node
from fassd.data.shapes import ShapeCode
from fassd.io.palette import IGNORE, LabelClass
from fassd.io.untrusted import shown

PIXELS = ("ids", "index", "colors", "threshold")
SHAPES = ("labelme", "coco", "yolo")

USERS = {"first": ["index"], "above": ["threshold"], "background": SHAPES, "holes": ["coco"]}
"""The `values` that a key goes with, for keys that only go with some."""


@dataclass(frozen=True)
class CardClass:
    """A class as given in the card: its display, and its ids, colours and names in masks."""

    shown: LabelClass
    ids: list[int]
    colors: list[tuple[int, int, int]]
    labels: list[str]
    covers: tuple[str, ...]


def parse_texts(node: Node) -> list[str]:
    nodes = [node] if isinstance(node.value, str) else node.items("a name or a list of names")
    return [item.text() for item in nodes]


def parse_ids(node: Node | None, lowest: int = 0) -> list[int]:
    if node is None:
        return []
    nodes = [node] if type(node.value) is int else node.items("an id or a list of ids")
    return [item.integer(lowest, MAX_ID) for item in nodes]


def parse_masks(node: Node, classes: list[CardClass]) -> Masks:
    """Parse one of a card's blocks of masks."""
    fields = node.fields(
        ["files", "values"], ["ignore", "unlisted", "first", "above", "background", "holes"]
    )
    values = fields["values"].choice(*PIXELS, *SHAPES)
    for key, users in USERS.items():
        if key in fields and values not in users:
            goes = f"goes with 'values: {' or '.join(users)}' only, not with {values!r}"
            fields[key].fail(goes)
    if values in SHAPES:
        return _parse_shapes(node, fields, classes)
    files = fields["files"].template()
    if values == "threshold":
        if len(classes) != 2:
            node.fail(f"a threshold separates two classes, but there are {len(classes)}")
        for key in ("ignore", "unlisted"):
            if key in fields:
                fields[key].fail("does not go with 'values: threshold', which has no ids")
        above = fields["above"].integer(0, MAX_ID - 1) if "above" in fields else 127
        return Masks(files, MaskCode("threshold", {0: 0, 1: 1}, above=above))
    first = fields["first"].integer(0, MAX_ID) if "first" in fields else 0
    labels = _parse_labels(node, classes, values, first)
    for pixel in _parse_ignore(fields.get("ignore"), values):
        if labels.get(pixel, IGNORE) != IGNORE:
            name = classes[labels[pixel]].shown.name
            fields["ignore"].fail(f"{_shown(pixel, values)} is the class {name!r}, too")
        labels[pixel] = IGNORE
    kind: Any = "colors" if values == "colors" else "ids"
    return Masks(files, MaskCode(kind, labels, ignore_unlisted=_ignores(fields)))


def _parse_shapes(node: Node, fields: dict[str, Node], classes: list[CardClass]) -> Masks:
    kind: Any = fields["values"].value
    if "background" not in fields:
        node.fail(
            "the key 'background' is missing: the class of what no shape covers, or ignore, for "
            "pixels that do not count"
        )
    names = [info.shown.name for info in classes]
    background = fields["background"].choice(*names, *({"ignore"} - {*names}))
    labels: dict[int | str, int] = {}
    for index, (name, info) in enumerate(zip(names, classes, strict=True)):
        keys = info.ids if kind == "yolo" else info.labels
        if not keys and name != background:
            node.fail(f"'values: yolo' needs ids, but the class {name!r} has none")
        for key in keys:
            if key in labels:
                before = names[labels[key]]
                node.fail(f"{shown(key)} stands for two classes, {before!r} and {name!r}")
            labels[key] = index
    for key in _parse_unlabelled(fields.get("ignore"), kind):
        if key in labels and labels[key] != IGNORE:
            fields["ignore"].fail(f"{shown(key)} is the class {names[labels[key]]!r}, too")
        labels[key] = IGNORE
    code = ShapeCode(
        kind,
        labels,
        background=names.index(background) if background in names else IGNORE,
        ignore_unlisted=_ignores(fields),
        holes="holes" in fields and fields["holes"].boolean(),
    )
    return Masks(fields["files"].template(), code)


def _parse_unlabelled(node: Node | None, kind: str) -> Sequence[int | str]:
    if node is None:
        return []
    return parse_ids(node) if kind == "yolo" else parse_texts(node)


def _ignores(fields: dict[str, Node]) -> bool:
    """True if unlisted values are ignored instead of being an error."""
    return "unlisted" in fields and fields["unlisted"].choice("error", "ignore") == "ignore"


def _parse_labels(node: Node, classes: list[CardClass], values: str, first: int) -> dict[int, int]:
    """The label of every id or colour that stands for a class."""
    labels: dict[int, int] = {}
    for index, info in enumerate(classes):
        keys = {
            "ids": info.ids,
            "index": [first + index],
            "colors": [color_key(color) for color in info.colors],
        }[values]
        if not keys:
            node.fail(f"'values: ids' needs ids, but the class {info.shown.name!r} has none")
        for key in keys:
            if key in labels:
                before = classes[labels[key]].shown.name
                both = f"for two classes, {before!r} and {info.shown.name!r}"
                twice = f"twice in the class {before!r}" if labels[key] == index else both
                node.fail(f"{_shown(key, values)} stands {twice}")
            if key > MAX_ID and values == "index":
                node.fail(f"'first' takes the ids up to {key}, beyond {MAX_ID}")
            labels[key] = index
    return labels


def _parse_ignore(node: Node | None, values: str) -> list[int]:
    if node is None:
        return []
    if values == "colors":
        return [color_key(item.color()) for item in node.items("a list of colours")]
    return parse_ids(node, UNLABELLED)


def _shown(key: int, values: str) -> str:
    if values == "colors":
        return f"the colour [{key >> 16}, {key >> 8 & 255}, {key & 255}]"
    return f"the id {key}"
