"""Runner: labels are the model's, and frames in flight do not mix.

Streams need a GPU; the order of what is queued on them does not. Here a queue does its work as late
or as early as the marks between queues allow, in many orders, so that a mark that is missing, or a
buffer that is used again too early, shows as wrong labels.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kernels.conftest import shake
from torch import Tensor, nn

import fassd
from fassd.inference.segmenter import Segmenter
from fassd.models.preprocess import normalize
from fassd_kernels import GraphRunner, Runner, accelerate
from fassd_kernels.runtime.queues import Queue
from fassd_kernels.runtime.stream import Slot

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
HEIGHT, WIDTH = 64, 96


def network(name: str = "fassd_net_l2", num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return shake(fassd.create_model(name, num_classes=num_classes)).eval()


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def run(model: nn.Module) -> Runner:
    return Runner(model, (HEIGHT, WIDTH), device="cpu")


@pytest.fixture(scope="module")
def labels(model: nn.Module) -> list[np.ndarray]:
    """What the plain network says of pictures 0 to 4."""
    segmenter = Segmenter(model, backend="reference")
    return [segmenter.predict(picture(seed)) for seed in range(5)]


# --- labels ---------------------------------------------------------------------------------------


def test_labels_are_the_segmenters(run: Runner, labels: list[np.ndarray]) -> None:
    assert len(np.unique(labels[0])) > 2  # random weights do tell pixels apart
    for seed, expected in enumerate(labels):
        result = run(picture(seed))
        assert result.dtype == np.uint8 and result.shape == (HEIGHT, WIDTH)
        assert (result == expected).mean() >= 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_labels_are_the_accelerated_networks(model: nn.Module, dtype: torch.dtype) -> None:
    """Bit by bit: the input is computed in float64 and rounded once."""
    run = Runner(model, (HEIGHT, WIDTH), dtype, device="cpu")
    fast = accelerate(model, dtype=dtype, output="labels")
    x = torch.from_numpy(normalize(picture())).double()
    mean, std = (torch.tensor(v).double().mul(255).view(3, 1, 1) for v in (MEAN, STD))
    x = (torch.from_numpy(picture()[..., ::-1].copy()).permute(2, 0, 1).double() - mean) / std
    x = x.to(dtype)[None].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = fast(x)[0]
    assert torch.equal(run(torch.from_numpy(picture())), expected)


MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)  # DESIGN section 3


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_an_accelerated_network_is_used_as_it_is(model: nn.Module, output: str) -> None:
    fast = accelerate(model, output=output)
    run = Runner(fast, (HEIGHT, WIDTH), torch.float32, "cpu")
    assert run.network is fast and fast.output == output
    before = run(picture())
    with torch.no_grad():
        fast.finalConv.bias.add_(torch.tensor([1e4, 0, 0, 0, 0]))
    after = run(picture())
    assert not np.array_equal(after, before) and (after == 0).all()


def test_a_plain_network_stays_untouched(model: nn.Module) -> None:
    plain = network().train()
    run = Runner(plain, (HEIGHT, WIDTH), torch.float16, "cpu")
    assert plain.training and plain.finalConv.weight.dtype == torch.float32
    assert not run.network.training and run.network.finalConv.weight.dtype == torch.float16
    assert type(plain).__name__ == "FASSDNet" and type(run.network).__name__ == "FusedNetwork"


class Tiny(nn.Module):
    """Logits at a glance, for what does not depend on the network."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def tiny_labels(frame: np.ndarray, tiny: nn.Module | None = None) -> np.ndarray:
    x = torch.from_numpy(normalize(frame))[None]
    with torch.no_grad():
        return (tiny or Tiny())(x).argmax(1)[0].to(torch.uint8).numpy()


nothing_swapped = pytest.mark.filterwarnings("ignore:accelerate.*nothing was swapped")


@nothing_swapped
def test_any_network_of_logits() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    assert np.array_equal(run(picture(0, 4, 6)), tiny_labels(picture(0, 4, 6)))


@nothing_swapped
@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Tiny(257), r"gives float32 of shape \(1, 257, 4, 6\); expected .* at most 256 classes"),
        (nn.AvgPool2d(2), r"gives float32 of shape \(1, 3, 2, 3\); expected uint8 labels"),
    ],
)
def test_what_is_not_labels(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Runner(network, (4, 6), device="cpu")(picture(0, 4, 6))


@nothing_swapped
def test_a_hook_sees_the_network_called() -> None:
    fast = accelerate(network())
    seen = []
    fast.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    Runner(fast, (HEIGHT, WIDTH), device="cpu")(picture())
    assert seen == [(1, 5, HEIGHT, WIDTH)]


@nothing_swapped
def test_batches() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu", batch=2)
    frames = np.stack([picture(seed, 4, 6) for seed in (1, 2)])
    expected = np.stack([tiny_labels(frame) for frame in frames])
    assert np.array_equal(run(frames), expected) and expected.shape == (2, 4, 6)
    (result,) = run.stream([frames])
    assert np.array_equal(result, expected)
    assert run.measure(frames=4).frames == 4


# --- frames ---------------------------------------------------------------------------------------


@nothing_swapped
def test_frames_of_any_strides() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    large = picture(3, 8, 6)
    read_only = picture(4, 4, 6)
    read_only.flags.writeable = False
    for frame in (
        large[::2],
        large[::-2],
        large[:4, :, ::-1],
        picture(4, 6, 4).transpose(1, 0, 2),
        read_only,
        np.broadcast_to(picture(5, 4, 6)[:1, :1], (4, 6, 3)),
    ):
        expected = tiny_labels(np.ascontiguousarray(frame))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(run(frame), expected)
        if min(frame.strides) >= 0 and frame.flags.writeable:
            result = run(torch.from_numpy(frame))
            assert isinstance(result, Tensor) and np.array_equal(result.numpy(), expected)


BAD_FRAMES = {
    "floats": (np.zeros((4, 6, 3), np.float32), TypeError, "is float32 of shape"),
    "wide integers": (torch.zeros(4, 6, 3, dtype=torch.int16), TypeError, "is int16 of shape"),
    "list": ([[0]], TypeError, "is a list"),
    "small": (np.zeros((4, 5, 3), np.uint8), ValueError, r"is uint8 of shape \(4, 5, 3\)"),
    "channels first": (np.zeros((3, 4, 6), np.uint8), ValueError, r"is uint8 of shape \(3, 4, 6\)"),
    "alpha": (np.zeros((4, 6, 4), np.uint8), ValueError, r"is uint8 of shape \(4, 6, 4\)"),
    "batch": (np.zeros((1, 4, 6, 3), np.uint8), ValueError, r"is uint8 of shape \(1, 4, 6, 3\)"),
    "elsewhere": (
        torch.zeros(4, 6, 3, dtype=torch.uint8, device="meta"),
        ValueError,
        r"is uint8 of shape \(4, 6, 3\) on meta",
    ),
}


@nothing_swapped
@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames(name: str) -> None:
    frame, error, said = BAD_FRAMES[name]
    run = Runner(Tiny(), (4, 6), device="cpu")
    accepted = r"expected uint8 RGB of shape \(4, 6, 3\), a NumPy array or a tensor on the CPU"
    with pytest.raises(error, match=f"the frame {said}.*; {accepted}"):
        run(frame)
    good = picture(1, 4, 6)
    assert np.array_equal(run(good), tiny_labels(good))  # nothing is left of it


def test_arguments() -> None:
    with pytest.raises(TypeError, match="model is a int"):
        Runner(3, (4, 6))
    with pytest.raises(TypeError, match=r"dtype is torch\.int8; expected None or one of"):
        Runner(Tiny(), (4, 6), torch.int8)
    for size in (4, (4,), (4, 0), (4, 6.0)):
        with pytest.raises(ValueError, match=r"size is .*; expected \(height, width\)"):
            Runner(Tiny(), size)
    for batch in (0, 1.5):
        with pytest.raises(ValueError, match=r"batch is .*; expected None or a number"):
            Runner(Tiny(), (4, 6), batch=batch)
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used here"):
        Runner(Tiny(), (4, 6), device="cuda:77")
    with pytest.raises(ValueError, match="device is 'meta'; expected cpu or cuda"):
        Runner(Tiny(), (4, 6), device="meta")
    with pytest.raises(ValueError, match="the model has 257 classes"):
        Runner(fassd.create_model("fassd_net_l2", num_classes=257), (64, 64))
    fast = accelerate(network())
    with pytest.raises(ValueError, match=r"dtype is torch\.float16, .* computes in torch\.float32"):
        Runner(fast, (64, 64), torch.float16, "cpu")
    with pytest.raises(ValueError, match="accelerated model is in training mode"):
        Runner(fast.train(), (64, 64), device="cpu")


@nothing_swapped
def test_training_mode_is_no_way_to_get_labels() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    run.network.train()
    with pytest.raises(RuntimeError, match="the network is in training mode"):
        run(picture(0, 4, 6))
    run.network.eval()
    assert np.array_equal(run(picture(0, 4, 6)), tiny_labels(picture(0, 4, 6)))


@nothing_swapped
def test_the_callers_modes_do_not_matter() -> None:
    frame = picture(0, 4, 6)
    expected = torch.from_numpy(tiny_labels(frame))
    with torch.inference_mode():
        run = Runner(Tiny(), (4, 6), device="cpu")
        first = run(torch.from_numpy(frame))
    with torch.autocast("cpu", torch.bfloat16):
        second = run(torch.from_numpy(frame))
    for result in (first, second, run(torch.from_numpy(frame))):
        assert torch.equal(result, expected) and not result.is_inference()


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_gives_the_labels_in_order(run: Runner, labels: list[np.ndarray]) -> None:
    results = list(run.stream(picture(seed) for seed in range(5)))
    assert len(results) == 5
    for result, expected in zip(results, labels, strict=True):
        assert (result == expected).mean() >= 0.999


@nothing_swapped
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_streams(count: int) -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    frames = [picture(seed, 4, 6) for seed in range(count)]
    results = list(run.stream(frames))
    assert len(results) == count
    assert all(map(np.array_equal, results, map(tiny_labels, frames)))


@nothing_swapped
def test_labels_come_behind_the_next_frame() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for seed in range(4):
            taken.append(seed)
            yield picture(seed, 4, 6)

    stream = run.stream(camera())
    assert taken == []
    for number, result in enumerate(stream):
        assert taken[-1] == min(number + 1, 3)
        assert np.array_equal(result, tiny_labels(picture(number, 4, 6)))


@nothing_swapped
def test_a_camera_may_reuse_its_buffer_and_the_caller_keeps_his_labels() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    frames = [picture(seed, 4, 6) for seed in range(5)]

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty((4, 6, 3), np.uint8)
        for frame in frames:
            buffer[:] = frame
            yield buffer

    results = list(run.stream(camera()))
    run(frames[0])
    assert all(map(np.array_equal, results, map(tiny_labels, frames)))


@nothing_swapped
@pytest.mark.parametrize("bad", ["camera", "frame"])
def test_an_error_comes_behind_the_labels_before_it(bad: str) -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")

    def camera() -> Iterator[Any]:
        yield picture(0, 4, 6)
        yield torch.from_numpy(picture(1, 4, 6))
        if bad == "camera":
            raise OSError("the cable is out")
        yield picture(1, 3, 3)
        yield picture(2, 4, 6)

    stream = run.stream(camera())
    assert np.array_equal(next(stream), tiny_labels(picture(0, 4, 6)))
    second = next(stream)
    assert isinstance(second, Tensor)
    assert np.array_equal(second.numpy(), tiny_labels(picture(1, 4, 6)))
    error, said = {"camera": (OSError, "cable"), "frame": (ValueError, "of shape")}[bad]
    with pytest.raises(error, match=said):
        next(stream)
    assert list(stream) == []
    assert np.array_equal(run(picture(3, 4, 6)), tiny_labels(picture(3, 4, 6)))


@nothing_swapped
def test_frames_that_are_none() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        Runner(Tiny(), (4, 6), device="cpu").stream(3)


@nothing_swapped
def test_calls_and_streams_within_a_stream() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    frames = [picture(seed, 4, 6) for seed in range(6)]
    for number, (a, b) in enumerate(
        zip(run.stream(frames), run.stream(reversed(frames)), strict=True)
    ):
        assert np.array_equal(run(frames[2]), tiny_labels(frames[2]))
        assert np.array_equal(a, tiny_labels(frames[number]))
        assert np.array_equal(b, tiny_labels(frames[5 - number]))
    assert len(run._free) == 5


@nothing_swapped
def test_threads_do_not_mix_their_frames() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu")
    wrong: list[int] = []
    frames = [[picture(100 * thread + i, 4, 6) for i in range(20)] for thread in range(4)]
    # Before the threads, which have one random generator for the weights.
    right = [[tiny_labels(frame) for frame in own] for own in frames]

    def work(index: int) -> None:
        for result, expected in zip(run.stream(frames[index]), right[index], strict=True):
            if not np.array_equal(result, expected):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_measure(run: Runner) -> None:
    speed = run.measure(frames=3)
    assert speed.frames == 3 and 0 < speed.latency_s < 10 and 0 < speed.fps < 1e4
    assert run.measure(seconds=1e-6).frames == 1
    with pytest.raises(ValueError, match="seconds is 0; expected more than 0"):
        run.measure(0)
    with pytest.raises(ValueError, match="frames is 0; expected None or at least 1"):
        run.measure(frames=0)


def test_repr(run: Runner) -> None:
    assert repr(run) == "Runner(FusedNetwork, size=(64, 96), device=cpu)"


# --- queues that take their time ------------------------------------------------------------------


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


class SlowQueue:
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

    def follow(self) -> None:
        pass

    def synchronize(self) -> None:
        while self.waiting:
            assert self.stage.step(), "everything waits for each other"


class Replay:
    """A graph on the CPU: its buffers stay, and all replays share them."""

    captures = 0

    def __init__(self, model: nn.Module, x: Tensor, pool: object) -> None:
        Replay.captures += 1
        self.model, self.input = model, x.clone()
        self.output = model(self.input).clone()

    def replay(self) -> None:
        self.output.copy_(self.model(self.input))


class OnCpu(GraphRunner):
    recording = Replay

    def takes(self, x: Tensor) -> bool:
        return True


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


# --- on a GPU -------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu(model: nn.Module, labels: list[np.ndarray], dtype: torch.dtype) -> None:
    """The CPU's labels, through a graph, also beside work on another stream."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Runner(model, (HEIGHT, WIDTH), dtype)
        assert run.device.type == "cuda" and next(model.parameters()).device.type == "cpu"
        with torch.cuda.stream(torch.cuda.Stream()):
            single = [run(picture(seed)) for seed in range(5)]
        streamed = list(run.stream(picture(seed) for seed in range(5)))
    assert run.graphs is not None and run.graphs.shapes == [(1, HEIGHT, WIDTH, 3)]
    at_least = 0.999 if dtype == torch.float32 else 0.995  # random weights: near ties
    for a, b, expected in zip(single, streamed, labels, strict=True):
        assert np.array_equal(a, b) and (a == expected).mean() >= at_least
    slot = run._free[0]
    assert slot.host.is_pinned() and slot.result.is_pinned()
    speed = run.measure(frames=20)
    assert speed.fps > 0 and speed.latency_s > 0


@on_gpu
def test_on_a_gpu_large_frames_in_flight_do_not_mix() -> None:
    """Copies that take long enough to meet the graph of the frame before."""
    run = Runner(network(), (512, 1024), torch.float16)
    frames = [picture(seed, 512, 1024) for seed in range(4)]
    right = [run(frame) for frame in frames]
    order = [random.Random(0).randrange(4) for _ in range(100)]
    for index, result in zip(order, run.stream(frames[i] for i in order), strict=True):
        assert np.array_equal(result, right[index])


@on_gpu
def test_on_a_gpu_edits_are_seen() -> None:
    fast = accelerate(network().cuda(), dtype=torch.float16)
    run = Runner(fast, (HEIGHT, WIDTH))
    before = run(picture())
    with torch.no_grad():
        fast.finalConv.bias.add_(torch.tensor([1e4, 0, 0, 0, 0], device="cuda"))
    assert run.network is fast and not np.array_equal(run(picture()), before)
    assert (run(picture()) == 0).all()
    stream = run.stream(picture(seed) for seed in range(9))
    next(stream)
    stream.close()
    assert (run(picture()) == 0).all()
    with pytest.raises(ValueError, match="on cuda:0; expected uint8 RGB"):
        run(torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8, device="cuda"))


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    run = Runner(network(), (HEIGHT, WIDTH), torch.float16, device="cuda:1")
    here = Runner(network(), (HEIGHT, WIDTH), torch.float16, device="cuda:0")
    for seed, labels in enumerate(run.stream(picture(seed) for seed in range(4))):
        assert np.array_equal(labels, here(picture(seed)))
