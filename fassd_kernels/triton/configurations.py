"""Tile sizes: candidates, the cost model that picks one, and tuned tables that override it.

A configuration is looked up by everything that its speed depends on (:class:`Problem`: kernel,
shape, dilation, type, ...). Tables are JSON files by GPU, ``configs/<gpu name>.json``: first those
of the package, then the user's own in the cache folder, which ``python -m fassd_kernels.tune``
writes. For problems in no table, a model of bytes, operations and waves picks from
:data:`CANDIDATES`, so that there is a reasonable choice on every GPU, and never an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from fassd.models.replacing import replacing
from fassd_kernels.triton.device import Device


@dataclass(frozen=True)
class Config:
    """The division of a kernel's work into tiles.

    Attributes:
        block_m: number of pixels of a tile.
        block_n: number of output channels of a tile.
        block_k: number of input channels of a step.
        num_warps: number of warps of a program.
        num_stages: number of stages of Triton's pipelining of loads; 1 for none.
        block_middle: number of channels of a step between the convolutions of an asymmetric pair.
        recompute: 1 computes the first of the pair again for each tap of the second, even if its
            values could be exchanged between positions.
        max_registers: maximum number of registers of a thread; 0 leaves it to the assembler, which
            spills a few bytes in places to improve occupancy.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1
    block_middle: int = 0
    recompute: int = 0
    max_registers: int = 0

    def options(self, device: Device) -> dict[str, int]:
        """Options for Triton besides the kernel's own constants."""
        options = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,  # the default depends on Triton's version
        }
        if self.max_registers and device.backend == "cuda":
            options["maxnreg"] = self.max_registers
        return options


@dataclass(frozen=True)
class Problem:
    """Everything that determines the choice of a configuration; the key of a table.

    Attributes:
        family: ``spatial`` (a 3x3), ``pointwise`` (three taps or one), or ``asymmetric``.
        pixels: number of pixels of the result, over all pictures.
        width: number of pixels in a row of the result.
        in_channels: number of channels of every input of the virtual concatenation.
        out_channels: number of channels of the result.
        middle: number of channels between the convolutions of an asymmetric pair, otherwise 0.
        taps: number of taps that reach the picture.
        dilation: vertical and horizontal dilation.
        itemsize: bytes of a value.
        dtype: dtype of the images.
        registers: True if inputs pass through registers before they are multiplied: they have a
            prologue, or lanes to clear.
        narrow: True if values are loaded one by one, because of the alignment of their addresses.
        extra: other properties that change the kernel: residual, pooling, copies.
    """

    family: str
    pixels: int
    width: int
    in_channels: tuple[int, ...]
    out_channels: int
    middle: int
    taps: int
    dilation: tuple[int, int]
    dtype: torch.dtype
    registers: bool = False
    narrow: bool = False
    extra: str = ""

    @property
    def key(self) -> str:
        """The problem as a readable key of a table."""
        channels = "+".join(map(str, self.in_channels))
        middle = f">{self.middle}" if self.middle else ""
        dtype = str(self.dtype).removeprefix("torch.")
        flags = ("registers" if self.registers else "", "narrow" if self.narrow else "")
        notes = ",".join(filter(None, (self.extra, *flags)))
        return (
            f"{self.family} {self.pixels}px/{self.width} {channels}{middle}>{self.out_channels} "
            f"taps={self.taps} dilation={self.dilation[0]}x{self.dilation[1]} {dtype}"
            f"{' ' + notes if notes else ''}"
        )

    @property
    def is_half(self) -> bool:
        return self.dtype.itemsize == 2


def join_notes(*notes: str | object) -> str:
    """The notes that are not empty, as a problem's `extra`."""
    return "+".join(note for note in notes if isinstance(note, str) and note)


# Configurations among which the model picks, by family and width of the type, and which `tune`
# measures. Every one is compiled ahead of time for every architecture in the tests; none spills.
#
# All taps of a chunk are in flight at the same time, so a 3x3 uses thin chunks; the widths of the
# networks (10 to 118, most of them below 64) call for narrow tiles.
HALF_SPATIAL = (
    Config(128, 16, 16, 4),
    Config(128, 32, 16, 4),
    Config(64, 32, 16, 4),
    Config(64, 64, 16, 4),
    Config(128, 64, 16, 8),
    Config(64, 128, 16, 8),
)
HALF_POINTWISE = (
    Config(64, 32, 32, 4),
    Config(64, 64, 32, 4),
    Config(128, 64, 32, 8),
    Config(128, 128, 32, 8),
)
FLOAT_SPATIAL = (
    Config(128, 16, 16, 8),
    Config(64, 32, 16, 4),
    Config(64, 64, 16, 8),
)
FLOAT_POINTWISE = (
    Config(64, 32, 16, 4, max_registers=255),
    Config(64, 64, 16, 8, max_registers=255),
)
HALF_ASYMMETRIC = (
    Config(64, 64, 16, 4, block_middle=16),
    Config(128, 64, 16, 8, block_middle=16),
    Config(128, 32, 16, 8, block_middle=16),
    Config(64, 64, 32, 8, block_middle=16, recompute=1, max_registers=255),
)
FLOAT_ASYMMETRIC = (
    Config(32, 32, 16, 4, block_middle=16, max_registers=255),
    Config(32, 32, 16, 4, block_middle=16, recompute=1, max_registers=255),
)
CANDIDATES: dict[tuple[str, bool], tuple[Config, ...]] = {
    ("spatial", True): HALF_SPATIAL,
    ("spatial", False): FLOAT_SPATIAL,
    ("pointwise", True): HALF_POINTWISE,
    ("pointwise", False): FLOAT_POINTWISE,
    ("asymmetric", True): HALF_ASYMMETRIC,
    ("asymmetric", False): FLOAT_ASYMMETRIC,
}
# For images whose channels cannot be loaded in vectors; an address for every value takes registers.
NARROW_ASYMMETRIC = Config(32, 32, 16, 4, block_middle=16, recompute=1, max_registers=255)
NARROW: dict[tuple[str, bool], Config] = {
    ("spatial", True): Config(64, 16, 16, 8),
    ("spatial", False): Config(32, 16, 16, 8),
    ("pointwise", True): Config(64, 32, 16, 4, max_registers=255),
    ("pointwise", False): Config(64, 32, 16, 4, max_registers=255),
    ("asymmetric", True): NARROW_ASYMMETRIC,
    ("asymmetric", False): NARROW_ASYMMETRIC,
}


# For Turing, whose tensor cores Triton does not use: halves are multiplied like float32 values.
HALF_WITHOUT_TENSOR_CORES: dict[str, tuple[Config, ...]] = {
    "spatial": (Config(64, 64, 16, 8), Config(32, 16, 16, 8)),
    "pointwise": FLOAT_POINTWISE,
    "asymmetric": FLOAT_ASYMMETRIC,
}


def candidates(problem: Problem, device: Device) -> list[Config]:
    """The configurations that can run a problem on a GPU, the model's choice first."""
    every = table_for(problem.family, problem.is_half, device)
    if problem.narrow:
        every = (NARROW[problem.family, problem.is_half],)
    usable = [config for config in every if is_usable(config, problem)]
    fitting = dict.fromkeys(fit(config, problem, device) for config in usable)
    return sorted(fitting, key=lambda config: predict(config, problem, device))


def table_for(family: str, half: bool, device: Device) -> tuple[Config, ...]:
    """The configurations of a family on a GPU."""
    if half and isinstance(device.arch, int) and device.arch < 80:
        return HALF_WITHOUT_TENSOR_CORES[family]
    return CANDIDATES[family, half]


def is_usable(config: Config, problem: Problem) -> bool:
    """True if the configuration suits the problem.

    For an asymmetric pair: if a row does not fit and its halo would take half of a tile, values
    cannot be exchanged between positions.
    """
    if problem.family == "pointwise":
        # The registers cannot hold four neighbours of each value of a wide tile.
        return "resized" not in problem.extra or config.block_n <= 64
    if problem.family != "asymmetric" or config.recompute:
        return True
    return problem.width <= config.block_m or 4 * problem.dilation[1] <= config.block_m


def choose(problem: Problem, device: Device) -> Config:
    """The configuration for a problem, from the tables or else from the model."""
    if problem.key in overrides.configs:
        return overrides.configs[problem.key]
    if device.interpreted:
        return for_interpreter(problem)
    found = table_of(device.name).get(problem.key)
    if found and is_runnable(found, problem, device):
        return found
    return candidates(problem, device)[0]


def is_runnable(config: Config, problem: Problem, device: Device) -> bool:
    """True if a table's configuration can run a problem: the table may have been edited by hand."""
    asymmetric = problem.family == "asymmetric"
    return (
        (config.block_middle >= 16) == asymmetric
        and config.recompute in (0, 1)
        and (config.max_registers == 0 or 64 <= config.max_registers <= 255)
        and is_usable(config, problem)
        and buffer_bytes(config, problem) * max(config.num_stages - 1, 1) <= device.shared
    )


def for_interpreter(problem: Problem) -> Config:
    """Few, large tiles, because a small one takes just as long: two or three along every axis."""

    def half(size: int, least: int, most: int = 1024) -> int:
        return min(most, max(least, 1 << max((size - 1).bit_length() - 1, 0)))

    return Config(
        half(problem.pixels, 16),
        half(problem.out_channels, 16),
        half(max(problem.in_channels), 16),
        block_middle=half(problem.middle, 16) if problem.middle else 0,
    )


# --- the model ------------------------------------------------------------------------------------

# A guide for choosing among candidates, not a clock: orders of magnitude from data sheets.
L2_PER_DRAM = 2.0  # ratio of the last cache's bandwidth to the memory's
EFFICIENCY = 0.4  # share of the data sheet's rate that small tiles reach
REGISTERS = 144  # registers of a thread, on average over the compiled kernels
ENOUGH_WARPS = 12  # warps on a multiprocessor that hide loads behind products
BUFFERS = 2  # buffers of pipelined loads: one to compute from, one to fill


def buffer_bytes(config: Config, problem: Problem) -> int:
    """Bytes of shared memory that the loads of one step need."""
    m, n, k = config.block_m, config.block_n, config.block_k
    if problem.family == "asymmetric":
        return k * (m + config.block_middle) * problem.dtype.itemsize
    return k * (m + n) * problem.taps * problem.dtype.itemsize


def stages(buffers: int, device: Device) -> int:
    """Triton's `num_stages` for that many buffers: before Hopper, one more than the buffers."""
    return buffers + int(not (isinstance(device.arch, int) and device.arch >= 90))


def fit(config: Config, problem: Problem, device: Device) -> Config:
    """A configuration with as many loads in flight as fit into the GPU's shared memory."""
    asymmetric = problem.family == "asymmetric"
    if problem.narrow or (asymmetric and not problem.is_half):
        return replace(config, num_stages=1)  # the addresses take all registers
    if asymmetric:
        return replace(config, num_stages=2)
    # The exchange between threads in the epilogue needs some of it.
    room = device.shared * 0.92 / buffer_bytes(config, problem)
    buffers = min(BUFFERS, int(room))
    return replace(config, num_stages=stages(buffers, device) if buffers else 1)


def resident(config: Config, problem: Problem, device: Device) -> int:
    """Number of programs that a multiprocessor runs at once."""
    shared = BUFFERS * buffer_bytes(config, problem)
    threads = 32 * config.num_warps
    limits = (device.shared // shared, 65536 // (REGISTERS * threads), 2048 // threads)
    return max(1, min(limits))


def predict(config: Config, problem: Problem, device: Device) -> float:
    """Predicted seconds of a launch: those of the multiprocessor with the most programs."""
    m, n, k = config.block_m, config.block_n, config.block_k
    columns = math.ceil(problem.out_channels / n)
    steps = sum(math.ceil(c / k) for c in problem.in_channels)
    if problem.family == "asymmetric":
        halo = 0 if problem.width <= m or config.recompute else problem.dilation[1]
        tiles = problem.pixels / problem.width * math.ceil(problem.width / (m - 2 * halo))
        if problem.width < m:
            tiles *= (1 << (problem.width - 1).bit_length()) / m
        middle, passes = config.block_middle, 3 if config.recompute else 1
        middles = math.ceil(problem.middle / middle)
        operations = middles * m * middle * 3 * (steps * k * passes + n)
        loaded = middles * 3 * (steps * k * (m + middle) * passes + middle * n)
        # Values are exchanged between positions lane by lane, at a sixteenth of the rate.
        operations += 0 if config.recompute else middles * m * middle * 2 * (m // 32) * 16
    else:
        tiles = math.ceil(problem.pixels / m)
        operations = m * n * k * steps * problem.taps
        loaded = k * (m + n) * steps * problem.taps
    share = math.ceil(tiles * columns / device.multiprocessors)  # programs of one multiprocessor
    rate = device.rates[0 if problem.is_half else 1] / 2 * EFFICIENCY  # multiply-adds
    compute = operations / rate
    memory = loaded * problem.dtype.itemsize / (device.bandwidth * L2_PER_DRAM)
    warps = min(share, resident(config, problem, device)) * config.num_warps
    hidden = min(1.0, warps / ENOUGH_WARPS)
    return share * device.multiprocessors * max(compute, memory) / hidden


# --- trying configurations out --------------------------------------------------------------------


class Overrides(threading.local):
    """Configurations that take precedence over tables and the model."""

    configs: Mapping[str, Config] = MappingProxyType({})


overrides = Overrides()


def overridden() -> bool:
    return bool(overrides.configs)


@contextlib.contextmanager
def overriding(configs: Mapping[str, Config]) -> Iterator[None]:
    """Use these configurations within the block, by the key of their problem."""
    before, overrides.configs = overrides.configs, configs
    try:
        yield
    finally:
        overrides.configs = before


# --- tables ---------------------------------------------------------------------------------------

SHIPPED = Path(__file__).with_name("configs")
FORMAT = 1


def file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def user_folder() -> Path:
    """The folder that `tune` writes to: ``$FASSD_KERNELS_CONFIGS``, or the user's cache folder."""
    if os.environ.get("FASSD_KERNELS_CONFIGS"):
        return Path(os.environ["FASSD_KERNELS_CONFIGS"])
    import platformdirs  # imported here, as the kernels only require PyTorch

    return platformdirs.user_cache_path("fassd_kernels", appauthor=False) / "configs"


@functools.cache
def table_of(gpu: str) -> dict[str, Config]:
    """Tuned configurations of a GPU by key; the user's own override the package's."""
    return {
        **existing_table(lambda: SHIPPED / file_name(gpu), read_table),
        **existing_table(lambda: user_folder() / file_name(gpu), read_table),
    }


Row = TypeVar("Row")


def existing_table(
    where: Callable[[], Path], read: Callable[[Path], dict[str, Row]]
) -> dict[str, Row]:
    """A table of measurements; empty if there is none, or none that may be read."""
    try:
        path = where()
        found = path.exists()
    except (ImportError, OSError, RuntimeError):  # no platformdirs, no home, or another user's
        return {}
    return read(path) if found else {}


def read_table(path: Path) -> dict[str, Config]:
    """The configurations of a table; none, with a warning, from an invalid file."""
    return read_rows(path, "configurations", "configurations", config_of, "the cost model picks")


def read_rows(
    path: Path, field: str, kind: str, parse: Callable[[str, Any], Row], instead: str
) -> dict[str, Row]:
    """The rows of a table of measurements; none, with a warning, from an invalid file.

    Args:
        path: path of the file.
        field: key of the rows in it.
        kind: kind of the table's rows, for the warning.
        parse: function that makes a row from its key and content; its AttributeError, ValueError or
            TypeError means that the content is invalid.
        instead: consequence of doing without the table, for the warning.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']}; expected {FORMAT}")
        return {key: parse(key, row) for key, row in content[field].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"fassd_kernels: {path} is not a table of {kind} ({error}); {instead} instead",
            RuntimeWarning,
            stacklevel=3,
        )
        return {}


def config_of(key: str, row: Any) -> Config:
    """The configuration of a table's row."""
    known = {field.name for field in fields(Config)}
    if set(row) != known or not all(isinstance(v, int) and v >= 0 for v in row.values()):
        raise ValueError(f"{key!r} is {row}; expected {', '.join(sorted(known))}")
    config = Config(**row)
    if not is_sane(config):
        raise ValueError(f"{key!r} is {row}; tiles and warps have to be powers of two")
    return config


def is_sane(config: Config) -> bool:
    """True if a configuration can be compiled: the table may have been edited by hand."""

    def power(value: int, least: int, most: int) -> bool:
        return least <= value <= most and value & (value - 1) == 0

    sides = (config.block_m, config.block_n, config.block_k)
    middle = config.block_middle == 0 or power(config.block_middle, 16, 1024)
    warps = power(config.num_warps, 1, 32) and 1 <= config.num_stages <= 8
    return all(power(side, 16, 1024) for side in sides) and middle and warps


def write_table(path: Path, gpu: str, table: dict[str, Config], facts: dict[str, str]) -> None:
    """Write a table, completely or not at all."""
    rows = {key: asdict(config) for key, config in sorted(table.items())}
    write_content(path, {"format": FORMAT, "gpu": gpu, **facts, "configurations": rows})
    table_of.cache_clear()


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, completely or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
