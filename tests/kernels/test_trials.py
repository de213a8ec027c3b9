"""How candidates are timed: on which images, and in what order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fassd_kernels.tuning import trials
from fassd_kernels.tuning.calls import OperatorCall, copy_of


def test_copies_keep_strides_and_padding() -> None:
    buffer = torch.arange(2 * 3 * 4 * 8.0).view(2, 3, 4, 8)
    padded = buffer.permute(0, 3, 1, 2)[:, 1:6]
    copy = copy_of(padded)
    assert torch.equal(copy, padded) and copy.stride() == padded.stride()
    assert copy.storage_offset() == 1 and copy.data_ptr() != padded.data_ptr()
    assert torch.equal(copy.as_strided((192,), (1,), 0), buffer.view(-1))


def test_how_many_sets_of_images() -> None:
    call = OperatorCall("upsample", {"input": torch.empty(1, 8, 16, 16), "size": (32, 32)})  # 8 KB
    assert trials.repeats_for(call, 1 << 20) == 64
    assert trials.repeats_for(call, 16 << 10) == 3
    assert trials.repeats_for(call, 0) == 2


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is what was captured here, and takes so many seconds a call."""
    order: list[str] = []

    def capture(repeats: trials.Repeats) -> tuple[Any, list[Any]]:
        if repeats[0]() == "refused":
            raise RuntimeError("not permitted while capturing\nmore")
        return repeats, []

    def replay_seconds(graph: trials.Repeats, replays: int = 1) -> float:
        name = str(graph[0]())
        order.append(name)
        return replays * sum({"a": 1e-3, "b": 2e-3}[str(call())] for call in graph)

    monkeypatch.setattr(trials, "capture", capture)
    monkeypatch.setattr(trials, "replay_seconds", replay_seconds)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = trials.time_in_turns([[lambda name=name: name] * 2 for name in ("a", "refused", "b")])
    assert times == [
        pytest.approx(1e-3),
        "cannot be captured: RuntimeError: not permitted while capturing",
        pytest.approx(2e-3),
    ]
    assert order[2:] == (["a", "b", "b", "a"] * trials.ROUNDS)[: 2 * trials.ROUNDS]
    assert trials.time_in_turns([]) == []
