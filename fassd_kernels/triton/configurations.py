"""Tile sizes: which there are, which a cost model picks, and which a tuned table overrides.

A configuration is looked up by everything that its speed depends on (:class:`Problem`: kernel,
shape, dilation, type, ...). Tables are JSON files by GPU, ``configs/<gpu name>.json``: those of the
package, then the user's own in the cache folder, which ``python -m fassd_kernels.tune`` writes. For
what no table has, a model of bytes, operations and waves picks from :data:`CANDIDATES`, so that
there is a sane choice on every GPU, and never an error.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from fassd_kernels.triton.device import Device


@dataclass(frozen=True)
class Config:
    """How a kernel is cut into tiles.

    Attributes:
        block_m: pixels of a tile.
        block_n: output channels of a tile.
        block_k: input channels of a step.
        num_warps: of a program.
        num_stages: loads in flight, the one being computed included.
        block_middle: channels between the two convolutions of an asymmetric pair, of a step.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 2
    block_middle: int = 0


@dataclass(frozen=True)
class Problem:
    """What a configuration is chosen for, and a table's key.

    Attributes:
        kernel: ``conv`` or ``asymmetric``.
        pixels: of the result, of all pictures.
        width: of a row of the result, in pixels.
        in_channels: of every input of the virtual concatenation.
        out_channels: of the result.
        middle: channels between the convolutions of an asymmetric pair, else 0.
        taps: that reach the picture.
        dilation: vertical, horizontal.
        itemsize: bytes of a value.
        dtype: of the images.
        registers: whether inputs go through registers before they are multiplied: a prologue, or
            lanes that have to be cleared.
        extra: whatever else makes another kernel: residual, pooling, copies.
    """

    kernel: str
    pixels: int
    width: int
    in_channels: tuple[int, ...]
    out_channels: int
    middle: int
    taps: int
    dilation: tuple[int, int]
    dtype: torch.dtype
    registers: bool = False
    extra: str = ""

    @property
    def key(self) -> str:
        """The problem as a table's key, readable."""
        channels = "+".join(map(str, self.in_channels))
        middle = f">{self.middle}" if self.middle else ""
        dtype = str(self.dtype).removeprefix("torch.")
        notes = ",".join(filter(None, (self.extra, "registers" if self.registers else "")))
        return (
            f"{self.kernel} {self.pixels}px/{self.width} {channels}{middle}>{self.out_channels} "
            f"taps={self.taps} dilation={self.dilation[0]}x{self.dilation[1]} {dtype}"
            f"{' ' + notes if notes else ''}"
        )

    @property
    def is_half(self) -> bool:
        return self.dtype.itemsize == 2


# What the model may pick, by kernel and width of the type, and what `tune` measures. Every one is
# compiled ahead of time for every architecture in the tests; none spills.
HALF_CONV = (
    Config(128, 16, 16, 4, 3),
    Config(128, 32, 16, 4, 3),
    Config(64, 32, 32, 4, 3),
    Config(64, 64, 32, 4, 2),
    Config(128, 64, 32, 8, 2),
    Config(64, 128, 32, 8, 2),
)
FLOAT_CONV = (
    Config(64, 16, 16, 4, 2),
    Config(64, 32, 16, 4, 2),
    Config(64, 64, 16, 8, 2),
)
HALF_ASYMMETRIC = (
    Config(64, 128, 32, 4, 2, 32),
    Config(128, 64, 32, 4, 2, 32),
    Config(128, 32, 32, 4, 2, 32),
    Config(256, 64, 32, 8, 2, 32),
    Config(512, 32, 32, 8, 2, 32),
)
FLOAT_ASYMMETRIC = (
    Config(64, 64, 16, 8, 2, 16),
    Config(128, 32, 16, 8, 2, 16),
    Config(256, 32, 16, 8, 2, 16),
)
CANDIDATES: dict[tuple[str, bool], tuple[Config, ...]] = {
    ("conv", True): HALF_CONV,
    ("conv", False): FLOAT_CONV,
    ("asymmetric", True): HALF_ASYMMETRIC,
    ("asymmetric", False): FLOAT_ASYMMETRIC,
}


def candidates(problem: Problem, device: Device) -> list[Config]:
    """The configurations that can run a problem on a GPU, the model's choice first."""
    every = CANDIDATES[problem.kernel, problem.is_half]
    fitting = [fit(config, problem, device) for config in every]
    return sorted(dict.fromkeys(fitting), key=lambda config: predict(config, problem, device))


def choose(problem: Problem, device: Device) -> Config:
    """The configuration for a problem: the tables', or the model's choice."""
    if device.interpreted:
        return for_interpreter(problem)
    found = table_of(device.name).get(problem.key)
    return found or candidates(problem, device)[0]


def for_interpreter(problem: Problem) -> Config:
    """Few, large tiles, since it takes as long for a small one: two or three along every axis."""

    def half(size: int, least: int, most: int = 1024) -> int:
        return min(most, max(least, 1 << max((size - 1).bit_length() - 1, 0)))

    return Config(
        half(problem.pixels, 16),
        half(problem.out_channels, 16),
        half(max(problem.in_channels), 16),
        block_middle=half(problem.middle, 16) if problem.middle else 0,
    )


# --- the model ------------------------------------------------------------------------------------

L2_PER_DRAM = 2.5  # bandwidth of the last cache over the memory's; H100: 5.5 to 7 TB/s over 3.35
OCCUPANCY = 3  # programs that a multiprocessor overlaps, in the mean, with 4 warps each
EFFICIENCY = 0.45  # of the data sheet's rate, that small tiles reach


def shared_memory(config: Config, problem: Problem) -> int:
    """Bytes of shared memory that the pipelined loads of one program take, roughly."""
    values = config.block_m * config.block_k + config.block_k * config.block_n
    taps = problem.taps
    if problem.kernel == "asymmetric":
        values = config.block_k * (config.block_m + config.block_middle)
        rest = config.block_middle * (config.block_m + config.block_n)
        return (values * config.num_stages + rest) * problem.dtype.itemsize
    return values * taps * config.num_stages * problem.dtype.itemsize


def fit(config: Config, problem: Problem, device: Device) -> Config:
    """A configuration with as many loads in flight as the GPU's shared memory takes."""
    stages = config.num_stages
    while stages > 1:
        tried = Config(**{**asdict(config), "num_stages": stages})
        if shared_memory(tried, problem) <= device.shared * 0.9:
            return tried
        stages -= 1
    return Config(**{**asdict(config), "num_stages": 1})


def predict(config: Config, problem: Problem, device: Device) -> float:
    """Seconds that a launch may take: what bounds it, times the waves that are not full."""
    m, n, k = config.block_m, config.block_n, config.block_k
    half = problem.is_half
    rate = device.rates[0 if half else 1] / 2 * EFFICIENCY  # multiply-adds
    bandwidth = device.bandwidth * L2_PER_DRAM
    columns = math.ceil(problem.out_channels / n)
    steps = sum(math.ceil(c / k) for c in problem.in_channels)
    if problem.kernel == "asymmetric":
        halo = 0 if problem.width <= m else 2 * problem.dilation[1]
        span = m - halo if m > 2 * halo else m / 3
        tiles = problem.pixels / problem.width * math.ceil(problem.width / max(span, 1))
        middles = math.ceil(problem.middle / config.block_middle)
        operations = middles * m * config.block_middle * (3 * steps * k + 3 * n)
        loaded = middles * 3 * (steps * k * (m + config.block_middle) + config.block_middle * n)
    else:
        tiles = math.ceil(problem.pixels / m)
        operations = m * n * k * steps * problem.taps
        loaded = k * (m + n) * steps * problem.taps
    programs = tiles * columns
    # The last wave costs as much as a full one.
    slots = device.multiprocessors * max(1, OCCUPANCY * 4 // config.num_warps)
    waves = math.ceil(programs / slots)
    per_slot = 1 / slots
    compute = operations / (rate * per_slot)
    memory = loaded * problem.dtype.itemsize / (bandwidth * per_slot)
    # Below one program for each multiprocessor, the others idle and each runs no faster.
    return waves * max(compute, memory)


# --- tables ---------------------------------------------------------------------------------------

SHIPPED = Path(__file__).with_name("configs")
FORMAT = 1


def file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def user_folder() -> Path:
    """Where `tune` writes: ``$FASSD_KERNELS_CONFIGS``, or the user's cache folder."""
    given = os.environ.get("FASSD_KERNELS_CONFIGS")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "fassd_kernels" / "configs"


@functools.cache
def table_of(gpu: str) -> dict[str, Config]:
    """Tuned configurations of a GPU by key; the user's own override the package's."""
    table: dict[str, Config] = {}
    for folder in (SHIPPED, user_folder()):
        path = folder / file_name(gpu)
        if path.exists():
            table.update(read_table(path))
    return table


def read_table(path: Path) -> dict[str, Config]:
    """A table's configurations; of a file that is none, nothing, and a warning says so."""
    known = {field.name for field in fields(Config)}
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']}; expected {FORMAT}")
        rows: dict[str, dict[str, int]] = content["configurations"]
        for key, row in rows.items():
            if set(row) != known or not all(isinstance(v, int) and v >= 0 for v in row.values()):
                raise ValueError(f"{key!r} is {row}; expected {', '.join(sorted(known))}")
        return {key: Config(**row) for key, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"fassd_kernels: {path} is not a table of configurations ({error}); "
            "the cost model picks instead",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}


def write_table(path: Path, gpu: str, table: dict[str, Config], facts: dict[str, str]) -> None:
    """Write a table under a temporary name and move it into place."""
    rows = {key: asdict(config) for key, config in sorted(table.items())}
    content = {"format": FORMAT, "gpu": gpu, **facts, "configurations": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    table_of.cache_clear()


def every_configuration() -> Iterator[tuple[str, bool, Config]]:
    """Kernel, whether of 16 bits, configuration: all that the model can pick."""
    for (kernel, half), configs in CANDIDATES.items():
        for config in configs:
            yield kernel, half, config
