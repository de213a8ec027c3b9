"""From camera to labels: copies in, network and copies out overlap for consecutive frames."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import operator
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fassd.models.clock import timed
from fassd.models.device import pick_device
from fassd.models.layers import logits_of
from fassd.models.preprocess import preprocessing_of
from fassd_kernels import ops
from fassd_kernels.accelerate import accelerate
from fassd_kernels.backends import AUTO, meant
from fassd_kernels.checks import FLOATING, MAX_LABELS
from fassd_kernels.modules import Fused, FusedNetwork
from fassd_kernels.modules.snapshot import has_hooks
from fassd_kernels.runtime.graph import GraphRunner
from fassd_kernels.runtime.queues import CudaQueue, Queue

Frame: TypeAlias = npt.NDArray[np.uint8] | Tensor
Labels: TypeAlias = npt.NDArray[np.uint8] | Tensor

WARM_UP = 3  # frames before a measurement, which capture the graph and allocate memory
LATENCIES = 20  # maximum number of frames whose latency is measured


class CameraNetwork(nn.Module):
    """A network with its input and output processing: frames in, labels out.

    Shape: uint8 RGB (N, H, W, 3), or of the network's bands, to uint8 labels (N, H, W).

    Args:
        network: network that takes pictures normalised as :func:`fassd.models.preprocessing_of`
            says, usually BGR (N, 3, H, W), in the type of its parameters; and returns logits (N,
            classes, H, W), alone or in a structure that :func:`fassd.models.layers.logits_of`
            accepts, or labels, or has a ``predict_labels`` that returns these.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing_of(network)
        for name in ("mean", "std"):
            levels = torch.tensor(getattr(self.preprocessing, f"{name}_levels"))
            where = next(network.parameters(), levels).device
            self.register_buffer(name, levels.to(where)[:, None, None], persistent=False)
        if getattr(network, "output", None) == "labels+confidence":
            raise ValueError("output is labels+confidence; Runner returns labels alone")
        self.training = False

    def forward(self, frames: Tensor) -> Tensor:
        first = next(self.network.parameters(), None)
        dtype = torch.float32 if first is None else first.dtype
        mean, std = self.preprocessing.mean_levels, self.preprocessing.std_levels
        colors = self.preprocessing.bands is None
        if colors and isinstance(self.network, FusedNetwork) and not has_hooks(self.network):
            return self.network.label_pictures(frames, mean, std)
        if colors:
            if self.preprocessing.channels == "RGB":  # the operator turns pictures around
                frames = frames.flip(3)
            plain = meant(AUTO) == "reference"
            normalize = ops.operator("normalize", "reference") if plain else ops.normalize
            x = normalize(frames, mean=mean, std=std, dtype=dtype)
        else:  # which is of three colours
            x = ((frames.permute(0, 3, 1, 2) - self.mean) / self.std).to(dtype)
        direct = getattr(self.network, "predict_labels", None)
        # Hooks must see a call of the network itself.
        result = self.network(x) if direct is None or has_hooks(self.network) else direct(x)
        result = result if isinstance(result, Tensor) else logits_of(result)
        expected = (frames.shape[0], *frames.shape[1:3])
        if result.dtype == torch.uint8 and result.shape == expected:
            return result
        if not (
            result.is_floating_point()
            and result.dim() == 4
            and (result.shape[0], *result.shape[2:]) == expected
            and result.shape[1] <= MAX_LABELS
        ):
            raise ValueError(
                f"the model gives {describe(result)}; expected uint8 labels of shape {expected}, "
                f"or logits (N, classes, H, W) of the same size and of at most {MAX_LABELS} classes"
            )
        return result.argmax(1).to(torch.uint8)


@dataclass(eq=False)
class Slot:
    """The buffers that a frame passes through, all uint8, with N x H x W x 3 or N x H x W values.

    Attributes:
        host: frame in page-locked memory, which the GPU reads directly.
        frame: frame on the device.
        labels: labels on the device.
        result: labels in page-locked memory.
        done: mark that is reached when `result` is complete.
        busy: True while a frame is being processed.
        as_array: True if that frame was a NumPy array, and its labels shall be one.
    """

    host: Tensor
    frame: Tensor
    labels: Tensor
    result: Tensor
    done: Any = None
    busy: bool = False
    as_array: bool = False


@dataclass(frozen=True)
class Speed:
    """The result of :meth:`Runner.measure`, from frames to labels in the caller's memory.

    Attributes:
        fps: pictures per second of a stream, including copies.
        latency_s: median seconds of a single call.
        frames: number of calls over which `fps` was measured.
    """

    fps: float
    latency_s: float
    frames: int


class Runner:
    """Labels for camera frames, at the speed of the network.

    >>> run = fassd_kernels.Runner(model, size=(1024, 2048), dtype=torch.float16)
    >>> labels = run(frame)  # one frame, the labels at once
    >>> for labels in run.stream(camera):  # frames in a row: copies run beside the network
    ...     show(labels)

    On a GPU, normalisation, network and argmax are one CUDA graph (:class:`GraphRunner`, whose
    documentation says when it captures again, and when it does not use a graph). Frames and labels
    are copied through page-locked buffers on streams of their own. On a CPU everything runs at
    once.

    Frames are uint8 RGB, H x W x 3, NumPy arrays or CPU tensors of any strides (for OpenCV's BGR:
    ``frame[..., ::-1]``); labels are uint8, H x W, of the same kind as the frame, and belong to the
    caller. Frames are copied before the next is requested, so a camera may reuse its buffer.

    A plain network is copied, put in eval mode and accelerated: later changes to `model` have no
    effect, those to ``runner.network`` do. An accelerated one is used directly, unless it has to be
    moved to `device`; edits of its weights take effect from the next frame on, and may or may not
    affect the one frame of a stream that is being processed. Calls from several threads, and
    streams that are open at the same time, take turns.

    Args:
        model: a network of :mod:`fassd.models`, or any module that returns logits (N, classes, H,
            W) for normalised BGR (N, 3, H, W); or the result of :func:`accelerate` for one.
        size: (height, width) of the frames.
        dtype: type to compute in: float32, float16, bfloat16 or float64; None for that of the
            model.
        device: ``cpu`` or a GPU; None for the GPU of the model, or else the current one, or else
            the CPU.
        batch: None for single frames. A number makes frames N x H x W x 3 and labels N x H x W, for
            pictures of several cameras at a time.

    Attributes:
        network: the network that computes; in eval mode, on `device`.
        graphs: the :class:`GraphRunner` around it; None on a CPU.
        size, batch, device: size, batch and device, as above.

    Raises:
        TypeError: `model` is not a module, or `dtype` is not one of the above.
        ValueError: `size`, `batch` or `device` is not as described above; an accelerated model is
            in training mode, or computes in another type than `dtype`; or there are more than 256
            classes.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if dtype is not None and dtype not in FLOATING:
            names = ", ".join(str(accepted) for accepted in FLOATING)
            raise TypeError(f"dtype is {dtype}; expected None or one of {names}")
        self.size = checked_size(size)
        if batch is not None and not (isinstance(batch, int) and batch >= 1):
            raise ValueError(f"batch is {batch!r}; expected None or a number of at least 1")
        self.batch = batch
        self.device = home_of(model, device)
        # Outside inference mode, where edits of tensors are not counted.
        with torch.inference_mode(False):
            self.network = ready(model, dtype, self.device)
        camera_network = CameraNetwork(self.network)
        self.channels = len(camera_network.preprocessing.mean)
        self.graphs = self.make_graphs(camera_network)
        self._compute: Callable[[Tensor], Tensor] = self.graphs or camera_network
        self._upload, self._work, self._download = (self.make_queue() for _ in range(3))
        self._free: deque[Slot] = deque()
        self._lock = threading.Lock()

    def make_graphs(self, network: nn.Module) -> GraphRunner | None:
        """The runner that captures the network; None if there is nothing to capture."""
        # Labels are copied out of the graph's memory at once, so the graph need not copy them.
        return GraphRunner(network, copy_output=False) if self.device.type == "cuda" else None

    def make_queue(self) -> Queue:
        return CudaQueue(self.device) if self.device.type == "cuda" else Queue()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return (*(() if self.batch is None else (self.batch,)), *self.size, self.channels)

    def reset(self) -> None:
        """Discard the graph; needed after parts of the network were replaced."""
        if self.graphs is not None:
            self.graphs.reset()

    # --- calls -----------------------------------------------------------------------------------

    def __call__(self, frame: Frame) -> Labels:
        """Compute the labels of one frame.

        Args:
            frame: H x W x 3 uint8 RGB (N x H x W x 3 with `batch`), or of as many bands as the
                network takes, any strides, on the CPU.

        Returns:
            H x W uint8 (N x H x W), an array if `frame` is one, else a tensor; it belongs to the
            caller.

        Raises:
            TypeError: `frame` is neither array nor tensor, or not uint8.
            ValueError: its shape or device is not as above, or the network cannot take it.
            RuntimeError: the network is in training mode.
        """
        with self.borrowed(1) as (slot,):
            self.start(slot, frame)
            return self.finish(slot)

    def stream(self, frames: Iterable[Frame]) -> Iterator[Labels]:
        """Compute the labels of consecutive frames, in order; copies overlap with the network.

        The labels of a frame are returned when the next frame has been taken. If frames come more
        slowly than they are labelled, call the runner itself to get labels at once.

        Args:
            frames: frames as in a call. The labels of the last one are returned when the iteration
                ends; an error of it, or of a refused frame, is raised after the labels of all
                frames before.

        Returns:
            An iterator over labels as in a call. It may be closed early.

        Raises:
            TypeError: `frames` is not iterable; the iterator then raises the errors of a call.
        """
        return self._stream(iter(frames))

    def _stream(self, frames: Iterator[Frame]) -> Iterator[Labels]:
        error: Exception | None = None
        with self.borrowed(2) as slots:
            before: Slot | None = None
            for slot in itertools.cycle(slots):
                try:
                    self.start(slot, next(frames))
                except StopIteration:
                    break
                except Exception as caught:
                    error = caught
                    break
                # The previous frame is waited for after queueing this one, on which the GPU works
                # while the caller uses labels, fetches a frame, and copies it.
                if before is not None:
                    yield self.finish(before)
                before = slot
            if before is not None:
                yield self.finish(before)
        if error is not None:
            raise error

    def measure(self, seconds: float = 2.0, frames: int | None = None) -> Speed:
        """Time random frames in memory: a stream of them, then single calls.

        Args:
            seconds: minimum duration of the stream in seconds.
            frames: number of frames of the stream, instead of a duration.

        Raises:
            ValueError: `seconds` is not above 0, or `frames` is below 1.
        """
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; expected more than 0")
        if frames is not None and frames < 1:
            raise ValueError(f"frames is {frames}; expected None or at least 1")
        rng = np.random.default_rng(0)
        pictures = [rng.integers(0, 256, self.shape, np.uint8) for _ in range(4)]
        for picture in pictures[:WARM_UP]:
            self(picture)
        deadline = time.perf_counter() + seconds

        def camera() -> Iterator[Frame]:
            for number in itertools.count():
                enough = time.perf_counter() >= deadline
                if number == frames or (frames is None and number and enough):
                    return
                yield pictures[number % len(pictures)]

        count, elapsed = timed(lambda: sum(1 for _ in self.stream(camera())))
        shown = itertools.islice(itertools.cycle(pictures), min(count, LATENCIES))
        latencies = [timed(functools.partial(self, picture))[1] for picture in shown]
        fps = count * (self.batch or 1) / elapsed
        return Speed(fps, statistics.median(latencies), count)

    # --- a frame's way ---------------------------------------------------------------------------

    def start(self, slot: Slot, frame: Frame) -> None:
        """Start processing a frame in a slot that is not busy, and return at once.

        Queues only wait for each other in this order. :meth:`finish` waits for the end of a slot's
        last frame, so its buffers are not overwritten while they are needed.
        """
        check_frame(frame, self.shape)
        if self.network.training:
            raise RuntimeError("the network is in training mode; call runner.network.eval()")
        slot.busy = True
        slot.as_array = isinstance(frame, np.ndarray)
        fill(slot.host.view(self.shape), frame)
        self._upload.run(lambda: slot.frame.copy_(slot.host, non_blocking=True))
        self._work.wait(self._upload.record())
        self._work.follow()  # the caller may have edited weights just before
        self._work.run(lambda: self.label(slot))
        self._download.wait(self._work.record())
        self._download.run(lambda: slot.result.copy_(slot.labels, non_blocking=True))
        slot.done = self._download.record()

    def label(self, slot: Slot) -> None:
        """Compute a slot's labels from its frame, on the device.

        Both are copied there, into and out of the graph's own buffers: 16 MB in all at 1024 x 2048,
        about 4 us on an H200. A graph for each slot would avoid that, and take the memory of all
        activations twice: two graphs that share it overwrite each other's labels.
        """
        clean = torch.autocast(self.device.type, enabled=False)
        # One at a time, until the labels are copied out of the graph's buffer.
        with self._lock, torch.inference_mode(False), torch.no_grad(), clean:
            slot.labels.copy_(self._compute(slot.frame))

    def finish(self, slot: Slot) -> Labels:
        """Wait for a slot's labels, and copy them for the caller."""
        slot.done.synchronize()
        slot.busy = False
        with torch.inference_mode(False):
            labels = slot.result.view(self.shape[:-1]).clone()
        return labels.numpy() if slot.as_array else labels

    @contextlib.contextmanager
    def borrowed(self, count: int) -> Iterator[list[Slot]]:
        """Slots for one caller, made when they are needed, and kept for later callers."""
        slots = [self.free_slot() for _ in range(count)]
        try:
            yield slots
        finally:
            if any(slot.busy for slot in slots):  # closed early: copies may still be running
                for queue in (self._upload, self._work, self._download):
                    queue.synchronize()
            for slot in slots:
                slot.busy = False
            self._free.extend(slots)

    def free_slot(self) -> Slot:
        try:
            return self._free.pop()
        except IndexError:
            return self.make_slot()

    def make_slot(self) -> Slot:
        on_gpu = self.device.type == "cuda"
        images = (self.batch or 1, *self.size)
        frames = (*images, self.channels)
        with torch.inference_mode(False):
            slot = Slot(
                torch.empty(frames, dtype=torch.uint8, pin_memory=on_gpu),
                torch.empty(frames, dtype=torch.uint8, device=self.device),
                torch.empty(images, dtype=torch.uint8, device=self.device),
                torch.empty(images, dtype=torch.uint8, pin_memory=on_gpu),
            )
        if on_gpu:
            # Work that is queued there may still use the previous contents of this memory.
            torch.cuda.current_stream(self.device).synchronize()
        return slot

    def __repr__(self) -> str:
        batch = "" if self.batch is None else f"batch={self.batch}, "
        name = type(self.network).__name__
        return f"Runner({name}, {batch}size={self.size}, device={self.device})"


# --- arguments ------------------------------------------------------------------------------------


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size is {size!r}; expected (height, width), each at least 1")
    return height, width


def home_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device to run on, with its index."""
    first = next(model.parameters(), None)
    if device is None and first is not None and first.is_cuda:
        device = first.device
    home = torch.empty(0, device=pick_device(device)).device
    if home.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(home)!r}; expected cpu or cuda")
    return home


def ready(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """The accelerated network on its device, in eval mode; see :class:`Runner`."""
    classes = getattr(model, "num_classes", 0)
    if isinstance(classes, int) and classes > MAX_LABELS:
        raise ValueError(
            f"the model has {classes} classes; labels are uint8, for at most {MAX_LABELS}"
        )
    if not any(isinstance(part, Fused | FusedNetwork) for part in model.modules()):
        # Converted before it is accelerated, because an accelerated one would need a hook to
        # convert its input, which has the right type here.
        network = copy.deepcopy(model).eval().to(device=device, dtype=dtype)
        return accelerate(network, inplace=True)
    if model.training:
        raise ValueError("the accelerated model is in training mode; call model.eval() first")
    tensors = [*model.parameters(), *model.buffers()]
    first = next(model.parameters()).dtype
    if dtype not in (None, first):
        raise ValueError(
            f"dtype is {dtype}, and the accelerated model computes in {first}; "
            f"expected None or {first}, or make it with accelerate(..., dtype={dtype})"
        )
    moves = any(tensor.device != device for tensor in tensors)
    # Module.to would move the caller's own.
    return copy.deepcopy(model).to(device) if moves else model


def check_frame(frame: Any, shape: tuple[int, ...]) -> None:
    """Raise unless `frame` is valid for a runner of frames of that shape."""
    kind = "uint8 RGB" if shape[-1] == 3 else "uint8"
    expected = f"expected {kind} of shape {shape}, a NumPy array or a tensor on the CPU"
    if not isinstance(frame, np.ndarray | Tensor):
        raise TypeError(f"the frame is a {type(frame).__name__}; {expected}")
    if frame.dtype not in (np.dtype(np.uint8), torch.uint8):
        raise TypeError(f"the frame is {describe(frame)}; {expected}")
    on_cpu = isinstance(frame, np.ndarray) or frame.device.type == "cpu"
    if tuple(frame.shape) != shape or not on_cpu:
        raise ValueError(f"the frame is {describe(frame)}; {expected}")


def describe(image: Frame) -> str:
    """Type, shape and device, for messages."""
    where = f" on {image.device}" if isinstance(image, Tensor) and not image.is_cpu else ""
    return f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}{where}"


def fill(buffer: Tensor, frame: Frame) -> None:
    """Copy a frame of any strides into a contiguous buffer."""
    if isinstance(frame, Tensor):
        buffer.copy_(frame)
    elif frame.flags.writeable and min(frame.strides) >= 0:
        buffer.copy_(torch.from_numpy(frame))  # on as many threads as PyTorch uses
    else:  # mirrored or read-only, which tensors do not support
        np.copyto(buffer.numpy(), frame)
