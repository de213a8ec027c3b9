"""A sample of the mistakes in csrc/cuda that are noticed; ``python -m ptx.mutations`` tries all."""

from __future__ import annotations

import pytest
from conformance.harness import EXECUTED
from ptx import mutations

# Those of primitives need no GPU that is executed.
OTHERS = [each for each in mutations.tried() if each not in mutations.PRIMITIVES]
SAMPLE = OTHERS[::80] if EXECUTED else mutations.PRIMITIVES[::10]


@pytest.mark.parametrize("mutation", SAMPLE, ids=str)
def test_mistakes_are_noticed(mutation: mutations.Mutation) -> None:
    assert mutations.noticed(mutation) != mutations.MISSED
