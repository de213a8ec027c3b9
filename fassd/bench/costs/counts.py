"""Counting the costs of a network at a given input size, without running it.

The model's shapes are traced on PyTorch's ``meta`` device, operator by operator, so that any size
takes the same few milliseconds, and everything that a module calls is counted, submodule or
function.

>>> from fassd import create_model
>>> analyze(create_model("fassd_net")).conv_macs / 1e9
44.6...
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from fassd.bench.costs.parts import JOINTS, PartCost, parts_of, with_merged_stem
from fassd.bench.tables import Column, report_table
from fassd.models.preprocess import preprocessing_of


@dataclass(frozen=True)
class DeadTaps:
    """A dilated convolution with taps that only read padding, for every output pixel.

    Attributes:
        name: path of the convolution in the model.
        kernel_size, dilation, map_size: (height, width) of kernel, dilation and input map.
        dead, taps: number of dead taps, and of all taps, of the kernel.
        wasted_macs: number of multiply-accumulates by zero for the dead taps.
    """

    name: str
    kernel_size: tuple[int, int]
    dilation: tuple[int, int]
    map_size: tuple[int, int]
    dead: int
    taps: int
    wasted_macs: int

    @property
    def wasted_share(self) -> float:
        """Share of this convolution's multiply-accumulates that are wasted."""
        return self.dead / self.taps


@dataclass(frozen=True)
class Complexity:
    """Costs of a network, in inference, at one input size. Printing it with rich gives a table.

    Attributes:
        model: name given to `analyze`, or the model's class name.
        input_shape: shape (N, C, H, W) of the input.
        params: number of parameters.
        conv_macs: number of multiply-accumulates of the convolutions, including padding, without
            biases.
        ptflops_macs: costs by the convention of the ptflops counter, which the authors' GFLOPs use:
            conv_macs, plus 2 per batch-norm output, 1 per activation output, 1 per output of a
            convolution with bias, 1 per input of an average pooling. Resizing, concatenation and
            addition are free.
        peak_bytes: largest sum of all live tensors when PyTorch runs the model eagerly without
            gradients, in float32: the input (which the caller holds), every intermediate result
            until Python drops it, and the output of the current operator in addition to its inputs.
            Storages are counted once, in-place results and views are not counted again. Parameters,
            the allocator's rounding and workspaces of convolution algorithms are not included.
        allocated_bytes: sum of all tensors that operators newly write in one such run, in float32;
            about half of the memory traffic of eager execution.
        parts: costs by part, in order of execution, joints last; their sums are the totals.
        dead_taps: dilated convolutions with taps that only read padding at this size.
    """

    model: str
    input_shape: tuple[int, ...]
    params: int
    conv_macs: int
    ptflops_macs: int
    peak_bytes: int
    allocated_bytes: int
    parts: tuple[PartCost, ...]
    dead_taps: tuple[DeadTaps, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        batch, _, height, width = self.input_shape
        yield f"{self.model} at {height}x{width}" + (f", batch {batch}" if batch > 1 else "")
        yield report_table(self.parts, _part_columns(self, options.max_width >= WIDE))
        yield Text(
            f"Peak of live activations {_mib(self.peak_bytes)} MiB in float32. "
            "GMACs: convolutions alone; ptflops adds batch norm, activations and pooling.",
            style="dim",
        )
        if not self.dead_taps:
            yield Text("No dilated convolution has dead taps at this size.", style="dim")
            return
        wasted = sum(dead.wasted_macs for dead in self.dead_taps)
        yield Text(
            "Dilation taps that read only padding at this size: "
            f"{wasted / 1e9:.3f} GMACs of zeros, {wasted / self.conv_macs:.1%} of all",
        )
        yield report_table(self.dead_taps, DEAD_TAP_COLUMNS)


def analyze(
    model: nn.Module,
    input_size: tuple[int, int] = (1024, 2048),
    batch: int = 1,
    name: str | None = None,
) -> Complexity:
    """Count `model` at an input of (batch, 3, *input_size), or with its own number of channels.

    The model is neither run nor changed.

    Args:
        model: a network of the family, or one made of the same parts in plain PyTorch.
        input_size: (height, width) in pixels.
        batch: number of pictures; the counts are for all of them.
        name: name of the model in the result; its class name by default.

    Raises:
        ValueError: the model does not take the size, or runs operators other than PyTorch's own,
            which cannot be counted (give the reference model instead).
    """
    replica = _on_meta(model)
    counter = _Counter(replica)
    channels = len(preprocessing_of(model).mean)
    picture = torch.empty((batch, channels, *input_size), device="meta")
    counter.watch(picture)
    with torch.no_grad(), counter.following_modules(), counter:
        replica(picture)
    parts = tuple(with_merged_stem(counter.parts()))
    return Complexity(
        model=name or type(model).__name__,
        input_shape=tuple(picture.shape),
        params=sum(parameter.numel() for parameter in model.parameters()),
        conv_macs=sum(part.conv_macs for part in parts),
        ptflops_macs=sum(part.ptflops_macs for part in parts),
        peak_bytes=counter.peak_bytes,
        allocated_bytes=sum(part.allocated_bytes for part in parts),
        parts=parts,
        dead_taps=tuple(counter.dead_taps),
    )


def count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of the convolutions and matrix products of any module, which is run.

    Args:
        module: module on the CPU.
        shape: shape of its only input.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape))
    return counter.get_total_flops() // 2


# --- Counting ----------------------------------------------------------------------------------


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode whose tensors have float32 shapes and no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )
    # deepcopy uses the memo's entries instead of copying.
    return copy.deepcopy(model, memo).eval()


def _live_taps(size: int, out: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """Number of taps in a row that read a pixel of a row of `size` for one of `out` results."""
    begins = (tap * dilation - padding for tap in range(taps))
    return sum(any(0 <= begin + stride * pixel < size for pixel in range(out)) for begin in begins)


_ACTIVATIONS = {
    "relu", "relu_", "_prelu_kernel", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu",
    "hardtanh", "hardtanh_", "hardswish", "hardswish_", "silu", "silu_", "sigmoid", "sigmoid_",
}  # fmt: skip
_BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_AVERAGE_POOLINGS = {"avg_pool2d", "_adaptive_avg_pool2d", "mean"}


class _Counter(TorchDispatchMode):
    """Observer of every operator of a forward pass, and of the module that called it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak_bytes = 0
        self.dead_taps: list[DeadTaps] = []
        self._model = model
        self._kinds = dict(parts_of(model, ""))
        self._stack: list[str] = []
        self._parts: dict[str, PartCost] = {}
        self._counted: set[int] = set()
        self._live: dict[StorageWeakRef, int] = {}

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Keep the path of the current module in `_stack`, and count its parameters on entry."""
        handles = []

        def leave(*_: Any) -> None:
            self._stack.pop()

        for name, module in self._model.named_modules():

            def enter(module: nn.Module, _: Any, name: str = name) -> None:
                self._stack.append(name)
                self._count_parameters(module)

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count_parameters(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in self._counted:
                self._counted.add(id(parameter))
                self._part().params += parameter.numel()

    def _part(self) -> PartCost:
        """The current part."""
        path = self._stack[-1]
        while path and path not in self._kinds:
            path = path.rpartition(".")[0]
        kind = self._kinds.get(path, "resize, concatenate")
        return self._parts.setdefault(path, PartCost(path or JOINTS, kind))

    def parts(self) -> list[PartCost]:
        # A network also works between its parts; that row goes last.
        return sorted(self._parts.values(), key=lambda part: part.name == JOINTS)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace not in ("aten", "prim", "prims"):
            raise ValueError(
                f"cannot count {func}: only PyTorch's own operators can be counted; "
                "give the reference model"
            )
        if func is torch.ops.aten.native_batch_norm.default:
            # PyTorch's own shape function on meta, in Python, takes as long as all other operators
            # together.
            result = (torch.empty_like(args[0]), None, None)
        else:
            result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple | list) else result
        if isinstance(output, Tensor):
            self._count(func.overloadpacket.__name__, args, output)
        return result

    def _count(self, operator: str, args: Any, output: Tensor) -> None:
        part = self._part()
        part.output_shape = tuple(output.shape)
        part.allocated_bytes += self.watch(output)
        if operator == "convolution":
            self._count_convolution(part, args, output)
        elif operator in _BATCH_NORMS:
            part.ptflops_macs += 2 * output.numel()
        elif operator in _ACTIVATIONS:
            part.ptflops_macs += output.numel()
        elif operator in _AVERAGE_POOLINGS:
            part.ptflops_macs += args[0].numel()

    def _count_convolution(self, part: PartCost, args: Any, output: Tensor) -> None:
        picture, weight, bias, stride, padding, dilation, transposed = args[:7]
        macs = conv_flop_count(picture.shape, weight.shape, [*output.shape], transposed) // 2
        part.conv_macs += macs
        part.ptflops_macs += macs + (0 if bias is None else output.numel())
        kernel, dilations = _pair(weight.shape[2:]), _pair(dilation)
        if transposed or dilations == (1, 1):
            return
        sizes = picture.shape[2:], output.shape[2:], kernel
        axes = zip(*sizes, _pair(stride), _pair(padding), dilations, strict=True)
        taps = prod(kernel)
        dead = taps - prod(itertools.starmap(_live_taps, axes))
        if dead:
            wasted = macs * dead // taps
            size = _pair(picture.shape[2:])
            self.dead_taps.append(
                DeadTaps(self._stack[-1], kernel, dilations, size, dead, taps, wasted)
            )

    def watch(self, tensor: Tensor) -> int:
        """Track a tensor's storage until it is freed; return its bytes if it is new, else 0."""
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference in self._live:
            return 0
        self._live[reference] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
        return storage.nbytes()


def _pair(values: Any) -> tuple[int, int]:
    first, *rest = values
    return int(first), int(rest[0] if rest else first)


# --- Showing -----------------------------------------------------------------------------------

WIDE = 100
"""Minimum columns of a terminal for tables that describe each part."""


def _part_columns(complexity: Complexity, with_kinds: bool) -> list[Column[PartCost]]:
    macs = max(complexity.conv_macs, 1)
    kind: Column[PartCost] = Column("What", lambda part: part.kind, words=True)
    return [
        Column("Part", lambda part: part.name, "Total", words=True),
        *([kind] if with_kinds else []),
        Column("Output", lambda part: "x".join(map(str, part.output_shape[1:])), words=True),
        Column("Params", lambda part: f"{part.params:,}", f"{complexity.params:,}"),
        Column("GMACs", lambda part: _giga(part.conv_macs), _giga(complexity.conv_macs)),
        Column("Share", lambda part: f"{part.conv_macs / macs:.0%}", "100%"),
        Column("ptflops", lambda part: _giga(part.ptflops_macs), _giga(complexity.ptflops_macs)),
        Column(
            "MiB written",
            lambda part: _mib(part.allocated_bytes),
            _mib(complexity.allocated_bytes),
        ),
    ]


DEAD_TAP_COLUMNS: tuple[Column[DeadTaps], ...] = (
    Column("Convolution", lambda dead: dead.name, words=True),
    Column("Kernel", lambda dead: "{}x{}".format(*dead.kernel_size), words=True),
    Column("Dilation", lambda dead: "{}x{}".format(*dead.dilation), words=True),
    Column("Map", lambda dead: "{}x{}".format(*dead.map_size), words=True),
    Column("Dead taps", lambda dead: f"{dead.dead} of {dead.taps}"),
    Column("Wasted", lambda dead: f"{dead.wasted_share:.0%}"),
)


def _giga(number: int) -> str:
    return f"{number / 1e9:.3f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
