"""Networks as CUDA graphs: one replay instead of seventy launches."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fassd.models.info import temperature_of
from fassd_kernels.modules.fused import Cached, Fused
from fassd_kernels.modules.snapshot import (
    HOOKS,
    attributes,
    edits,
    has_hooks,
    hooked_globally,
    places,
)
from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.program import tf32_requested

WARM_UP = 3  # calls before a capture, which compile kernels, pack weights and allocate memory
NEEDS_NO_GRAD = "a gradient is asked for: call it under torch.no_grad()"
HAS_HOOKS = "the model carries hooks, which a replay would pass over"
TRAINING = itemgetter("training")
WANTS_GRADIENT = attrgetter("requires_grad")


def capture(
    calls: Sequence[Callable[[], Any]], stream: torch.cuda.Stream | None = None, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """Record calls, in order, as one CUDA graph.

    Args:
        calls: at least one function; the first is called :data:`WARM_UP` times before.
        stream: stream to capture on; None for a new one of the current GPU.
        pool: memory that graphs share; None for memory of its own.

    Returns:
        The graph, and the results of the calls, which every replay overwrites.
    """
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            calls[0]()
    torch.cuda.current_stream(stream.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        return graph, [call() for call in calls]


class CudaGraph:
    """A network captured for one shape: its `input` and `output` keep their addresses.

    Args:
        model: network in eval mode, on the GPU of `x`.
        x: an input; its shape, type and layout are the graph's.
        pool: memory that the graphs of one runner share.
    """

    def __init__(self, model: nn.Module, x: Tensor, pool: Any) -> None:
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):  # a caller's stream does not reuse its memory
            self.input = x.clone()
        self.graph, (self.output,) = capture([lambda: model(self.input)], stream, pool)

    def replay(self) -> None:
        """Compute `output` from `input`, on the current stream."""
        self.graph.replay()


class Turns:
    """The calls of a runner on one GPU, of which each begins when the one before has ended.

    They may therefore come on any stream, although they share memory.
    """

    def __init__(self) -> None:
        self.ended = torch.cuda.Event()

    def begin(self) -> None:
        """Make the current stream's further work wait until the last call has ended."""
        self.ended.wait()

    def end(self) -> None:
        """Mark the current stream's work so far as the last call."""
        self.ended.record()

    def wait(self) -> None:
        """Wait for the last call, before its memory is freed."""
        self.ended.synchronize()


def wait_for(turns: Iterable[Turns]) -> None:
    for turn in turns:
        turn.wait()


@dataclass(frozen=True)
class CachedGraph:
    """A graph, and the state that it depends on.

    Attributes:
        recording: the graph with its input and output.
        state: state of the model's tensors when it was captured; after a change the graph is
            invalid.
        packed: modules that it calls fused, and the packed weights that it reads, to keep these
            alive.
        held: tensors of the model and their memory, kept because freed memory may be reused at the
            same address.
    """

    recording: CudaGraph
    state: list[Any]
    packed: list[tuple[Fused, Cached]]
    held: list[Any]

    def rests_on(self, state: list[Any]) -> bool:
        return self.state == state and all(part._packed is seen for part, seen in self.packed)


class GraphRunner:
    """Call a network through CUDA graphs, one for each shape of input.

    >>> fast = fassd_kernels.accelerate(model.cuda(), dtype=torch.float16, output="labels")
    >>> run = fassd_kernels.GraphRunner(fast)
    >>> labels = run(pictures)  # captured at the first call of a shape, replayed from then on

    The input is copied in and the output copied out on the caller's current stream; callers on
    other streams and threads wait for each other. A graph is captured again if a parameter or
    buffer was edited, moved, loaded or replaced, weights were packed again, or the network's
    `output` was set. After replacing a module, or edits that PyTorch does not count (through
    ``.data``), call :meth:`reset`. These changes are detected while the graph already runs, so that
    the GPU does not wait, and its result is dropped if there were any.

    If capturing is impossible, the network itself is called, with one warning that says why: in
    training mode, if a gradient is needed, on a CPU, with hooks, under autocast, inside another
    capture or a compiler, and if the capture fails.

    Args:
        model: network in eval mode; takes one tensor and returns one.
        max_shapes: maximum number of graphs; the least recently used one is dropped for a new one.
        copy_output: True gives the caller results of its own. False saves copying them, but the
            next call with the same shape overwrites them; graphs then share no memory.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `max_shapes` is below 1.
    """

    recording: type[Any] = CudaGraph
    turns: type[Any] = Turns
    new_pool: Callable[[], Any] = staticmethod(torch.cuda.graph_pool_handle)

    def __init__(self, model: nn.Module, max_shapes: int = 8, copy_output: bool = True) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if max_shapes < 1:
            raise ValueError(f"max_shapes is {max_shapes}; expected at least 1")
        self.model = model
        self.max_shapes = max_shapes
        self.copy_output = copy_output
        self._entries: OrderedDict[Any, CachedGraph] = OrderedDict()
        self._failed: dict[Any, list[Any]] = {}  # states in which a capture failed
        self._refused: set[str] = set()
        self._pools: dict[torch.device, Any] = {}
        self._turns: dict[torch.device, Any] = {}
        self._lock = threading.Lock()
        self.reset()
        weakref.finalize(self, wait_for, self._turns.values()).atexit = False

    def reset(self) -> None:
        """Discard every graph; needed after parts of the model were replaced."""
        with self._lock:
            self.forget()
            self._modules = list(self.model.modules())
            self._tables = [module.__dict__ for module in self._modules]
            held = (table[kind] for table in self._tables for kind in ("_parameters", "_buffers"))
            self._holding: list[dict[str, Tensor | None]] = [table for table in held if table]
            self._hooks = [table[name] for table in self._tables for name in HOOKS]
            self._attributes: list[Any] = []
            self._refuses = False  # in the last call

    def forget(self) -> None:
        """Drop every graph, and their memory with the last, once none of them is running."""
        wait_for(self._turns.values())
        self._entries.clear()
        self._failed.clear()
        self._pools.clear()

    def tensors(self) -> list[Tensor]:
        """The model's present parameters and buffers."""
        found = chain.from_iterable(map(dict.values, self._holding))
        return [tensor for tensor in found if tensor is not None]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs with a graph, the most recently used last."""
        return [tuple(key[0]) for key in self._entries]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model: same argument and result as ``model(x)``."""
        why = self.refusal_of(x)
        if not why:
            gradient = torch.is_grad_enabled()
            # Outside inference mode, because a later call must copy into the graph's input.
            with self._lock, torch.inference_mode(False), torch.no_grad(), self.on(x.device):
                output, why = self.run(x, gradient)
            if output is not None:
                return output
        if why:
            self.say(why)
        return self.model(x)

    def run(self, x: Tensor, gradient: bool) -> tuple[Tensor | None, str]:
        """The output by a graph, or None and, unless it was reported before, the reason why not.

        Checking a model of 479 tensors in 334 modules takes 210 us: a graph, if there is one, runs
        meanwhile. It only writes to its own memory, so its result can be dropped.
        """
        key = (x.shape, x.stride(), x.dtype, x.device)
        entry, output = self._entries.get(key), None
        if entry is not None and not self._refuses:
            output = self.replay(entry, x)
        why, state = self.look(gradient)
        self._refuses = bool(why)
        if why:
            return None, why
        if entry is None or not entry.rests_on(state):
            if entry is not None:  # the weights changed, so the graphs of all shapes are invalid
                self.forget()
            if self._failed.get(key) == state:
                return None, ""
            entry, why = self.captured(x, state)
            if entry is None:
                self._failed[key] = state
                return None, why
            while len(self._entries) >= self.max_shapes:
                wait_for(self._turns.values())
                self._entries.popitem(last=False)
            self._entries[key], output = entry, None
        self._entries.move_to_end(key)
        return self.replay(entry, x) if output is None else output, ""

    # --- what cannot be captured -----------------------------------------------------------------

    def refusal_of(self, x: Tensor) -> str:
        """The reason why a call must not begin with a replay; empty if it may. Takes few us."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "a compiler traces the call"
        if not self.takes(x):
            return f"the input is on {x.device.type}; CUDA graphs need a GPU"
        if x.requires_grad and torch.is_grad_enabled():
            return NEEDS_NO_GRAD
        if hooked_globally():
            return HAS_HOOKS
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on: convert the model instead (accelerate(model, dtype=...))"
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "the current stream is being captured already"
        return ""

    def look(self, gradient: bool) -> tuple[str, list[Any]]:
        """The reason why the model cannot be captured, and the state that a graph would depend on.

        Args:
            gradient: True if the caller records gradients.
        """
        tensors = self.tensors()
        if any(map(TRAINING, self._tables)):
            return "the model, or a part of it, is in training mode", []
        if gradient and any(map(WANTS_GRADIENT, tensors)):
            return NEEDS_NO_GRAD, []
        if self.has_hooks():
            return HAS_HOOKS, []
        try:
            settings = [getattr(self.model, "output", None), tf32_requested()]
            if settings[0] == "labels+confidence":
                settings += [getattr(self.model, "measure", None), temperature_of(self.model)]
            return "", [*settings, *map(id, tensors), *places(tensors), *edits(tensors)]
        except RuntimeError:
            if not any(map(Tensor.is_inference, tensors)):
                raise
            return "the model was made in inference mode, where edits are not counted", []

    def has_hooks(self) -> bool:
        """True if modules carry hooks or methods of their own: each is a new attribute."""
        known = attributes(self._tables)
        if any(self._hooks) or (known != self._attributes and any(map(has_hooks, self._modules))):
            return True
        self._attributes = known
        return False

    def takes(self, x: Tensor) -> bool:
        return x.device.type == "cuda"

    def say(self, why: str) -> None:
        if why not in self._refused:
            self._refused.add(why)
            warnings.warn(
                f"GraphRunner: {type(self.model).__name__} runs without a CUDA graph ({why})",
                RuntimeWarning,
                stacklevel=3,
            )

    # --- graphs ----------------------------------------------------------------------------------

    def captured(self, x: Tensor, state: list[Any]) -> tuple[CachedGraph | None, str]:
        """A graph for inputs like `x` and the model in this state; else None and the reason."""
        try:
            recording = self.recording(self.model, x, self.pool(x.device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # errors of CUDA or Triton
            return None, f"the capture failed: {first_line(error)}"
        fused = [module for module in self.model.modules() if isinstance(module, Fused)]
        packed = [(module, module._packed) for module in fused if module._packed is not None]
        held = [(tensor, tensor.untyped_storage()) for tensor in self.tensors()]
        return CachedGraph(recording, state, packed, held), ""

    def pool(self, device: torch.device) -> Any:
        """Memory for intermediate results of graphs, which they share as only one runs at a time.

        They do not share it if the caller gets outputs without a copy: a graph that was captured
        earlier may use the memory of a later one's output for an intermediate result.
        """
        if not self.copy_output:
            return self.new_pool()
        if device not in self._pools:
            self._pools[device] = self.new_pool()
        return self._pools[device]

    def on(self, device: torch.device) -> Any:
        return torch.cuda.device(device if device.type == "cuda" else -1)

    def replay(self, entry: CachedGraph, x: Tensor) -> Tensor:
        """Copy in, compute, copy out, after any earlier use of a graph."""
        if x.device not in self._turns:
            self._turns[x.device] = self.turns()
        turn = self._turns[x.device]
        turn.begin()
        entry.recording.input.copy_(x)
        entry.recording.replay()
        output = entry.recording.output
        if self.copy_output:
            output = output.clone()
        turn.end()
        return output
