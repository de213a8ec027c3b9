"""The executor of PTX, from Python: modules, launches, settings, counts.

One process has one machine: what is loaded stays loaded, and settings hold for all that follows.
"""

from __future__ import annotations

import ctypes
import functools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ptx import build

ARRIVALS = ("early", "late", "random")
DEFAULTS = {
    "seed": 0,
    "arrival": "late",
    "races": False,
    "banks": False,
    "apart": False,
    "overlap": 0,
    "truncate_products": False,
    "capability": 90,
    "multiprocessors": 132,
    "most_instructions": 1 << 36,
}


class Fault(Exception):  # noqa: N818
    """What a kernel did wrong, with the line of the PTX, block, warp and lane."""


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.executor()))
    loaded.ptx_error.restype = ctypes.c_char_p
    loaded.ptx_set.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    loaded.ptx_register.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    loaded.ptx_unregister.argtypes = [ctypes.c_uint64]
    return loaded


def checked(result: int) -> None:
    if result:
        raise Fault(library().ptx_error().decode())


def change(**settings: Any) -> None:
    """Change settings, names and values as in `DEFAULTS`."""
    for name, value in settings.items():
        number = ARRIVALS.index(value) if name == "arrival" else int(value)
        checked(library().ptx_set(name.encode(), number))


def configure() -> None:
    """Change `DEFAULTS` as the environment says: PTX_SETTINGS="capability=86 races=1"."""
    for setting in os.environ["PTX_SETTINGS"].split():
        name, _, value = setting.partition("=")
        DEFAULTS[name] = value if name == "arrival" else int(value)
    change(**DEFAULTS)


@contextmanager
def settings(**changed: Any) -> Iterator[None]:
    """Other settings for a while; `DEFAULTS` afterwards."""
    try:
        change(**changed)
        yield
    finally:
        change(**DEFAULTS)


def load(name: str, text: str) -> None:
    """Add the kernels of a module; `name` is what errors call it.

    Raises:
        Fault: for what is no PTX, or newer than the executor knows.
    """
    checked(library().ptx_load(name.encode(), text.encode()))


def parameter(kernel: str, index: int) -> tuple[int, int] | None:
    """Offset and bytes of a parameter, None if there are fewer; of index -1, those of all.

    Raises:
        Fault: for a kernel that is not there or cannot be translated.
    """
    offset, size = ctypes.c_uint32(), ctypes.c_uint32()
    found = library().ptx_parameter(
        kernel.encode(), index, ctypes.byref(offset), ctypes.byref(size)
    )
    checked(found == -2)
    return None if found else (offset.value, size.value)


@contextmanager
def watched(*arrays: np.ndarray | torch.Tensor) -> Iterator[None]:
    """Memory that kernels may access, while this lasts."""
    places = [
        (x.ctypes.data, x.nbytes)
        if isinstance(x, np.ndarray)
        else (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        for x in arrays
    ]
    for address, size in places:
        library().ptx_register(address, size)
    try:
        yield
    finally:
        for address, _ in places:
            library().ptx_unregister(address)


def launch(
    kernel: str,
    *arguments: int | float | np.ndarray | torch.Tensor | bytes,
    grid: Sequence[int] = (1,),
    block: Sequence[int] = (32,),
    shared: int = 0,
    dependent: bool = False,
    wait: bool = True,
) -> None:
    """Run a kernel, to its end unless told not to wait for that.

    Args:
        kernel: its name in the PTX.
        arguments: one for each parameter; arrays and tensors as pointers to memory that is watched
            until the kernel has ended, bytes as they are.
        grid, block: sizes, of which trailing ones may be missing.
        shared: bytes of dynamic shared memory.
        dependent: a programmatic dependent launch.
        wait: until it has ended; otherwise the caller does, and watches the memory.
    Raises:
        Fault: for whatever is wrong.
    """
    total = parameter(kernel, -1)
    assert total is not None
    values = bytearray(total[1])
    arrays = []
    for index, argument in enumerate(arguments):
        place = parameter(kernel, index)
        if place is None:
            raise Fault(f"{kernel} has {index} parameters, {len(arguments)} arguments came")
        offset, size = place
        if isinstance(argument, (np.ndarray, torch.Tensor)):
            arrays.append(argument)
            pointer = (
                argument.ctypes.data if isinstance(argument, np.ndarray) else argument.data_ptr()
            )
            data = pointer.to_bytes(8, "little")
        elif isinstance(argument, bytes):
            data = argument
        elif isinstance(argument, float):
            data = np.float32(argument).tobytes() if size == 4 else np.float64(argument).tobytes()
        else:
            data = int(argument).to_bytes(size, "little", signed=argument < 0)
        if len(data) != size:
            raise Fault(f"parameter {index} of {kernel} has {size} bytes, {len(data)} came")
        values[offset : offset + size] = data
    sizes = [(ctypes.c_uint32 * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
    with watched(*(arrays if wait else ())):
        checked(
            library().ptx_launch(
                kernel.encode(),
                *sizes,
                ctypes.c_uint32(shared),
                bytes(values),
                ctypes.c_uint32(len(values)),
                int(dependent),
            )
        )
        if wait:
            synchronize()


def synchronize() -> None:
    """Wait until all launches have ended."""
    checked(library().ptx_synchronize())


@dataclass(frozen=True)
class Executed:
    """What was executed of one instruction.

    Attributes:
        kernel: the name of its kernel.
        launch: number of the launch, where the setting ``apart`` has each counted by itself.
        launches, blocks: of the kernel.
        line: in the PTX.
        opcode: with its modifiers.
        regions: functions of the source that it comes from, mangled, each inlined in the next;
            empty if that is the kernel. nvcc has to be told ``-lineinfo``.
        source_line: line of the source, 0 if it is not known.
        warps, lanes: that executed it.
        passes, least_passes: over the banks of shared memory, and without conflicts.
    """

    kernel: str
    launch: int
    launches: int
    blocks: int
    line: int
    opcode: str
    regions: tuple[str, ...]
    source_line: int
    warps: int
    lanes: int
    passes: int
    least_passes: int


def attributes_set() -> int:
    """How often a kernel's attributes were set, which no steady state does."""
    return int(library().ptx_attributes_set())


def dependent_launches() -> int:
    """How many kernels of host code were launched so that they may begin early."""
    return int(library().ptx_dependent_launches())


def carveout(kernel: str) -> int:
    """The percentage of shared memory that a kernel prefers; -1 where it is the driver's choice."""
    return int(library().ptx_carveout(kernel.encode()))


def counts() -> list[Executed]:
    """What was executed since the last call, or `forget_counts`, instruction by instruction."""
    with tempfile.NamedTemporaryFile("r", suffix=".tsv") as file:
        checked(library().ptx_counts(file.name.encode()))
        rows = [line.rstrip("\n").split("\t") for line in file]
    found = []
    for kernel, *row in rows:
        launch, launches, blocks, line = map(int, row[:4])
        regions = tuple(filter(None, row[5].split(",")))
        found.append(
            Executed(kernel, launch, launches, blocks, line, row[4], regions, *map(int, row[6:]))
        )
    return found


def forget_counts() -> None:
    library().ptx_forget_counts()


KINDS = {
    "tensor cores": ("mma", "wgmma"),
    "shared memory": ("ldmatrix", "stmatrix"),
    "copies": ("cp",),
    "control": ("bra", "bar", "barrier", "ret", "exit", "griddepcontrol", "mbarrier"),
    "predicates": ("setp", "selp"),
    "conversions": ("cvt", "cvta"),
}


def kind_of(opcode: str) -> str:
    """What an instruction is for, in a word or two."""
    name, *modifiers = opcode.split(".")
    for kind, names in KINDS.items():
        if name in names:
            return kind
    if name in ("ld", "st", "ldu", "atom", "red"):
        spaces = [
            word for word in modifiers if word.split("::")[0] in ("global", "shared", "local")
        ]
        return f"{spaces[0].split('::')[0] if spaces else modifiers[0]} memory"
    return (
        "floats"
        if modifiers
        and modifiers[-1][0] in "fb"
        and modifiers[-1] in ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64")
        else "integers"
    )


def by_kind(executed: Sequence[Executed]) -> Counter[str]:
    """Warp instructions by `kind_of`."""
    total: Counter[str] = Counter()
    for each in executed:
        total[kind_of(each.opcode)] += each.warps
    return total
