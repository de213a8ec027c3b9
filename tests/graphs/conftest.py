"""Each test captures anew, and nothing is timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fassd_kernels.graphs import steps


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which way a convolution is computed, which is measured otherwise."""
    form = getattr(request, "param", 0)
    monkeypatch.setattr(steps, "fastest_way", lambda ways: range(len(ways))[form])
    monkeypatch.setattr(steps, "fastest", {})
