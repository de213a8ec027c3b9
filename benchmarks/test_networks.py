"""Speed of whole networks, labels out.

    pytest benchmarks/test_networks.py
    pytest benchmarks/test_networks.py --sizes 1024x2048 --benchmark-json networks.json

Each way to compute it is held to the reference, then timed; one group of figures is one subject.
"""

from __future__ import annotations

import pytest

from benchmarks.measure import CLOCK, measure

PART = "networks"


@pytest.mark.benchmark(timer=CLOCK.read)
def test_network(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)
