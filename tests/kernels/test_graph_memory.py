"""GraphRunner: whose memory a graph writes and reads, while it runs and when it is dropped.

What stands for a GPU here has its way of sharing and freeing memory, and does nothing at once.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from kernels.conftest import shake
from kernels.stand_ins import OnCpu
from torch import Tensor, nn

import fassd
from fassd_kernels import accelerate, modules
from fassd_kernels.modules import Fused

SHAPES = ((1, 1, 2, 12), (1, 1, 4, 6), (1, 1, 8, 3))


def pictures(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.full(shape, float(index)) for index, shape in enumerate(shapes, 1)]


# --- a pool of memory -----------------------------------------------------------------------------


class Pool:
    """Blocks of memory: what a capture has given back goes to the next that asks, as PyTorch's."""

    made: ClassVar[list[Pool]] = []

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        Pool.made.append(self)

    def take(self, elements: int) -> Tensor:
        return self.free.pop() if self.free else torch.empty(elements)


class Pooled:
    """A graph that computes one tensor before its output, all in a pool."""

    def __init__(self, model: nn.Module, x: Tensor, pool: Pool) -> None:
        self.model, self.input = model, x.clone()
        self.between = pool.take(x.numel())
        self.output = pool.take(x.numel()).view(x.shape)
        pool.free.append(self.between)

    def replay(self) -> None:
        self.between.fill_(torch.nan)
        self.output.copy_(self.model(self.input))


class InPools(OnCpu):
    recording = Pooled
    new_pool = Pool


@pytest.mark.parametrize("copied", [True, False])
def test_a_result_outlives_calls_of_other_shapes(copied: bool) -> None:
    Pool.made.clear()
    run = InPools(nn.Identity().eval(), copy_output=copied)
    first, second, third = pictures(*SHAPES)
    run(first)
    kept = [run(second), run(third)]
    run(first)
    assert torch.equal(kept[0], second) and torch.equal(kept[1], third)
    assert len(Pool.made) == (1 if copied else 3)


# --- graphs that run on ---------------------------------------------------------------------------


class Gpu:
    """What was launched, and reads its memory until somebody waits."""

    running: ClassVar[list[weakref.ref[Any]]] = []
    freed = 0
    ended = 0  # calls
    seen: ClassVar[list[int]] = []  # how many calls had ended where another began

    @classmethod
    def launch(cls, *memory: Any) -> None:
        for each in memory:
            cls.running.append(weakref.ref(each, cls.note))

    @classmethod
    def note(cls, reference: weakref.ref[Any]) -> None:
        cls.freed += any(reference is other for other in cls.running)


class Launched:
    def __init__(self, model: nn.Module, x: Tensor, pool: object) -> None:
        self.model, self.input, self.output = model, x.clone(), model(x).clone()

    def replay(self) -> None:
        packed = [part._packed for part in fused_parts(self.model)]
        weights = [cached.packed["packed"][0] for cached in packed if cached is not None]
        Gpu.launch(self.input, self.output, *weights)


class OnGpu:
    """The turns of calls that go on behind their return; an event of PyTorch's, in a word."""

    def __init__(self) -> None:
        self.before = 0

    def begin(self) -> None:
        Gpu.seen.append(self.before)

    def end(self) -> None:
        Gpu.ended += 1
        self.before = Gpu.ended

    def wait(self) -> None:
        Gpu.running.clear()


class Behind(OnCpu):
    recording = Launched
    turns = OnGpu


@pytest.fixture(autouse=True)
def idle() -> Iterator[None]:
    Gpu.running.clear()
    Gpu.seen.clear()
    Gpu.freed = Gpu.ended = 0
    yield
    Gpu.running.clear()


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1)


def fused() -> nn.Module:
    torch.manual_seed(0)
    model = shake(fassd.create_model("fassd_net_l2", num_classes=3))
    return accelerate(model.eval().requires_grad_(False))


def fused_parts(model: nn.Module) -> list[Fused]:
    return [part for part in model.modules() if isinstance(part, Fused)]


DROPS: dict[str, Callable[[Behind], object]] = {
    "forget": Behind.forget,
    "reset": Behind.reset,
    "other weights": lambda run: (edit(run.model), run(torch.ones(1, 3, 64, 64))),
    "eviction": lambda run: run(torch.ones(1, 3, 64, 96)),
}


@pytest.mark.parametrize("drop", DROPS)
def test_what_a_graph_reads_is_freed_when_it_has_ended(drop: str) -> None:
    run = Behind(fused(), max_shapes=1)
    run(torch.ones(1, 3, 64, 64))
    assert len(Gpu.running) > 10
    DROPS[drop](run)
    for part in fused_parts(run.model):
        part.repack()
    gc.collect()
    assert Gpu.freed == 0


def test_what_a_graph_reads_outlives_its_runner() -> None:
    run = Behind(nn.Identity().eval())
    run(torch.ones(1, 3, 8, 8))
    assert len(Gpu.running) == 2
    del run
    gc.collect()
    assert Gpu.freed == 0 and not Gpu.running


def test_a_call_waits_for_that_of_a_graph_that_was_dropped() -> None:
    """They share memory."""
    run = Behind(nn.Identity().eval(), max_shapes=1)
    for x in pictures(*SHAPES):
        run(x)
    run.reset()
    run(pictures(SHAPES[0])[0])
    assert Gpu.seen == [0, 1, 2, 3]


def test_what_a_capture_packs_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the graph's memory, and is there after its first replay only."""
    model, x = fused(), torch.ones(1, 3, 64, 64)
    monkeypatch.setattr(modules.fused, "are_on_gpu", bool)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    model(x)
    assert not any(part._packed for part in fused_parts(model))
    monkeypatch.setattr(modules.fused, "are_on_gpu", lambda tensors: False)
    model(x)
    assert all(part._packed for part in fused_parts(model))
