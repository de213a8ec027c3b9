"""Speed of each operator where FASSD-Net calls it.

    pytest benchmarks/test_operators.py
    pytest benchmarks/test_operators.py --sizes 1024x2048 --benchmark-json operators.json

Each way to compute it is held to the reference, then timed; one group of figures is one subject.
"""

from __future__ import annotations

import pytest

from benchmarks.measure import CLOCK, measure

PART = "operators"


@pytest.mark.benchmark(timer=CLOCK.read)
def test_operator(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)
