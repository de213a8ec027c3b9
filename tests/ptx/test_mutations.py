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


def test_mistakes_can_be_made() -> None:
    """The sources still have the text that each mistake changes."""
    stale = []
    for mutation in (*mutations.PRIMITIVES, *mutations.KERNELS, *mutations.BOXES):
        text = (mutations.build.CSRC / "cuda" / mutation.file).read_text()
        if mutation.old not in text[text.find(mutation.after) :] or mutation.after not in text:
            stale.append(str(mutation))
    assert not stale, "\n".join(stale)
