"""A value in a card's YAML, checked when it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from fassd.data.card import CardError
from fassd.data.patterns import HOLE
from fassd.io.levels import Range, as_range
from fassd.io.untrusted import shortened, shown

MOST_TEXT = 4096
"""Maximum characters of a name or path."""


@dataclass(frozen=True)
class Node:
    """A value in a card and its place. Methods return it checked, or raise CardError."""

    value: Any
    file: Path
    key: str = ""

    def fail(self, message: str) -> NoReturn:
        key = shortened(self.key, 100)
        raise CardError(f"{self.file}: {key + ': ' if key else ''}{shortened(message, 600)}")

    def fail_got(self, accepted: str) -> NoReturn:
        self.fail(f"must be {accepted}, got {shown(self.value)}")

    def fields(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Node]:
        """The entries of a mapping with these keys and no others."""
        required, accepted = list(required), [*required, *optional]
        fields = self.entries(f"a mapping with the keys {', '.join(accepted)}")
        for key in fields:
            if key not in accepted:
                self.fail(f"unknown key {shown(key)}; accepted are {', '.join(accepted)}")
        for key in required:
            if key not in fields:
                self.fail(f"the key {key!r} is missing")
        return fields

    def entries(self, accepted: str) -> dict[str, Node]:
        if not isinstance(self.value, dict):
            self.fail_got(accepted)
        for key in self.value:
            if not isinstance(key, str):
                self.fail(f"keys must be text, got {shown(key)} (put it in quotes)")
            if len(key) > MOST_TEXT:
                self.fail(f"keys must have at most {MOST_TEXT:,} characters, got {shown(key)}")
        prefix = f"{self.key}." if self.key else ""
        return {key: Node(value, self.file, f"{prefix}{key}") for key, value in self.value.items()}

    def items(self, accepted: str) -> list[Node]:
        if not isinstance(self.value, list) or not self.value:
            self.fail_got(accepted)
        return [
            Node(value, self.file, f"{self.key}[{index}]") for index, value in enumerate(self.value)
        ]

    def text(self, most: int = MOST_TEXT) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail_got("text (in quotes if YAML takes it for something else)")
        if len(self.value) > most or "\0" in self.value:
            self.fail_got(f"text of at most {most:,} characters, none of them zero")
        return self.value.strip()

    def integer(self, low: int, high: int) -> int:
        if type(self.value) is not int or not low <= self.value <= high:
            self.fail_got(f"a whole number from {low} to {high}")
        return self.value

    def choice(self, *accepted: str) -> str:
        if not isinstance(self.value, str) or self.value not in accepted:
            self.fail_got(f"one of {', '.join(accepted)}")
        return self.value

    def boolean(self) -> bool:
        if type(self.value) is not bool:
            self.fail_got("true or false")
        return self.value

    def color(self) -> tuple[int, int, int]:
        value = self.value
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(type(level) is int and 0 <= level <= 255 for level in value)
        ):
            self.fail_got("a colour, [red, green, blue] of 0 to 255")
        return value[0], value[1], value[2]

    def range(self) -> Range:
        try:
            return as_range(self.value)
        except ValueError:
            self.fail_got("auto or [low, high], two numbers of which the first is lower")

    def template(self) -> str:
        """A path pattern below the root, with `/` between folders."""
        text = self.text()
        if PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts or "\\" in text:
            self.fail_got("a path below the root, folders separated by /")
        if re.search(r"[{}]", HOLE.sub("", text)):
            self.fail(f"a hole must be {{word}} or {{word:path}}, got {shown(text)}")
        return text

    def folder(self, root: Path) -> str:
        """A folder below the root: links in it may lead outside, the card may not."""
        text = self.text()
        top = os.path.abspath(root)
        if os.path.commonpath([top, os.path.abspath(os.path.join(top, text))]) != top:
            self.fail_got("a folder below the root (the key 'root', or --root, says where that is)")
        return text
