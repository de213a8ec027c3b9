"""A sample of the mistakes in csrc/cuda that are noticed; ``python -m ptx.mutations`` tries all."""

from __future__ import annotations

import pytest
from ptx import mutations

TRIED = mutations.tried()
SAMPLE = [*TRIED[: len(mutations.PRIMITIVES) : 10], *TRIED[len(mutations.PRIMITIVES) :: 80]]


@pytest.mark.parametrize("mutation", SAMPLE, ids=str)
def test_mistakes_are_noticed(mutation: mutations.Mutation) -> None:
    assert mutations.noticed(mutation) != mutations.MISSED
