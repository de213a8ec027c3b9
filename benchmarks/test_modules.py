"""Speed of DAPF at each alpha, the three MDAs, every HarDBlock, ASPP.

    pytest benchmarks/test_modules.py
    pytest benchmarks/test_modules.py --sizes 1024x2048 --benchmark-json modules.json

Each way to compute it is held to the reference, then timed; one group of figures is one subject.
"""

from __future__ import annotations

import pytest

from benchmarks.measure import CLOCK, measure

PART = "modules"


@pytest.mark.benchmark(timer=CLOCK.read)
def test_module(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)
