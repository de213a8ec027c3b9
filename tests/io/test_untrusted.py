"""YAML and JSON of somebody else's: plain values, or an error of one line, soon."""

import math
import time

import pytest

from fassd.io.untrusted import MOST_YAML, read_json, read_text, read_yaml, shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: [1, -2.5, 1e3, yes, ~, x]", {"a": [1, -2.5, "1e3", True, None, "x"]}),
        ("a: 2024-01-02\nb: 2024-13-45", {"a": "2024-01-02", "b": "2024-13-45"}),
        ("{0: a, 1: b}", {0: "a", 1: "b"}),
        ("[.inf]", [math.inf]),
        ("", None),
    ],
)
def test_plain_yaml(text, value):
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[" * 100_000, "nest|deep"),
        ("- " * 100_000, "nest|deep"),
        ("a: &a [1]\nb: [*a, *a]", r"aliases such as \*a are not read"),
        ("a: &a {x: 1}\nb: {<<: *a}", r"aliases such as \*a are not read"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice"),
        ("? [a]\n: 1", "unhashable key"),
        ("!!bool x", "x"),
        ("!!int x", "'x'"),
        ("!!float x", "'x'"),
        ("!!map x", "not enough values|expected a mapping"),
        ("!!python/object:os.system x", "python/object"),
        ("!" + "a" * 100_000 + " x", "a tag|the tag"),
        ("a: 1" + ":1" * 100_000, "a number has 200,001 characters"),
        ("a: 0x" + "f" * 100_000, "a number has 100,002 characters"),
        ("a: [b", "expected|did not find"),
        ("a\n---\nb", "a single document"),
        ("\x01", "unacceptable|not allowed"),
        ("a" * (MOST_YAML + 1), "must have at most 1,048,576 characters"),
    ],
)
def test_yaml_that_is_refused_in_one_line_soon(text, message):
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert len(str(caught.value)) <= 200 and "\n" not in str(caught.value)
    assert time.process_time() - started < 5


def test_many_keys_take_linear_time():
    count = 60_000
    text = "".join(f"k{index}: 1\n" for index in range(count))
    started = time.process_time()
    assert len(read_yaml(text)) == count
    assert time.process_time() - started < 20  # a minute and more if each looks at all before it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 100, "a number has 100 digits"),
        (b"\xff", "utf-8"),
        ("{", "Expecting"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_json(text)


def test_values_are_shown_shortly():
    assert shown([1, "a", {"b": None}]) == "[1, 'a', {'b': None}]"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, ["x" * 10**6] * 100, list(range(10**6)), 10**60, "a\nb"):
        assert len(shown(value)) <= 200 and "\n" not in shown(value)


def test_files_that_are_too_large_or_none(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"x" * 11)
    assert read_text(path, 11) == 11 * "x"
    with pytest.raises(ValueError, match="at most 10 bytes, has 11"):
        read_text(path, 10)
    with pytest.raises(ValueError, match="not a regular file"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent")
