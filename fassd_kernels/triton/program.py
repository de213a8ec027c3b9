"""The launches of one call of an operator: planned once per shape, then run from a cache.

A :class:`Program` is made only from the shapes, strides and types of a call's tensors, and holds
everything except their addresses: kernels, grids, scalars, and the layout of scratch. Running it
takes one lookup, at most two allocations, and the launches.

Tensors are numbered (a *slot*): first the call's arguments, in the order in which the plan uses
them, then the result, then scratch.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fassd_kernels.checks import defaults_of, holds, span
from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.configurations import Config, Problem, overridden
from fassd_kernels.triton.device import Device, assumption, describe_device
from fassd_kernels.triton.layout import (
    BYTES,
    LANES,
    Image,
    Size,
    empty_image,
    image_of,
    is_aligned,
    pixel_stride,
    round_up,
    strides_of,
)
from fassd_kernels.triton.packing import OUT_CHANNELS, check_packed_weight, pack

INT32_MAX = 2**31 - 1
# For kernels without a choice of configuration: one value after the other.
ELEMENTWISE = Config(0, 0, 0, num_warps=4, num_stages=1)
interpreter_lock = threading.Lock()


@dataclass(frozen=True)
class Argument:
    """A tensor of a call that is planned, and its position among the call's tensors."""

    index: int
    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape


@dataclass(frozen=True)
class Pointer:
    """An argument of a kernel: a tensor's address, plus some elements."""

    slot: int
    offset: int = 0


@dataclass(frozen=True)
class Work:
    """The minimum that a launch moves and computes: input of the time model.

    Attributes:
        bytes: bytes read and written, with every tensor once.
        operations: number of multiplications and additions that contribute to the result.
        issued: number of those carried out, including padded channels, pixels and recomputation.
        loaded: bytes that the tiles load, over all taps and all blocks of output channels.
    """

    bytes: int
    operations: int
    issued: int = 0
    loaded: int = 0


@dataclass
class Launch:
    """One kernel of a program.

    Attributes:
        kernel: JIT function.
        grid: grid of its programs.
        arguments: arguments by name, in the kernel's order: :class:`Pointer`, integers, None,
            tuples of these, and the constants.
        options: options for Triton, such as ``num_warps``.
        work: memory traffic and operations, for the time model.
        label: purpose of the launch, for reports.
        problem: problem that its configuration was chosen for; None if there is no choice.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]
    work: Work
    label: str
    problem: Problem | None = None
    _runner: Callable[..., Any] | None = field(default=None, repr=False)

    def __call__(self, tensors: Sequence[Tensor], interpreted: bool) -> None:
        filled = [fill(value, tensors) for value in self.arguments.values()]
        if self._runner is not None:
            self._runner(*filled)
            return
        named = dict(zip(self.arguments, filled, strict=True))
        compiled = self.kernel[self.grid](**named, **({} if interpreted else self.options))
        if not interpreted:
            # A compiled kernel takes all arguments in order, which needs no further lookup.
            grid = (*self.grid, 1, 1)[:3]
            self._runner = compiled[grid]


def fill(value: Any, tensors: Sequence[Tensor]) -> Any:
    """An argument with addresses in place of slots."""
    if isinstance(value, Pointer):
        tensor = tensors[value.slot]
        if value.offset:
            return torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() + value.offset)
        return tensor
    return tuple(fill(x, tensors) for x in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Allocation:
    """The result of a program: an image, or a map of labels."""

    size: tuple[int, ...]
    dtype: torch.dtype
    padded: bool = False

    def allocate(self, device: torch.device) -> Tensor:
        if self.dtype == torch.uint8:  # planes of bytes
            return torch.empty(self.size, dtype=self.dtype, device=device)
        return empty_image(self.size, self.dtype, device, self.padded)


class Program:
    """The launches of one call, and the memory that they need."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, padded: bool) -> None:
        self.name = name
        self.dtype = dtype
        self.padded = padded
        self.device: Device = describe_device(device)
        self.tf32 = dtype == torch.float32 and self.device.has_tf32 and tf32_requested()
        self.launches: list[Launch] = []
        # Source of each argument's slot: a number among the call's tensors, or a tensor of the
        # plan's own.
        self.sources: list[int | Tensor] = []
        self.prepare: dict[int, Callable[[Tensor], Tensor]] = {}
        self.types: dict[int, tuple[torch.dtype, bool]] = {}  # dtype and alignment of each slot
        self.out: Allocation | None = None
        self.inputs: list[Tensor] = []  # tensors of the call, while recording
        self.spans: list[int] = []  # spans of the call's tensors
        self._scratch_elements = 0
        self._finished = False

    # --- planning --------------------------------------------------------------------------------

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def argument(self, argument: Argument) -> int:
        """The slot of a tensor of the call."""
        return self._take(argument.index, argument.tensor)

    def constant(self, tensor: Tensor) -> int:
        """The slot of a tensor that every such call reads."""
        return self._take(tensor, tensor)

    def _take(self, source: int | Tensor, tensor: Tensor) -> int:
        slot = len(self.sources)
        self.sources.append(source)
        self.types[slot] = (tensor.dtype, tensor.data_ptr() % BYTES == 0)
        return slot

    def image(self, argument: Argument) -> Image:
        return image_of(self.argument(argument), argument.tensor)

    def vector(self, argument: Argument | None) -> Pointer | None:
        """A vector of the call, or None; if it is not contiguous, each call makes it so."""
        if argument is None:
            return None
        slot = self.argument(argument)
        if not argument.tensor.is_contiguous():
            self.renew(slot, argument.tensor.dtype, Tensor.contiguous)
        return Pointer(slot)

    def vectors(self, arguments: Sequence[Argument | None]) -> list[Pointer | None]:
        return [self.vector(argument) for argument in arguments]

    def weights(
        self, weights: Sequence[Argument], packed: Sequence[Argument] | None
    ) -> list[Weight]:
        """The weights of a module, each with its packed weight."""
        packs = packed if packed is not None else [None] * len(weights)
        return [
            self.weight(f"weights[{i}]", weight, given)
            for i, (weight, given) in enumerate(zip(weights, packs, strict=True))
        ]

    def weight(
        self,
        name: str,
        weight: Argument,
        packed: Argument | None,
        begin: int = 0,
        end: int | None = None,
    ) -> Weight:
        """A weight of the call, packed by the caller or in each call.

        Args:
            name: name in errors.
            weight: O x I x kH x kW weight.
            packed: result of :func:`pack` for it, or an empty tensor.
            begin, end: range of input channels to use, for a 1x1; `packed` has only these.

        Raises:
            RuntimeError: `packed` is something else.
        """
        part = weight.tensor[:, begin:end]
        given = None if packed is None else packed.tensor
        check_packed_weight(self.name, name, part, given)
        out_channels, in_channels, *kernel = part.shape
        stride = round_up(out_channels, OUT_CHANNELS)
        if packed is not None and packed.tensor.numel() > 0:
            pointer = Pointer(self.argument(packed))
        elif stride == out_channels and weight.tensor.permute(2, 3, 1, 0).is_contiguous():
            # Folded weights have the same layout as packed ones: rows of one input channel.
            pointer = Pointer(self.argument(weight), begin * out_channels)
        else:
            pointer = Pointer(self.argument(weight))
            self.renew(pointer.slot, part.dtype, lambda whole: pack(whole[:, begin:end]))
        return Weight(pointer, in_channels, out_channels, (kernel[0], kernel[1]), stride)

    def renew(self, slot: int, dtype: torch.dtype, function: Callable[[Tensor], Tensor]) -> None:
        """Replace an argument in every call by the result of `function` for it."""
        self.prepare[slot] = function
        self.types[slot] = (dtype, True)

    def result(self, size: Size) -> Image:
        """The call's result; its pixels are padded to whole vectors if the caller accepts that."""
        stride = pixel_stride(size[1], self.padded)
        self.out = Allocation(size, self.dtype, self.padded)
        return self._own(len(self.sources), size, strides_of(size, stride), 0, stride)

    def labels(self, size: tuple[int, ...]) -> Pointer:
        """The call's result: one map of labels, or two of bytes."""
        self.out = Allocation(size, torch.uint8)
        slot = len(self.sources)
        self.types[slot] = (torch.uint8, True)
        return Pointer(slot)

    def scratch(self, batch: int, channels: int, height: int, width: int) -> Image:
        """An image of the program's own, padded."""
        size = (batch, channels, height, width)
        stride = pixel_stride(channels, True)
        offset = self._scratch_elements
        # Every image begins at a multiple of 256 bytes.
        self._scratch_elements += round_up(batch * height * width * stride, 256 // self.itemsize)
        return self._own(len(self.sources) + 1, size, strides_of(size, stride), offset, stride)

    def side_by_side(self, size: Size, widths: Sequence[int]) -> list[Image]:
        """Parts of one scratch image, `widths` channels each, all starting at whole vectors."""
        batch, _, height, width = size
        begins = [0]
        for channels in widths:
            begins.append(begins[-1] + round_up(channels, LANES))
        whole = self.scratch(batch, begins[-1], height, width)
        return [
            whole.part(begin, channels, round_up(channels, LANES))
            for begin, channels in zip(begins, widths, strict=False)
        ]

    def _own(self, slot: int, size: Size, strides: Size, offset: int, stride: int) -> Image:
        self.types[slot] = (self.dtype, True)
        n, c, h, w = (0 if side == 1 else s for side, s in zip(size, strides, strict=True))
        return Image(slot, size, (n, c, h, w), offset, self.itemsize, True, stride)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        work: Work,
        label: str,
        problem: Problem | None = None,
        config: Config | None = None,
    ) -> None:
        """Add a launch; its arguments by name, in any order."""
        order = {name: arguments[name] for name in kernel.arg_names}
        assert len(order) == len(arguments), set(arguments) - set(order)
        options = (config or ELEMENTWISE).options(self.device)
        self.launches.append(Launch(kernel, grid, order, options, work, label, problem))

    # --- running ---------------------------------------------------------------------------------

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Launch everything on the current stream of the tensors' device; return the result."""
        place = tensors[0].device
        if recorder.programs is not None:
            assert self.out is not None
            # A copy, because the cached plan must not keep a call's tensors alive.
            recorded = copy.copy(self)
            recorded.inputs = list(tensors)
            recorder.programs.append(recorded)
            return self.out.allocate(place)
        filled = self.fill(tensors)
        with self.place(place):
            for launch in self.launches:
                launch(filled, self.device.interpreted)
        return filled[len(self.sources)]

    def fill(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all slots: the call's, prepared, the result, and scratch."""
        assert self.out is not None
        place = tensors[0].device
        filled = [x if isinstance(x, Tensor) else tensors[x] for x in self.sources]
        for slot, function in self.prepare.items():
            filled[slot] = function(filled[slot])
        filled.append(self.out.allocate(place))
        if self._scratch_elements:
            filled.append(torch.empty(self._scratch_elements, dtype=self.dtype, device=place))
        return filled

    def place(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Context to launch in: on the tensors' GPU, even if it is not the current one."""
        if self.device.interpreted:
            return interpreter_lock  # the interpreter supports one grid at a time
        if device.index == torch.cuda.current_device():
            return contextlib.nullcontext()
        return torch.cuda.device(device)


@dataclass(frozen=True)
class Weight:
    """A convolution's weight in the kernels' order: [taps][in_channels][stride].

    Output channels are adjacent, with `stride` elements from row to row and zeros after the last.
    """

    pointer: Pointer
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


def tf32_requested() -> bool:
    """True if the user allows PyTorch's matrix products to round to TF32; the default is no."""
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() != "highest"
    if precision == "none":  # then the older setting decides
        precision = getattr(torch.backends, "fp32_precision", "ieee")
    return precision == "tf32"


# --- cache ----------------------------------------------------------------------------------------

MOST_PROGRAMS = 1024  # of one process; a network has 30 per size
_programs: dict[Any, Program] = {}
_programs_lock = threading.Lock()


def key_of(value: Any) -> Any:
    """The properties of a call's argument that a program depends on."""
    if isinstance(value, Tensor):
        # The address itself, too: the compiler is told whether whole vectors can be loaded from it.
        alignment = (value.data_ptr() % BYTES == 0, is_aligned(value))
        return value.shape, value.stride(), value.dtype, value.device, alignment
    return tuple(map(key_of, value)) if isinstance(value, list | tuple) else value


def planned(plan: Callable[..., None]) -> Callable[..., Tensor]:
    """Make an operator from a function that plans it; the operator has the function's name.

    Args:
        plan: function that adds launches to a program. It takes the program, the size of the
            result, and the arguments of the operator's schema by name, with an :class:`Argument`
            for each tensor. It is called once for all calls that only differ in the values of their
            tensors, which were checked before.

    Returns:
        A function of the operator's arguments and of `padded`: True if pixels of the result may be
        padded to whole vectors.
    """
    row = OPERATORS[plan.__name__]
    defaults = defaults_of(row.reference)

    def make(call: dict[str, Any], given: list[Tensor], padded: bool) -> Program:
        size = row.check(**call)
        program = Program(row.name, given[0].device, row.dtype(call), padded)
        program.spans = [span(tensor) for tensor in given]
        index = iter(range(len(given)))

        def described(value: Any) -> Any:
            if isinstance(value, Tensor):
                return Argument(next(index), value)
            return [described(x) for x in value] if isinstance(value, list | tuple) else value

        plan(program, size, **{name: described(call[name]) for name in row.names})
        return program

    def operator(*arguments: Any, padded: bool = False, **keywords: Any) -> Tensor:
        call = {**defaults, **row.bind(arguments, keywords)}
        padded = padded and row.multiplies
        given = [tensor for name in row.names for tensor in tensors_of(call[name])]
        key = (
            row.name, padded, assumption.device, tf32_requested(),
            *(key_of(call[name]) for name in row.names),
        )  # fmt: skip
        program = None if overridden() else _programs.get(key)
        # If a tensor has lost its memory, the checks say which.
        if program is None or not all(map(holds, given, program.spans)):
            program = make(call, given, padded)
            if not overridden():  # while overridden, no program is cached
                with _programs_lock:
                    if len(_programs) >= MOST_PROGRAMS:
                        # A caller with new sizes in every call must not fill the memory.
                        del _programs[next(iter(_programs))]
                    _programs[key] = program
        return program.run(given)

    return operator


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of an argument: itself, or those in its list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [x for x in values if isinstance(x, Tensor)]


def forget_programs() -> None:
    """Plan again from now on, with the configurations of that time."""
    with _programs_lock:
        _programs.clear()


# --- recording ------------------------------------------------------------------------------------


class Recorder(threading.local):
    """The list in which programs are recorded instead of being run, if there is one."""

    programs: list[Program] | None = None


recorder = Recorder()


@contextlib.contextmanager
def recording() -> Iterator[list[Program]]:
    """Collect the programs of the calls inside, which compute nothing: their results are invalid.

    For reports: the launches of a network can be determined without a GPU.
    """
    before, recorder.programs = recorder.programs, []
    try:
        yield recorder.programs
    finally:
        recorder.programs = before
