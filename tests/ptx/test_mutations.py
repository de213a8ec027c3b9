"""A sample of the mistakes in csrc/cuda that are noticed; ``python -m ptx.mutations`` tries all."""

from __future__ import annotations

import pytest
from conformance.harness import EXECUTED
from ptx import mutations

SAMPLE = [*mutations.PRIMITIVES[::10], *(mutations.KERNELS[::40] if EXECUTED else ())]


@pytest.mark.parametrize("mutation", SAMPLE, ids=str)
def test_mistakes_are_noticed(mutation: mutations.Mutation) -> None:
    assert mutations.noticed(mutation) != mutations.MISSED
