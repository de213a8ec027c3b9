"""A network as CUDA graphs: one replay in place of seventy launches."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fassd_kernels.modules.fused import Fused
from fassd_kernels.modules.snapshot import edits, has_hooks, hooked_globally, places
from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.program import tf32_requested

WARM_UP = 3  # calls before a capture: kernels are compiled, weights packed, memory is there


def capture(
    calls: Sequence[Callable[[], Any]], stream: torch.cuda.Stream | None = None, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """Record calls, in order, as one CUDA graph.

    Args:
        calls: at least one; the first is made :data:`WARM_UP` times before.
        stream: to capture on; None for a new one of the current GPU.
        pool: memory that graphs share; None for memory of its own.

    Returns:
        The graph, and the results of the calls, which every replay writes anew.
    """
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            calls[0]()
    torch.cuda.current_stream(stream.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        return graph, [call() for call in calls]


class CudaGraph:
    """A network captured for one shape: its `input` and `output` stay where they are.

    Args:
        model: in eval mode, on the GPU of `x`.
        x: an input; its shape, type and layout are the graph's.
        pool: of the memory that graphs of one runner share.
    """

    def __init__(self, model: nn.Module, x: Tensor, pool: Any) -> None:
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):  # whose memory no caller's stream takes when it is freed
            self.input = x.clone()
        self.graph, (self.output,) = capture([lambda: model(self.input)], stream, pool)

    def replay(self) -> None:
        """Compute `output` from what is in `input`, on the current stream."""
        self.graph.replay()


@dataclass
class CachedGraph:
    """A graph, and what it rests on.

    Attributes:
        recording: the graph with its input and output.
        state: state of the model's tensors when it was made; it is void when that has changed.
        weights: the packed ones, which the graph reads and nobody else may keep, and the model's.
        done: on the stream of the last call, when it was through.
    """

    recording: CudaGraph
    state: list[Any]
    weights: list[Any]
    done: torch.cuda.Event | None = None


class GraphRunner:
    """Call a network through CUDA graphs, one for each shape of input.

    >>> fast = fassd_kernels.accelerate(model.cuda(), dtype=torch.float16, output="labels")
    >>> run = fassd_kernels.GraphRunner(fast)
    >>> labels = run(pictures)  # captured at the first call of a shape, replayed from then on

    The input is copied in, the output copied out, on the caller's current stream; callers on other
    streams and threads wait for each other. A graph is captured anew when a parameter or buffer was
    edited, moved, loaded or exchanged since, or the network's `output` was set; a module that was
    exchanged for another, and edits that PyTorch does not count (through ``.data``), need
    :meth:`reset`.

    Where there is nothing to capture, the network itself is called, and a warning says once why:
    in training mode, where a gradient is asked for, on a CPU, with hooks, under autocast, inside
    another capture or a compiler, and where the capture fails.

    Args:
        model: in eval mode; takes one tensor and returns one.
        max_shapes: graphs to keep; the one unused for longest makes place.
        copy_output: whether results are the caller's own. Otherwise, the next call of the same
            shape overwrites them, and their copying is saved.

    Raises:
        TypeError: if `model` is not a module.
        ValueError: if `max_shapes` is below 1.
    """

    recording: type[Any] = CudaGraph

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
        self._modules: list[nn.Module] = []
        self._places: list[tuple[dict[str, Any], str]] = []  # tables and names of the tensors
        self._pools: dict[torch.device, Any] = {}
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every graph; needed after parts of the model were exchanged."""
        with self._lock:
            self.forget()
            self._modules = list(self.model.modules())
            tables = [t for m in self._modules for t in (m._parameters, m._buffers)]
            self._places = [(table, name) for table in tables for name in table]

    def forget(self) -> None:
        """Drop every graph, and their memory with the last."""
        self._entries.clear()
        self._failed.clear()
        self._pools.clear()

    def tensors(self) -> list[Tensor]:
        """The model's parameters and buffers, as they are now."""
        found = [table.get(name) for table, name in self._places]
        return [tensor for tensor in found if tensor is not None]

    def state(self) -> list[Any]:
        """What a graph rests on; equal as long as it is right."""
        settings = [getattr(self.model, "output", None), tf32_requested()]
        tensors = self.tensors()
        return [*settings, *map(id, tensors), *places(tensors), *edits(tensors)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs that there is a graph for, the last used at the end."""
        return [tuple(key[0]) for key in self._entries]

    def __call__(self, x: Tensor) -> Tensor:
        """As ``model(x)``."""
        why = self.refusal(x)
        if why:
            self.say(why)
            return self.model(x)
        # Outside inference mode, or a later call could not copy into the graph's input.
        with self._lock, torch.inference_mode(False), torch.no_grad(), self.on(x.device):
            entry = self.entry(x)
            if entry is None:
                return self.model(x)
            return self.replay(entry, x)

    # --- what cannot be captured -----------------------------------------------------------------

    def refusal(self, x: Tensor) -> str:
        """Why a call cannot go through a graph; empty if it can."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "a compiler traces the call"
        if not self.takes(x):
            return f"the input is on {x.device.type}, and graphs are CUDA's"
        if self.model.training:
            return "the model is in training mode"
        tensors = self.tensors()
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors)):
            return "a gradient is asked for: call it under torch.no_grad()"
        if any(tensor.is_inference() for tensor in tensors):
            return "the model was made in inference mode, where edits are not counted"
        if hooked_globally() or any(map(has_hooks, self._modules)):
            return "the model carries hooks, which a replay would pass over"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on: convert the model instead (accelerate(model, dtype=...))"
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "the current stream is being captured already"
        return ""

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

    def entry(self, x: Tensor) -> CachedGraph | None:
        """The graph for inputs like `x`, captured if need be; None if that fails."""
        key = (x.shape, x.stride(), x.dtype, x.device)
        state = self.state()
        entry = self._entries.get(key)
        if entry is not None and entry.state == state:
            self._entries.move_to_end(key)
            return entry
        if entry is not None:  # other weights: of no shape is the graph right any longer
            self.forget()
        if self._failed.get(key) == state:
            return None
        try:
            recording = self.recording(self.model, x, self.pool(x.device))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # CUDA's, or one of Triton's own
            self._failed[key] = state
            self.say(f"the capture failed: {first_line(error)}")
            return None
        while len(self._entries) >= self.max_shapes:
            self._entries.popitem(last=False)
        # Held too, because what is freed may be followed by another at the same address.
        held = [(tensor, tensor.untyped_storage()) for tensor in self.tensors()]
        entry = self._entries[key] = CachedGraph(recording, state, [*self.packed_weights(), *held])
        return entry

    def packed_weights(self) -> Iterator[Any]:
        """What the fused modules have packed; the graph knows its addresses only."""
        for module in self.model.modules():
            if isinstance(module, Fused):
                yield module._packed

    def pool(self, device: torch.device) -> Any:
        """Memory for what graphs compute in between: one at a time runs, so they share it."""
        if device.type == "cuda" and device not in self._pools:
            self._pools[device] = torch.cuda.graph_pool_handle()
        return self._pools.get(device)

    def on(self, device: torch.device) -> Any:
        return torch.cuda.device(device if device.type == "cuda" else -1)

    def replay(self, entry: CachedGraph, x: Tensor) -> Tensor:
        """Copy in, compute, copy out, behind whoever used a graph before."""
        cuda = x.device.type == "cuda"
        if cuda:
            stream = torch.cuda.current_stream(x.device)
            for other in self._entries.values():  # they share memory
                if other.done is not None:
                    stream.wait_event(other.done)
        entry.recording.input.copy_(x)
        entry.recording.replay()
        output = entry.recording.output
        if self.copy_output:
            output = output.clone()
        if cuda:
            entry.done = entry.done or torch.cuda.Event()
            entry.done.record(stream)
        return output
