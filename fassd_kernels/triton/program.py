"""What one call of an operator launches: planned once per shape, then run from a cache.

A :class:`Program` is made from the shapes, strides and types of a call's tensors alone, and holds
everything but their addresses: which kernels, over which grid, with which scalars, where scratch
lies. Running it is one lookup, at most two allocations, and the launches.

Tensors are kept by number (a *slot*): first the call's arguments, in the order in which the plan
takes them up, then the result, then scratch.
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
# Of kernels that have nothing to choose: one value after the other.
ELEMENTWISE = Config(0, 0, 0, num_warps=4, num_stages=1)
interpreter_lock = threading.Lock()


@dataclass(frozen=True)
class Argument:
    """A tensor of a call that is planned, and its place among the call's tensors."""

    index: int
    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape


@dataclass(frozen=True)
class Pointer:
    """An argument of a kernel: a tensor's address, some elements on."""

    slot: int
    offset: int = 0


@dataclass(frozen=True)
class Work:
    """What a launch moves and computes at the least; the time model's input.

    Attributes:
        bytes: read and written, every tensor once.
        operations: multiplications and additions that reach the result.
        issued: those that are carried out, padded channels, pixels and recomputation included.
        loaded: bytes that the tiles load, all taps and all blocks of output channels counted.
    """

    bytes: int
    operations: int
    issued: int = 0
    loaded: int = 0


@dataclass
class Launch:
    """One kernel of a program.

    Attributes:
        kernel: the JIT function.
        grid: of its programs.
        arguments: by name, in the kernel's order: :class:`Pointer`, integers, None, tuples of
            these, and the constants.
        options: for Triton, such as ``num_warps``.
        work: for the time model.
        label: what it does, for reports.
        problem: what its configuration was chosen for; None where there is nothing to choose.
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
            # A compiled kernel takes all arguments in order, and needs no more looking up.
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
    """The launches of one call, and the memory they need."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, padded: bool) -> None:
        self.name = name
        self.dtype = dtype
        self.padded = padded
        self.device: Device = describe_device(device)
        self.tf32 = dtype == torch.float32 and self.device.has_tf32 and tf32_requested()
        self.launches: list[Launch] = []
        # Of the slots of arguments: which of the call's tensors, or a tensor of the plan's own.
        self.sources: list[int | Tensor] = []
        self.prepare: dict[int, Callable[[Tensor], Tensor]] = {}
        self.types: dict[int, tuple[torch.dtype, bool]] = {}  # dtype and alignment of each slot
        self.out: Allocation | None = None
        self.inputs: list[Tensor] = []  # of the call, where it was recorded
        self.spans: list[int] = []  # of the call's tensors
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
        """A vector of the call, or None; made contiguous when the call comes if it is not."""
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
        """The weights of a module, each beside what was packed for it."""
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
        """A weight of the call, as it came packed, or packed when the call comes.

        Args:
            name: what an error calls it.
            weight: O x I x kH x kW.
            packed: what :func:`pack` gave for it, or an empty tensor.
            begin, end: input channels to take, of a 1x1; `packed` is of these alone.

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
            # Folded weights lie like this: rows of one input channel, as packed ones.
            pointer = Pointer(self.argument(weight), begin * out_channels)
        else:
            pointer = Pointer(self.argument(weight))
            self.renew(pointer.slot, part.dtype, lambda whole: pack(whole[:, begin:end]))
        return Weight(pointer, in_channels, out_channels, (kernel[0], kernel[1]), stride)

    def renew(self, slot: int, dtype: torch.dtype, function: Callable[[Tensor], Tensor]) -> None:
        """Replace an argument at every call by what `function` makes of it."""
        self.prepare[slot] = function
        self.types[slot] = (dtype, True)

    def result(self, size: Size) -> Image:
        """The call's result; its pixels are padded to whole vectors if the caller takes that."""
        stride = pixel_stride(size[1], self.padded)
        self.out = Allocation(size, self.dtype, self.padded)
        return self._own(len(self.sources), size, strides_of(size, stride), 0, stride)

    def labels(self, size: tuple[int, ...]) -> Pointer:
        """The call's result, a map of labels or two of bytes."""
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
        """Parts of one scratch image, of so many channels each, all beginning at whole vectors."""
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
            # A copy: what is cached must not keep a call's tensors alive.
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
        """The tensors of all slots: the call's, made ready, the result, and scratch."""
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
        """Where to launch: on the tensors' GPU, be it the current one or not."""
        if self.device.interpreted:
            return interpreter_lock  # which knows one grid at a time
        if device.index == torch.cuda.current_device():
            return contextlib.nullcontext()
        return torch.cuda.device(device)


@dataclass(frozen=True)
class Weight:
    """A convolution's weight in the kernels' order: [taps][in_channels][stride].

    Output channels are adjacent, `stride` from row to row, zeros behind the last.
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
    """Whether the user lets PyTorch's matrix products round to TF32; PyTorch's default is no."""
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() != "highest"
    if precision == "none":  # as the setting above it says
        precision = getattr(torch.backends, "fp32_precision", "ieee")
    return precision == "tf32"


# --- cache ----------------------------------------------------------------------------------------

MOST_PROGRAMS = 1024  # of one process; a network has 30 per size
_programs: dict[Any, Program] = {}
_programs_lock = threading.Lock()


def key_of(value: Any) -> Any:
    """What a program depends on in an argument of its call."""
    if isinstance(value, Tensor):
        # The address itself too: the compiler is told of it, with room for whole vectors or not.
        alignment = (value.data_ptr() % BYTES == 0, is_aligned(value))
        return value.shape, value.stride(), value.dtype, value.device, alignment
    return tuple(map(key_of, value)) if isinstance(value, list | tuple) else value


def planned(plan: Callable[..., None]) -> Callable[..., Tensor]:
    """The operator that a function plans, whose name it has.

    Args:
        plan: fills a program in. Takes the program, the size of the result, and the arguments of
            the operator's schema by name, an :class:`Argument` for each tensor. Called once for
            all calls that differ in the values of their tensors alone, which were checked before.

    Returns:
        A function of the operator's arguments and of `padded`: whether pixels of the result may be
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
        # Where one has lost its memory, the checks say which.
        if program is None or not all(map(holds, given, program.spans)):
            program = make(call, given, padded)
            if not overridden():  # or somebody tries a configuration out
                with _programs_lock:
                    if len(_programs) >= MOST_PROGRAMS:
                        # A caller with new sizes in every call must not fill the memory.
                        del _programs[next(iter(_programs))]
                    _programs[key] = program
        return program.run(given)

    return operator


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of an argument: itself, or what its list holds of them."""
    values = value if isinstance(value, list | tuple) else [value]
    return [x for x in values if isinstance(x, Tensor)]


def forget_programs() -> None:
    """Plan anew from now on, with the configurations as they are by then."""
    with _programs_lock:
        _programs.clear()


# --- recording ------------------------------------------------------------------------------------


class Recorder(threading.local):
    """Where programs are written down in place of running, if anywhere."""

    programs: list[Program] | None = None


recorder = Recorder()


@contextlib.contextmanager
def recording() -> Iterator[list[Program]]:
    """Collect the programs of the calls inside, which then compute nothing: their results are junk.

    For reports: what a network would launch is known without a GPU.
    """
    before, recorder.programs = recorder.programs, []
    try:
        yield recorder.programs
    finally:
        recorder.programs = before
