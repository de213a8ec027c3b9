"""How candidates are timed: on which images, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fassd.models import clock
from fassd_kernels.tuning import trials
from fassd_kernels.tuning.calls import copy_of


def test_copies_keep_strides_and_padding() -> None:
    buffer = torch.arange(2 * 3 * 4 * 8.0).view(2, 3, 4, 8)
    padded = buffer.permute(0, 3, 1, 2)[:, 1:6]
    copy = copy_of(padded)
    assert torch.equal(copy, padded) and copy.stride() == padded.stride()
    assert copy.storage_offset() == 1 and copy.data_ptr() != padded.data_ptr()
    assert torch.equal(copy.as_strided((192,), (1,), 0), buffer.view(-1))


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay is the names of what was captured, each of which takes so many seconds."""
    order: list[str] = []

    def capture(repeats: trials.Repeats) -> tuple[Any, list[Any]]:
        if repeats[0]() == "refused":
            raise RuntimeError("not permitted while capturing\nmore")
        return SimpleNamespace(replay=lambda: [str(call()) for call in repeats]), []

    def sample(replay: Callable[[], list[str]], device: torch.device, replays: int = 1) -> float:
        names = replay()
        order.append(names[0])
        return replays * sum({"a": 1e-3, "b": 2e-3}[name] for name in names)

    monkeypatch.setattr(trials, "capture", capture)
    monkeypatch.setattr(clock, "sample", sample)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = trials.time_in_turns([[lambda name=name: name] * 2 for name in ("a", "refused", "b")])
    assert times == [
        pytest.approx(1e-3),
        "cannot be captured: RuntimeError: not permitted while capturing",
        pytest.approx(2e-3),
    ]
    rounds = clock.Sampling().rounds
    assert order[2:] == (["a", "b", "b", "a"] * rounds)[: 2 * rounds]
    assert trials.time_in_turns([]) == []
