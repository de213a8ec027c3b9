"""Runner: frames in flight do not mix, whatever its queues do first.

Streams need a GPU; the order of what is queued on them does not. Here a queue does its work as late
or as early as the marks between queues allow, in many orders, so that a mark that is missing, or a
buffer that is used again too early, shows as wrong labels.
"""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kernels.stand_ins import OnCpu, Replay, Tiny, picture, tiny_labels
from torch import nn

from fassd_kernels import GraphRunner, Runner
from fassd_kernels.runtime.queues import Queue
from fassd_kernels.runtime.stream import Slot


class Stage:
    """Queues that go on in an order of their own, as far as their marks let them.

    Args:
        pick: chooses whose turn it is.
        eager: the likeliness that one goes on at all, each time that something is queued.
    """

    def __init__(
        self, pick: Callable[[list[SlowQueue]], SlowQueue], eager: Callable[[], bool]
    ) -> None:
        self.pick, self.eager = pick, eager
        self.queues: list[SlowQueue] = []

    def step(self) -> bool:
        ready = [queue for queue in self.queues if queue.ready()]
        if ready:
            self.pick(ready).step()
        return bool(ready)

    def idle(self) -> None:
        while self.eager() and self.step():
            pass


class SlowMark:
    def __init__(self, stage: Stage) -> None:
        self.stage, self.reached = stage, False

    def synchronize(self) -> None:
        while not self.reached:
            assert self.stage.step(), "everything waits for each other"


class SlowQueue(Queue):
    """A queue whose work is done when its stage comes to it; `deaf` ones pass marks by."""

    def __init__(self, stage: Stage, deaf: bool = False) -> None:
        self.stage, self.deaf = stage, deaf
        self.waiting: deque[tuple[str, Any]] = deque()
        stage.queues.append(self)

    def ready(self) -> bool:
        if not self.waiting:
            return False
        kind, what = self.waiting[0]
        return kind != "wait" or what.reached or self.deaf

    def step(self) -> None:
        kind, what = self.waiting.popleft()
        if kind == "run":
            what()
        elif kind == "mark":
            what.reached = True

    def add(self, kind: str, what: Any) -> None:
        self.waiting.append((kind, what))
        self.stage.idle()

    def run(self, work: Callable[[], object]) -> None:
        self.add("run", work)

    def record(self) -> SlowMark:
        mark = SlowMark(self.stage)
        self.add("mark", mark)
        return mark

    def wait(self, mark: SlowMark) -> None:
        self.add("wait", mark)

    def synchronize(self) -> None:
        while self.waiting:
            assert self.stage.step(), "everything waits for each other"


class Staged(Runner):
    """A runner of the tiny network on slow queues; `deaf` names one that does not wait."""

    def __init__(self, stage: Stage, deaf: int | None = None) -> None:
        self.stage, self.deaf, self.made = stage, deaf, 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="accelerate.*nothing was swapped")
            super().__init__(Tiny(), (4, 6), device="cpu")

    def make_queue(self) -> Queue:
        self.made += 1
        return SlowQueue(self.stage, deaf=self.made - 1 == self.deaf)

    def make_graphs(self, network: nn.Module) -> GraphRunner:
        return OnCpu(network, copy_output=False)

    def make_slot(self) -> Slot:
        slot = super().make_slot()
        for buffer in (slot.host, slot.frame, slot.labels, slot.result):
            buffer.fill_(255)  # no label
        return slot


class NeverWaiting(Staged):
    def finish(self, slot: Slot) -> Any:
        slot.done = SlowMark(self.stage)
        slot.done.reached = True
        return super().finish(slot)


class OneSlot(Staged):
    """Uses one slot for all frames in flight."""

    def free_slot(self) -> Slot:
        self.only = getattr(self, "only", None) or self.make_slot()
        return self.only


def stages() -> Iterator[Stage]:
    """Work done as late as can be, each queue in turn first; and then at random."""
    for first in range(3):
        for eager in (False, True):
            order = [first, (first + 1) % 3, (first + 2) % 3]
            stage = Stage(lambda ready: ready[0], lambda eager=eager: eager)
            stage.pick = lambda ready, stage=stage, order=order: min(
                ready, key=lambda queue: order[stage.queues.index(queue)]
            )
            yield stage
    for seed in range(30):
        dice = random.Random(seed)
        yield Stage(dice.choice, lambda dice=dice: dice.random() < 0.6)


def wrong_frames(run: Runner) -> int:
    """How many of some frames in a row, and of single ones, come out with the wrong labels."""
    frames = [picture(seed, 4, 6) for seed in range(7)]
    results = [*run.stream(frames), run(frames[0])]
    frames.append(frames[0])
    expected = map(tiny_labels, frames)
    return sum(not np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_frames_do_not_mix_whatever_the_queues_do_first() -> None:
    for stage in stages():
        assert wrong_frames(Staged(stage)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda stage: Staged(stage, deaf=1),
        lambda stage: Staged(stage, deaf=2),
        NeverWaiting,
        OneSlot,
    ],
    ids=["the network does not wait", "the labels do not wait", "nobody waits", "one slot"],
)
def test_the_stage_would_show_it(make: Callable[[Stage], Runner]) -> None:
    """That the test above can fail: each of these mistakes shows on some stage."""
    assert any(wrong_frames(make(stage)) for stage in stages())


@pytest.mark.parametrize("first", ["upload", "download"])
def test_two_frames_are_on_their_way_at_once(first: str) -> None:
    """The next frame may go up before the network sees the one before, and need not do so."""
    stage = Stage(lambda ready: ready[0 if first == "upload" else -1], lambda: False)
    run = Staged(stage)
    done: list[str] = []
    for queue, name in zip(stage.queues, ("upload", "network", "download"), strict=True):
        real = queue.run
        queue.run = lambda work, real=real, name=name: real(lambda: [done.append(name), work()])
    stream = run.stream(picture(seed, 4, 6) for seed in range(3))
    next(stream)
    if first == "upload":
        assert done[:3] == ["upload", "upload", "network"]
    else:
        assert done == ["upload", "network", "download"]
        assert all(queue.waiting for queue in stage.queues)
    stream.close()


def test_closed_early_nothing_is_left_in_flight() -> None:
    for stage in stages():
        run = Staged(stage)
        stream = run.stream(picture(seed, 4, 6) for seed in range(9))
        for number in range(3):
            assert np.array_equal(next(stream), tiny_labels(picture(number, 4, 6)))
        stream.close()
        assert not any(queue.waiting for queue in stage.queues)
        assert len(run._free) == 2 and not any(slot.busy for slot in run._free)
        assert wrong_frames(run) == 0


def test_a_failure_on_the_way_leaves_nothing_in_flight() -> None:
    stage = Stage(lambda ready: ready[0], lambda: False)
    run = Staged(stage)
    real = run._work.run
    calls = iter([real, real, lambda work: (_ for _ in ()).throw(RuntimeError("out of memory"))])
    run._work.run = lambda work: next(calls, real)(work)
    results = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for labels in run.stream(picture(seed, 4, 6) for seed in range(5)):
            results.append(labels)
    assert all(map(np.array_equal, results, [tiny_labels(picture(s, 4, 6)) for s in range(2)]))
    assert len(results) == 2 and not any(queue.waiting for queue in stage.queues)
    assert wrong_frames(run) == 0


def test_one_graph_serves_both_slots_until_weights_change() -> None:
    Replay.captures = 0
    stage = next(stages())
    run = Staged(stage)
    assert wrong_frames(run) == 0
    assert Replay.captures == 1 and run.graphs.shapes == [(1, 4, 6, 3)]
    with torch.no_grad():
        run.network.conv.bias.add_(torch.arange(7.0))
    frame = picture(0, 4, 6)
    result = run(frame)
    assert np.array_equal(result, tiny_labels(frame, run.network))
    assert not np.array_equal(result, tiny_labels(frame)) and Replay.captures == 2
    run.reset()
    run(frame)
    assert Replay.captures == 3
