"""The keys of a card's file, the values that they take, and the codes of its masks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from fassd.data.masks import MAX_ID, UNLABELLED, MaskCode, color_key
from fassd.data.patterns import HOLE
from fassd.data.shapes import Key, ShapeCode
from fassd.io.palette import IGNORE, LabelClass, palette
from fassd.io.untrusted import shortened, shown
from fassd.models.preprocess import MOST_BANDS, Preprocessing

SHAPES = ("labelme", "coco", "yolo")
USERS = {"first": ("index",), "above": ("threshold",), "background": SHAPES, "holes": ("coco",)}
"""The `values` that a key goes with, for keys that only go with some."""

KEYS: dict[str, type] = {"colors": tuple, "labelme": str, "coco": str}
"""Kind of the keys of classes in masks, if they are not numbers."""


def _template(text: str) -> str:
    """A path pattern below the root, with `/` between folders."""
    if PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts or "\\" in text:
        raise ValueError("must be a path below the root, folders separated by /")
    if re.search(r"[{}]", HOLE.sub("", text)):
        raise ValueError("a hole must be {word} or {word:path}")
    return text


def _as(key: str, kind: type) -> BeforeValidator:
    """A value that may be given in place of a mapping with a key alone."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, kind) else value)


WORDS = StringConstraints(
    strict=True, strip_whitespace=True, min_length=1, max_length=4096, pattern=r"^[^\x00]*$"
)
Text = Annotated[str, WORDS]
Template = Annotated[Text, AfterValidator(_template)]
Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Id = Annotated[int, Field(strict=True, ge=0, le=MAX_ID)]
Unlabelled = Annotated[int, Field(strict=True, ge=UNLABELLED, le=MAX_ID)]
OneOrMore = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
Texts = Annotated[list[Text], OneOrMore, Field(min_length=1)]


class Block(BaseModel):
    """A mapping of a card, with no other keys than these."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(
                    f"unknown key {shown(key)}; accepted are {', '.join(cls.model_fields)}"
                )
        return value


class CardClass(Block):
    """A class: its display, and its ids, colours and names in masks."""

    name: Text
    color: Color | None = None
    ids: Annotated[list[Id], OneOrMore] = []
    colors: list[Color] = []
    labels: Texts = []
    covers: Texts = []


class CardBands(Block):
    count: Annotated[int, Field(strict=True, ge=1, le=MOST_BANDS)]
    mean: list[float] = []
    std: list[float] = []

    def preprocessing(self) -> Preprocessing:
        default = Preprocessing.of_bands(self.count)
        found = Preprocessing.checked(self.mean or default.mean, self.std or default.std, "bands")
        if len(found.mean) != self.count:
            raise ValueError(f"bands.mean and bands.std must be {self.count} numbers each")
        return found


class CardSplit(Block):
    folder: Text = ""
    images: Template = ""
    list: Template | None = None
    column: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    names: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    pictures: Annotated[int, Field(strict=True, ge=1, le=10**9)] | None = None


class CardMasks(Block):
    files: Template
    values: Literal["ids", "index", "colors", "threshold", "labelme", "coco", "yolo"]
    ignore: Annotated[list[Unlabelled | Color | Text], OneOrMore] = []
    unlisted: Literal["error", "ignore"] = "error"
    first: Id = 0
    above: Annotated[int, Field(strict=True, ge=0, lt=MAX_ID)] = 127
    background: Text | None = None
    holes: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _agree(self) -> CardMasks:
        for key in self.model_fields_set & USERS.keys():
            if self.values not in USERS[key]:
                goes = f"{key!r} goes with 'values: {' or '.join(USERS[key])}' only"
                raise ValueError(f"{goes}, not with {self.values!r}")
        for own in self.ignore:
            if type(own) is not KEYS.get(self.values, int) or self.values == "threshold":
                raise ValueError(f"'ignore' has {shown(own)}, no key of 'values: {self.values}'")
        if self.values in SHAPES and self.background is None:
            raise ValueError(
                "the key 'background' is missing: the class of what no shape covers, or ignore, "
                "for pixels that do not count"
            )
        return self

    def code(self, classes: Sequence[CardClass]) -> MaskCode | ShapeCode:
        """The meaning of the masks' pixels, or shapes.

        Raises:
            ValueError: it is ambiguous, or does not fit the classes.
        """
        names = [info.name for info in classes]
        if self.values == "threshold":
            if len(classes) != 2:
                raise ValueError(f"a threshold separates two classes, but there are {len(classes)}")
            return MaskCode("threshold", {0: 0, 1: 1}, above=self.above)
        if self.values == "index" and (last := self.first + len(classes) - 1) > MAX_ID:
            raise ValueError(f"'first' takes the ids up to {last}, beyond {MAX_ID}")
        keys = [self._keys(index, info) for index, info in enumerate(drawn(classes))]
        for name, own in zip(names, keys, strict=True):
            if not own and name != self.background:
                raise ValueError(f"'values: {self.values}' needs ids, but {name!r} has none")
        table = positions(keys, names)
        for key in self.ignore:
            if table.setdefault(key, IGNORE) != IGNORE:
                raise ValueError(f"ignore: {shown(key)} is the class {names[table[key]]!r}, too")
        ignores = self.unlisted == "ignore"
        if self.values in SHAPES:
            if self.background not in (*names, "ignore"):
                known = f"{shortened(', '.join(names))}, ignore"
                raise ValueError(f"background must be {known}, got {shown(self.background)}")
            background = names.index(self.background) if self.background in names else IGNORE
            kind: Any = self.values
            return ShapeCode(kind, table, background, ignores, self.holes)
        if self.values == "colors":
            return MaskCode("colors", {color_key(k): v for k, v in table.items()}, ignores)
        return MaskCode("ids", table, ignores)

    def _keys(self, index: int, info: CardClass) -> Sequence[Any]:
        """The ids, colours or names of a class."""
        if self.values == "index":
            return [self.first + index]
        if self.values == "colors":
            return info.colors or [info.color]
        return info.ids if self.values in ("ids", "yolo") else info.labels or [info.name]


class CardContent(Block):
    """All keys of a card, as `fassd.data.cardfile` describes them."""

    name: Text
    classes: Annotated[
        list[Annotated[CardClass, _as("name", str)]], Field(min_length=2, max_length=IGNORE)
    ]
    splits: Annotated[
        dict[Text, Annotated[CardSplit, _as("folder", str)]], Field(min_length=1, max_length=1000)
    ]
    images: Template
    masks: Annotated[list[CardMasks], OneOrMore, Field(min_length=1, max_length=16)]
    description: Text = ""
    source: Text = ""
    licence: Text = ""
    root: Text = "."
    range: Any = None
    bands: Annotated[CardBands, _as("count", int)] | None = None


def positions(keys: Iterable[Iterable[Key]], names: Sequence[str]) -> dict[Any, int]:
    """The position of the class that each key belongs to.

    Raises:
        ValueError: a key belongs to two classes, or twice to one.
    """
    table: dict[Key, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            if key in table:
                both = f"the classes {shown(names[table[key]])} and {shown(names[index])}"
                raise ValueError(f"classes[{index}]: {shown(key)} stands twice, in {both}")
            table[key] = index
    return table


def drawn(classes: Sequence[CardClass]) -> list[CardClass]:
    """The classes with colours, those of `palette` if none has one.

    Raises:
        ValueError: only some have one.
    """
    bare = [index for index, info in enumerate(classes) if info.color is None]
    if 0 < len(bare) < len(classes):
        raise ValueError(
            f"classes[{bare[0]}]: the key 'color' is missing; either all classes have one or none "
            "has"
        )
    colors = palette(len(classes)).tolist()
    return [
        info.model_copy(update={"color": info.color or tuple(color)})
        for info, color in zip(classes, colors, strict=True)
    ]


def covered(classes: Sequence[CardClass]) -> tuple[tuple[str, ...], ...]:
    """The classes of a finer list in each class; empty if no class has the key.

    Raises:
        ValueError: one of them is in two classes.
    """
    covers = tuple(tuple(info.covers or [info.name]) for info in classes)
    positions(covers, [info.name for info in classes])
    return covers if any(info.covers for info in classes) else ()


def label_classes(classes: Sequence[CardClass]) -> tuple[LabelClass, ...]:
    """Names and colours of classes.

    Raises:
        ValueError: a name stands twice, or only some have a colour.
    """
    positions(([info.name] for info in classes), [info.name for info in classes])
    return tuple(LabelClass(info.name, info.color or (0, 0, 0)) for info in drawn(classes))


def check_split(name: str, split: Any, masks: Sequence[CardMasks]) -> None:
    """Check that masks only use holes that a split's pictures fill.

    Raises:
        ValueError: they use others, or a hole for a path is not in the last part.
    """
    if ":path" in split.images.rpartition("/")[0]:
        raise ValueError("images: {...:path} may only stand after the last /")
    filled = {hole[1] for hole in HOLE.finditer(split.images)} | {"split"}
    pictures = f"the pictures of split {shown(name)}, {shown(split.images)},"
    for block in masks:
        free = [hole[1] for hole in HOLE.finditer(block.files) if hole[1] not in filled]
        if free:
            has = f"masks: {shown(block.files)} has the hole {{{shortened(free[0], 40)}}}"
            raise ValueError(f"{has}, which {pictures} do not fill")
    if (split.list_file or split.names) and "name" not in filled:
        raise ValueError(f"splits: there are names, so {pictures} need a hole {{name}}")
