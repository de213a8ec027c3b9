"""What every operator is held to: a table of shapes, a few shapes in all layouts, drawn calls.

An operator's file says which, and `standard_tests` makes tests of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conformance import cases
from conformance.cases import Pair
from conformance.harness import LAYOUTS, Subject, check
from hypothesis import given, settings
from hypothesis import strategies as st

from fassd.models.device import torch_threads
from fassd_kernels import checks

Row = dict[str, Any]
Test = Callable[..., None]

# Widths that occur in the networks (growth 10, 18, 28; MDA 31, 63, 119), and those around the
# vector widths of the kernels.
IN_CHANNELS = ((1,), (3,), (10, 18), (31,), (28, 3, 1), (59,), (63, 10), (119,))
OUT_CHANNELS = (1, 7, 16, 17, 31, 33, 64, 65, 119)
SIZES = ((1, 1), (1, 19), (23, 1), (5, 7), (14, 37), (33, 50))

# The same examples in every run; a failure prints how to repeat it.
drawn = settings(max_examples=40, deadline=None, derandomize=True, print_blob=True)
drawn_costly = drawn
ACTIVATIONS = st.sampled_from(checks.ACTIVATIONS)
KINKED = st.sampled_from(checks.KINKED)
LAYOUT_NAMES = st.sampled_from(list(LAYOUTS))
BATCHES = st.integers(1, 3)
CHANNELS = st.integers(1, 40)


def sizes(height: int = 24, width: int = 40) -> st.SearchStrategy[Pair]:
    """Pairs of numbers from 1 up to these."""
    return st.tuples(st.integers(1, height), st.integers(1, width))


def pairwise(**choices: Sequence[Any]) -> list[Row]:
    """Rows in which every value of every choice meets every value of every other choice.

    Nearly all defects of a kernel show with two properties at once (a stride *and* an odd width);
    the full product would be millions of rows, this is hardly more than the largest two choices'.
    Greedy and deterministic: of some random completions of a pair still missing, the best.
    """
    names = list(choices)
    indices = {name: range(len(choices[name])) for name in names}
    missing = {
        (a, i, b, j): None
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(indices[a], indices[b])
    }
    draw = random.Random(0)

    def pairs_of(row: dict[str, int]) -> list[tuple[str, int, str, int]]:
        return [(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)]

    def complete(a: str, i: int, b: str, j: int) -> dict[str, int]:
        return {**{name: draw.choice(indices[name]) for name in names}, a: i, b: j}

    rows = []
    while missing:
        seed = next(iter(missing))
        candidates = [complete(*seed) for _ in range(30)]
        row = max(candidates, key=lambda row: sum(pair in missing for pair in pairs_of(row)))
        for pair in pairs_of(row):
            missing.pop(pair, None)
        rows.append({name: choices[name][row[name]] for name in names})
    return rows


def describe(value: Any) -> str | None:
    """A row of a table as a test's name."""
    if not isinstance(value, dict):
        return None
    return ",".join(f"{name}={brief(setting)}" for name, setting in value.items())


def brief(setting: Any) -> str:
    return "x".join(map(str, setting)) if isinstance(setting, tuple) else str(setting)


# --- the tests ------------------------------------------------------------------------------------


def standard_tests(
    table: Sequence[Row],
    few: Sequence[Row],
    costly: bool = False,
    **strategies: st.SearchStrategy[Any],
) -> tuple[Test, Test, Test, Test]:
    """The tests ``test_table``, ``test_table_contiguous``, ``test_layouts`` and ``test_drawn``.

    Args:
        table: arguments of the operator's builder and, as ``layout``, that of all tensors; each row
            is a test in every dtype, and one in float32, contiguous, on two threads.
        few: arguments of a few calls, which are made in every dtype and layout.
        costly: whether a call is many launches: where rows are sampled, fewer calls are drawn.
        strategies: how the arguments of further calls are drawn; dtype and layout are drawn too.
    """

    @pytest.mark.parametrize("row", table, ids=describe)
    def test_table(subject: Subject, dtype: torch.dtype, row: Row) -> None:
        check(subject, call_of(subject, row), dtype, row["layout"])

    @pytest.mark.parametrize("row", table, ids=describe)
    def test_table_contiguous(subject: Subject, row: Row) -> None:
        with torch_threads(2):
            check(subject, call_of(subject, row))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("shape", few, ids=describe)
    def test_layouts(subject: Subject, dtype: torch.dtype, shape: Row, layout: str) -> None:
        check(subject, call_of(subject, shape), dtype, layout)

    @given(data=st.data())
    @(drawn_costly if costly else drawn)
    def test_drawn(subject: Subject, data: st.DataObject) -> None:
        row = {name: data.draw(strategy, name) for name, strategy in strategies.items()}
        dtype = data.draw(st.sampled_from(subject.dtypes), "dtype")
        check(subject, call_of(subject, row), dtype, data.draw(LAYOUT_NAMES, "layout"))

    return test_table, test_table_contiguous, test_layouts, test_drawn


def call_of(subject: Subject, row: Row) -> cases.Call:
    """The call of a row, which may name a layout besides the arguments."""
    shape = {name: value for name, value in row.items() if name != "layout"}
    return cases.builder(subject.operator)(**shape)
