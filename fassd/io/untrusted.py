"""YAML and JSON from untrusted sources: bounded time, memory and error messages."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_YAML = 1 << 20
"""Maximum characters of a YAML text; libyaml takes two seconds for them."""

MOST_VALUES = 500_000
"""Maximum values of a YAML text; values behind aliases count each time they are named."""

DEEPEST = 64
"""Maximum depth of lists and mappings in a YAML text."""

MOST_DIGITS = 64
"""Maximum characters of a number. Python takes quadratic time to read and write long ones."""

KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
"""Types of YAML that are read."""

YAML_TAG = "tag:yaml.org,2002:"

if TYPE_CHECKING:
    _Base = yaml.SafeLoader
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast


def read_text(path: Path, most: int = MOST_YAML) -> str:
    """Read a file of at most `most` bytes as text.

    Raises:
        ValueError: the file is larger, not regular, or not UTF-8.
        OSError: the file cannot be read.
    """
    return _read_bytes(path, most).decode("utf-8")


def _read_bytes(path: Path, most: int) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"must have at most {most:,} bytes, has {os.path.getsize(path):,}")
    return data


def read_yaml(text: str, numbered: bool = False) -> Any:
    """The value of a YAML document of plain values; dates are text, and a repeated key is an error.

    Args:
        text: the document.
        numbered: True allows many keys that are numbers in a mapping, if the text is short.

    Raises:
        ValueError: the text is not such a document, or is too large or too deep.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"must have at most {MOST_YAML:,} characters, has {len(text):,}")
    try:
        return yaml.load(text, _NumberedLoader if numbered else _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(shortened(str(error))) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has a number with too many
            digits.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_text(path: Path, most: int) -> str:
    """Read a JSON file of at most `most` bytes as text, in UTF-8, -16 or -32.

    Raises:
        ValueError: as in `read_text`.
        OSError: the file cannot be read.
    """
    data = _read_bytes(path, most)
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from error


def shown(value: object) -> str:
    """`repr`, shortened."""
    return shortened(_REPR.repr(value))


def shortened(text: str, most: int = 200) -> str:
    """A text as one line of at most `most` characters."""
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def problem(error: ValidationError) -> str:
    """The first of pydantic's errors: the field, what is accepted, and what came."""
    return complaint(error.errors(include_url=False)[0])


def complaint(details: Mapping[str, Any], skip: int = 0) -> str:
    """One of pydantic's errors in words.

    Args:
        details: an item of `ValidationError.errors()`.
        skip: number of leading parts to leave out of the field's name.
    """
    said = re.sub(r"^\w+ should ", "must ", details["msg"]).removeprefix("Value error, ")
    place = details["loc"][skip:]
    if not place:  # an error of several fields, which it names
        return shortened(said, 600)
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    field = shortened(field.removeprefix("."), 100)
    if details["type"] == "extra_forbidden":
        return f"{field} is not known"
    return f"{field} {said}, got {shown(details['input'])}"


_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


class _Loader(_Base):
    """YAML with only the types `KINDS`, within the limits above."""

    most_others = 1  # maximum number of keys of a mapping that are not text

    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(YAML_TAG) in KINDS
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if tag != f"{YAML_TAG}timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        _measured(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (LookupError, ValueError, TypeError, AttributeError) as error:  # "!!bool x"
            kind = node.tag.removeprefix(YAML_TAG)
            raise _wrong(f"{shown(node.value)} is not a valid {shortened(kind)}", node) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        others = 0
        for key_node, _ in node.value:
            if key_node.tag == f"{YAML_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                others += 1
            elif key in names:
                raise _wrong(f"the key {shown(key)} stands twice", node)
            else:
                names.add(key)
        if (
            others > self.most_others
        ):  # numbers can be chosen so that a dictionary finds them slowly
            raise _wrong("keys must be text (in quotes if YAML takes them for numbers)", node)
        return super().construct_mapping(node, deep)


class _NumberedLoader(_Loader):
    most_others = 10_000


def _wrong(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _measured(
    node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], around: tuple[yaml.Node, ...] = ()
) -> tuple[int, int]:
    """Number of values of a node, and its depth, with all aliases expanded.

    Args:
        known: results for the nodes before it.
        around: nodes that contain it.
    """
    if node in around:
        raise _wrong("an alias stands inside of what it names", node)
    if node not in known:
        inside = [] if len(around) > DEEPEST else _parts(node)
        sizes = [_measured(part, known, (*around, node)) for part in inside]
        values = 1 + sum(size for size, _ in sizes)
        depth = 1 + max((depth for _, depth in sizes), default=0)
        if values > MOST_VALUES:
            raise _wrong(f"more than {MOST_VALUES:,} values", node)
        if depth > DEEPEST:
            raise _wrong(f"lists and mappings nested more than {DEEPEST} deep", node)
        known[node] = values, depth
    return known[node]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag in (f"{YAML_TAG}int", f"{YAML_TAG}float") and len(node.value) > MOST_DIGITS:
        raise _wrong(f"a number has {len(node.value):,} characters", node)
    return []
