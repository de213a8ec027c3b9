"""Runner: labels are the model's, and frames in flight do not mix.

How the queues of a stream depend on each other is tested in ``test_queues.py``.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from kernels.conftest import shake
from kernels.stand_ins import Tiny, picture, tiny_labels
from torch import Tensor, nn

import fassd
from fassd.inference.segmenter import Segmenter
from fassd.models.preprocess import normalize
from fassd_kernels import Runner, accelerate

pytestmark = pytest.mark.filterwarnings("ignore:accelerate.*nothing was swapped")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
HEIGHT, WIDTH = 64, 96


def network(name: str = "fassd_net_l2", num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return shake(fassd.create_model(name, num_classes=num_classes)).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def run(model: nn.Module) -> Runner:
    return Runner(model, (HEIGHT, WIDTH), device="cpu")


@pytest.fixture
def tiny() -> Runner:
    return Runner(Tiny(), (4, 6), device="cpu")


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


MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)


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


def test_any_network_of_logits(tiny: Runner) -> None:
    assert np.array_equal(tiny(picture(0, 4, 6)), tiny_labels(picture(0, 4, 6)))


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


def test_a_hook_sees_the_network_called() -> None:
    fast = accelerate(network())
    seen = []
    fast.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    Runner(fast, (HEIGHT, WIDTH), device="cpu")(picture())
    assert seen == [(1, 5, HEIGHT, WIDTH)]


def test_batches() -> None:
    run = Runner(Tiny(), (4, 6), device="cpu", batch=2)
    frames = np.stack([picture(seed, 4, 6) for seed in (1, 2)])
    expected = np.stack([tiny_labels(frame) for frame in frames])
    assert np.array_equal(run(frames), expected) and expected.shape == (2, 4, 6)
    (result,) = run.stream([frames])
    assert np.array_equal(result, expected)
    assert run.measure(frames=4).frames == 4


# --- frames ---------------------------------------------------------------------------------------


def test_frames_of_any_strides(tiny: Runner) -> None:
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
            assert np.array_equal(tiny(frame), expected)
        if min(frame.strides) >= 0 and frame.flags.writeable:
            result = tiny(torch.from_numpy(frame))
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


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames(name: str, tiny: Runner) -> None:
    frame, error, said = BAD_FRAMES[name]
    accepted = r"expected uint8 RGB of shape \(4, 6, 3\), a NumPy array or a tensor on the CPU"
    with pytest.raises(error, match=f"the frame {said}.*; {accepted}"):
        tiny(frame)
    good = picture(1, 4, 6)
    assert np.array_equal(tiny(good), tiny_labels(good))  # nothing is left of it


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


def test_training_mode_is_no_way_to_get_labels(tiny: Runner) -> None:
    tiny.network.train()
    with pytest.raises(RuntimeError, match="the network is in training mode"):
        tiny(picture(0, 4, 6))
    tiny.network.eval()
    assert np.array_equal(tiny(picture(0, 4, 6)), tiny_labels(picture(0, 4, 6)))


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


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_streams(count: int, tiny: Runner) -> None:
    frames = [picture(seed, 4, 6) for seed in range(count)]
    results = list(tiny.stream(frames))
    assert len(results) == count
    assert all(map(np.array_equal, results, map(tiny_labels, frames)))


def test_labels_come_behind_the_next_frame(tiny: Runner) -> None:
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for seed in range(4):
            taken.append(seed)
            yield picture(seed, 4, 6)

    stream = tiny.stream(camera())
    assert taken == []
    for number, result in enumerate(stream):
        assert taken[-1] == min(number + 1, 3)
        assert np.array_equal(result, tiny_labels(picture(number, 4, 6)))


def test_a_camera_may_reuse_its_buffer_and_the_caller_keeps_his_labels(tiny: Runner) -> None:
    frames = [picture(seed, 4, 6) for seed in range(5)]

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty((4, 6, 3), np.uint8)
        for frame in frames:
            buffer[:] = frame
            yield buffer

    results = list(tiny.stream(camera()))
    tiny(frames[0])
    assert all(map(np.array_equal, results, map(tiny_labels, frames)))


@pytest.mark.parametrize("bad", ["camera", "frame"])
def test_an_error_comes_behind_the_labels_before_it(bad: str, tiny: Runner) -> None:

    def camera() -> Iterator[Any]:
        yield picture(0, 4, 6)
        yield torch.from_numpy(picture(1, 4, 6))
        if bad == "camera":
            raise OSError("the cable is out")
        yield picture(1, 3, 3)
        yield picture(2, 4, 6)

    stream = tiny.stream(camera())
    assert np.array_equal(next(stream), tiny_labels(picture(0, 4, 6)))
    second = next(stream)
    assert isinstance(second, Tensor)
    assert np.array_equal(second.numpy(), tiny_labels(picture(1, 4, 6)))
    error, said = {"camera": (OSError, "cable"), "frame": (ValueError, "of shape")}[bad]
    with pytest.raises(error, match=said):
        next(stream)
    assert list(stream) == []
    assert np.array_equal(tiny(picture(3, 4, 6)), tiny_labels(picture(3, 4, 6)))


def test_frames_that_are_none() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        Runner(Tiny(), (4, 6), device="cpu").stream(3)


def test_calls_and_streams_within_a_stream(tiny: Runner) -> None:
    frames = [picture(seed, 4, 6) for seed in range(6)]
    for number, (a, b) in enumerate(
        zip(tiny.stream(frames), tiny.stream(reversed(frames)), strict=True)
    ):
        assert np.array_equal(tiny(frames[2]), tiny_labels(frames[2]))
        assert np.array_equal(a, tiny_labels(frames[number]))
        assert np.array_equal(b, tiny_labels(frames[5 - number]))
    assert len(tiny._free) == 5


def test_threads_do_not_mix_their_frames(tiny: Runner) -> None:
    frames = [[picture(100 * thread + i, 4, 6) for i in range(20)] for thread in range(4)]
    # Before the threads, which have one random generator for the weights.
    right = [[tiny_labels(frame) for frame in own] for own in frames]

    def work(index: int) -> None:
        results = list(tiny.stream(frames[index]))
        assert len(results) == 20 and all(map(np.array_equal, results, right[index]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


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
