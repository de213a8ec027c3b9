"""What one call of an operator launches: planned once per shape, then run from a cache.

A :class:`Program` is made from the shapes, strides and types of a call's tensors alone, and holds
everything but their addresses: which kernels, over which grid, with which scalars, where scratch
lies. Running it is one lookup, at most two allocations, and the launches.

Tensors are kept by number (a *slot*): first the call's arguments, then the result, then scratch.
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

from fassd_kernels.checks import holds, span
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
        if len(self.size) != 4:
            return torch.empty(self.size, dtype=self.dtype, device=device)
        return empty_image(self.size, self.dtype, device, self.padded)


class Program:
    """The launches of one call, and the memory they need."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, padded: bool) -> None:
        self.name = name
        self.dtype = dtype
        self.padded = padded
        self.device: Device = describe_device(device)
        self.tf32 = dtype == torch.float32 and tf32_requested()
        self.launches: list[Launch] = []
        self.arguments = 0
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

    def argument(self, tensor: Tensor) -> int:
        """The slot of the next tensor of the call."""
        self.types[self.arguments] = (tensor.dtype, tensor.data_ptr() % BYTES == 0)
        self.arguments += 1
        return self.arguments - 1

    def image(self, tensor: Tensor) -> Image:
        return image_of(self.argument(tensor), tensor)

    def vector(self, tensor: Tensor | None) -> Pointer | None:
        """A vector of the call, or None; made contiguous when the call comes if it is not."""
        if tensor is None:
            return None
        slot = self.argument(tensor)
        if not tensor.is_contiguous():
            self.renew(slot, tensor.dtype, Tensor.contiguous)
        return Pointer(slot)

    def need(self, tensor: Tensor) -> Pointer:
        """A vector that has to be there."""
        pointer = self.vector(tensor)
        assert pointer is not None
        return pointer

    def weights(
        self,
        op: str,
        weights: Sequence[Tensor],
        packed: Sequence[Tensor] | None,
        biases: Sequence[Tensor | None],
    ) -> tuple[list[Weight], list[Pointer | None]]:
        """The weights and biases of a module, taken up in the order of :func:`interleave`."""
        kernels, vectors = [], []
        packs = packed if packed is not None else [None] * len(weights)
        for i, (weight, given, bias) in enumerate(zip(weights, packs, biases, strict=True)):
            check_packed_weight(op, f"weights[{i}]", weight, given)
            kernels.append(self.weight(weight, given))
            vectors.append(self.vector(bias))
        return kernels, vectors

    def weight(
        self, weight: Tensor, packed: Tensor | None, begin: int = 0, end: int | None = None
    ) -> Weight:
        """A weight of the call, as it came packed, or packed when the call comes.

        `begin` and `end` choose input channels, of a 1x1; `packed` is then of these alone.
        """
        out_channels, in_channels, height, width = weight.shape
        end = in_channels if end is None else end
        kernel = (height, width)
        slot = self.argument(weight)
        given = None if packed is None else self.argument(packed)
        if given is not None and packed is not None and packed.numel() > 0:
            stride = round_up(out_channels, OUT_CHANNELS)
            return Weight(Pointer(given), end - begin, out_channels, kernel, stride)
        if out_channels % OUT_CHANNELS == 0 and weight.permute(2, 3, 1, 0).is_contiguous():
            # Folded weights lie like this: rows of one input channel, as packed ones.
            pointer = Pointer(slot, begin * out_channels)
            return Weight(pointer, end - begin, out_channels, kernel, out_channels)
        self.renew(slot, weight.dtype, lambda whole: pack(whole[:, begin:end]))
        stride = round_up(out_channels, OUT_CHANNELS)
        return Weight(Pointer(slot), end - begin, out_channels, kernel, stride)

    def renew(self, slot: int, dtype: torch.dtype, function: Callable[[Tensor], Tensor]) -> None:
        """Replace an argument at every call by what `function` makes of it."""
        self.prepare[slot] = function
        self.types[slot] = (dtype, True)

    def result(self, size: Size) -> Image:
        """The call's result; its pixels are padded to whole vectors if the caller takes that."""
        stride = pixel_stride(size[1], self.padded)
        self.out = Allocation(size, self.dtype, self.padded)
        return self._own(self.arguments, size, strides_of(size, stride), 0, stride)

    def labels(self, size: tuple[int, int, int]) -> Pointer:
        """The call's result, a map of labels."""
        self.out = Allocation(size, torch.uint8)
        self.types[self.arguments] = (torch.uint8, True)
        return Pointer(self.arguments)

    def scratch(self, batch: int, channels: int, height: int, width: int) -> Image:
        """An image of the program's own, padded."""
        size = (batch, channels, height, width)
        stride = pixel_stride(channels, True)
        offset = self._scratch_elements
        # Every image begins at a multiple of 256 bytes.
        self._scratch_elements += round_up(batch * height * width * stride, 256 // self.itemsize)
        return self._own(self.arguments + 1, size, strides_of(size, stride), offset, stride)

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
        return filled[self.arguments]

    def fill(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all slots: the call's, made ready, the result, and scratch."""
        assert self.out is not None
        place = tensors[0].device
        filled = list(tensors)
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


def key_of(tensor: Tensor | None) -> Any:
    """What a program depends on in a tensor."""
    if tensor is None:
        return None
    # The address itself too: the compiler is told of it, be there room for whole vectors or not.
    address = tensor.data_ptr() % BYTES == 0
    alignment = (address, is_aligned(tensor))
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, alignment


def cached(
    name: str,
    tensors: Sequence[Tensor | None],
    settings: tuple[Any, ...],
    padded: bool,
    plan: Callable[[Program], None],
) -> Tensor:
    """Run the program of a call, planning it if a call like this was never seen.

    Args:
        name: of the operator.
        tensors: the arguments, in the order in which `plan` takes them up.
        settings: all else that the plan depends on.
        padded: whether pixels of the result may be padded to whole vectors.
        plan: fills a program in, and checks the call.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    key = (
        name, settings, padded, assumption.device, tf32_requested(),
        tuple(map(key_of, tensors)),
    )  # fmt: skip
    program = None if overridden() else _programs.get(key)
    # Where one has lost its memory, the plan's checks say which.
    if program is None or not all(map(holds, given, program.spans)):
        program = Program(name, given[0].device, given[0].dtype, padded)
        program.spans = [span(tensor) for tensor in given]
        plan(program)
        if overridden():  # somebody tries a configuration out
            return program.run(given)
        with _programs_lock:
            if len(_programs) >= MOST_PROGRAMS:
                # Whoever feeds a new size with every call must not fill the memory with plans.
                del _programs[next(iter(_programs))]
            _programs[key] = program
    return program.run(given)


def interleave(
    weights: Sequence[Tensor],
    packed: Sequence[Tensor] | None,
    biases: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """The tensors of a module in the order in which a program takes them up.

    Lists of unequal lengths are for the operator's check to refuse: nothing is left out here.
    """
    lists = [weights, packed or (), biases or ()]
    longest = max(map(len, lists))
    return [x[i] if i < len(x) else None for i in range(longest) for x in lists]


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
