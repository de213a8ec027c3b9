"""YAML and JSON from untrusted sources: bounded time, memory and error messages."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_YAML = 1 << 20
"""Maximum characters of a YAML text; libyaml takes two seconds for them."""

DEEPEST = 64
"""Maximum depth of lists and mappings in a YAML text."""

MOST_DIGITS = 64
"""Maximum characters of a number. Python takes quadratic time to read and write long ones."""

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


def read_yaml(text: str) -> Any:
    """The value of a YAML document of plain values; dates are text.

    A repeated key is an error, and so is an alias, by which a short text can stand for any number
    of values.

    Raises:
        ValueError: the text is not such a document, or is too large or too deep.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"must have at most {MOST_YAML:,} characters, has {len(text):,}")
    try:
        _check_structure(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError) as error:
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
    said = said.replace(" after validation", "")
    place = details["loc"][skip:]
    if details["type"] in ("model_type", "dict_type"):
        said = "must be a mapping" if place else f"must be a mapping, got {shown(details['input'])}"
    if not place:  # an error of several fields, which it names
        return shortened(said, 600)
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    field = shortened(field.removeprefix("."), 100)
    if details["type"] == "extra_forbidden":
        return f"{field} is not known"
    if details["type"] == "missing":
        return f"{field} is missing"
    field += "" if said.startswith("must ") else ":"
    return f"{field} {said}, got {shown(details['input'])}"


_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _check_structure(text: str) -> None:
    """Check a YAML text before values are made of it.

    Raises:
        ValueError: it is nested too deeply, or has an alias.
    """
    depth = 0
    for event in yaml.parse(text, _Base):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"lists and mappings nested more than {DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases such as *{shortened(event.anchor or '', 40)} are not read")


class _Loader(_Base):
    """YAML without dates, long numbers and repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            raise ValueError(f"the key {shown(keys.most_common(1)[0][0])} stands twice")
        return found

    def construct_scalar(self, node: Any) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > MOST_DIGITS:
            raise ValueError(f"a number has {len(node.value):,} characters")
        return super().construct_scalar(node)
