"""The time model of the CUDA backend: what a network launches, and what each launch should take.

No GPU is needed. Launches and their shapes are those that the Triton backend records, which both
backends share; how each is cut into blocks is the very plan that the CUDA kernels are launched with
(``csrc/cuda/plan.cpp``), asked for a GPU of given limits.

The *floor* of a launch is what no kernel can go below: every tensor moved once at the memory's
full bandwidth, or every operation that reaches the result at the full rate, whichever takes longer.
The *prediction* is the longest of the plan's clocks, the bytes at the bandwidth that a copy
reaches, and the operations after padding at the full rate; and the gap to the next launch of a
graph.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from fassd_kernels.backends import cpu_reason
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import Device, describe_gpu

if TYPE_CHECKING:
    from fassd.bench.costs.triton import Planned
    from fassd_kernels.modules.network import Output

HALF, TF32, FLOAT32 = range(3)  # Arithmetic in csrc/cuda/plan.h
# Of csrc/cuda/plan.h and asymmetric_conv.cuh: clocks from launch to launch, branches of one launch.
LAUNCH_GAP_CYCLES = 2500
MOST_PAIRS = 4
# What the tensor cores of a T4 do; the table of GPUs has what Triton reaches without them.
TENSOR_RATES = {"Tesla T4": 65e12}
# Of one multiprocessor and clock, to tell what a launch is bound by.
SHARED_BYTES = 128
CACHE_BYTES = 32
# A launch that takes so many times what its busiest part would need waits most of the time.
WAITING = 1.5

# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a plan depends on in a GPU: DeviceLimits in ``csrc/cuda/plan.h``."""

    multiprocessors: int
    shared_bytes: int
    capability: int


@dataclass(frozen=True)
class Plan:
    """How a convolution, or a pair, is cut into blocks; the numbers of ``plan_operator.h``.

    Attributes:
        warps, m_tiles, n_tiles: the kernel's variant; a tile has ``8 * n_tiles`` channels.
        tile_width, tile_height: pixels of a tile.
        taps: that reach the picture.
        chunk: input channels at a time.
        stages: chunks in shared memory at once.
        shared_bytes: of shared memory, that a block takes.
        blocks: of the launch.
        resident: blocks of a multiprocessor at once.
        products: multiply-accumulates of a block, padding included.
        shared_read, loaded, stored: bytes of a block: that it reads in shared memory, asks of the
            last cache, and writes.
        cycles: of the launch.
    """

    warps: int
    m_tiles: int
    n_tiles: int
    tile_width: int
    tile_height: int
    taps: int
    chunk: int
    stages: int
    shared_bytes: int
    blocks: int
    resident: int
    products: float
    shared_read: float
    loaded: float
    stored: float
    cycles: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Plan:
        names = [field.name for field in fields(cls)]
        values: list[Any] = [*map(int, numbers[:11]), *numbers[11:16]]
        return cls(**dict(zip(names, values, strict=True)))

    @property
    def tile(self) -> str:
        pixels = self.tile_width * self.tile_height
        stages = f"{self.stages} stage{'s' if self.stages > 1 else ''}"
        return f"{pixels} px x {8 * self.n_tiles} ch, chunk {self.chunk}, {stages}"


@dataclass(frozen=True)
class Convolution:
    """One convolution: ConvolutionShape in ``csrc/cuda/plan.h``; pairs are (vertical, horizontal).

    `out_size` is that of the result before pooling.
    """

    batch: int
    size: tuple[int, int]
    channels: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, int]
    arithmetic: int
    out_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pool: int = 1

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - immutable, and a network repeats its shapes
    def plan(self, limits: Limits) -> Plan:
        shape = [
            self.batch, *self.size, *self.out_size, self.out_channels, *self.kernel, *self.stride,
            *self.dilation, self.pool, self.arithmetic,
        ]  # fmt: skip
        numbers = torch.ops.fassd_kernels.convolution_plan(shape, self.channels, gpu_of(limits))
        return Plan.of(numbers.tolist())


@dataclass(frozen=True)
class Pair:
    """A 3x1 and a 1x3, or with `single` a 1x1 beside such: PairShape in ``csrc/cuda/plan.h``."""

    batch: int
    size: tuple[int, int]
    in_channels: int
    middle_channels: int
    out_channels: int
    dilation: int
    single: bool
    arithmetic: int

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as above
    def plan(self, limits: Limits) -> Plan | None:
        """None where it cannot be one kernel."""
        shape = [
            self.batch, *self.size, self.in_channels, self.middle_channels, self.out_channels,
            self.dilation, int(self.single), self.arithmetic,
        ]  # fmt: skip
        numbers = torch.ops.fassd_kernels.pair_plan(shape, gpu_of(limits)).tolist()
        return Plan.of(numbers) if numbers else None

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """What it is made of."""

        def conv(
            channels: int, out: int, kernel: tuple[int, int], dilation: tuple[int, int]
        ) -> Convolution:
            return Convolution(
                self.batch, self.size, (channels,), out, kernel, self.arithmetic, self.size,
                dilation=dilation,
            )  # fmt: skip

        if self.single:
            return (conv(self.in_channels, self.out_channels, (1, 1), (1, 1)),)
        return (
            conv(self.in_channels, self.middle_channels, (3, 1), (self.dilation, 1)),
            conv(self.middle_channels, self.out_channels, (1, 3), (1, self.dilation)),
        )

    @property
    def pixels(self) -> int:
        return self.batch * self.size[0] * self.size[1]

    @property
    def operations(self) -> tuple[int, ...]:
        """Of each convolution, multiplications and additions that touch no padding."""
        height, width = self.size
        if self.single:
            return (2 * self.pixels * self.in_channels * self.out_channels,)
        rows = height + 2 * max(height - self.dilation, 0)
        columns = width + 2 * max(width - self.dilation, 0)
        return (
            2 * self.batch * rows * width * self.in_channels * self.middle_channels,
            2 * self.batch * columns * height * self.middle_channels * self.out_channels,
        )


@dataclass(frozen=True)
class Couple:
    """Two layers of a HarDBlock: CoupleShape in ``csrc/cuda/plan.h``.

    `channels` are those of the inputs that the even layer reads behind the odd one's result; the
    odd layer reads the first of them.
    """

    batch: int
    size: tuple[int, int]
    channels: tuple[int, ...]
    odd_channels: int
    even_channels: int
    arithmetic: int

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as above
    def plan(self, limits: Limits) -> Plan | None:
        """None where they cannot be one kernel."""
        shape = [
            self.batch, *self.size, self.odd_channels, self.even_channels, self.arithmetic,
        ]  # fmt: skip
        numbers = torch.ops.fassd_kernels.couple_plan(shape, self.channels, gpu_of(limits))
        return Plan.of(numbers.tolist()) if numbers.numel() else None

    @property
    def layers(self) -> tuple[Convolution, Convolution]:
        """The layers one by one."""
        inputs = (self.channels[:1], (self.odd_channels, *self.channels))
        widths = (self.odd_channels, self.even_channels)
        odd, even = (
            Convolution(self.batch, self.size, channels, width, (3, 3), self.arithmetic, self.size)
            for channels, width in zip(inputs, widths, strict=True)
        )
        return odd, even


def couple_together(couple: Couple, limits: Limits) -> Plan | None:
    """The plan of two layers that are one launch; None where they are two.

    The rule of `run_couple` in ``csrc/cuda/hardblock.cu``.
    """
    plan = couple.plan(limits)
    apart = LAUNCH_GAP_CYCLES + sum(layer.plan(limits).cycles for layer in couple.layers)
    return plan if plan is not None and fuses(plan.cycles, apart) else None


def gpu_of(limits: Limits) -> list[int]:
    return [limits.multiprocessors, limits.shared_bytes, limits.capability]


def plans_together(pairs: Sequence[Pair], limits: Limits) -> list[Plan] | None:
    """The plans of pairs that are one launch; None where they run convolution by convolution.

    The rule of `run_pairs` in ``csrc/cuda/asymmetric_conv.cu``.
    """
    plans = [plan for pair in pairs if (plan := pair.plan(limits)) is not None]
    if len(plans) < len(pairs) or len(pairs) > MOST_PAIRS:
        return None
    if len({(plan.warps, plan.n_tiles) for plan in plans}) > 1:
        return None
    apart = [c.plan(limits).cycles for pair in pairs for c in pair.convolutions]
    gaps = LAUNCH_GAP_CYCLES * (len(apart) - 1)
    return plans if fuses(cycles_together(plans, limits), sum(apart) + gaps) else None


def fuses(together: float, apart: float) -> bool:
    """Whether one launch takes the place of several, from their clocks: as in ``plan.cpp``."""
    asked = os.environ.get("FASSD_KERNELS_CUDA_FUSION")
    return asked != "never" and (asked == "always" or together <= apart)


def cycles_together(plans: Sequence[Plan], limits: Limits) -> float:
    """Clocks of a launch of several pairs: of the longest, or of all blocks spread evenly."""

    def spread(plan: Plan) -> float:
        waves = plan.blocks / limits.multiprocessors
        return plan.cycles / math.ceil(waves) * waves

    return max(max(plan.cycles for plan in plans), sum(map(spread, plans)))


# --- a picture's three channels: csrc/cuda/stem.cu ------------------------------------------------

STEM_PIXELS, STEM_DEPTH = 256, 32  # of a tile; taps and channels together, padded
STEM_REACH = {"stride": 3, "dilation": 8}  # beyond, it is a convolution like the others
BLOCK_CYCLES = 2500  # launch_cycles in plan.cpp: begin, first loads, the way out
STEM_REGISTERS = 128  # of a thread, at most


def is_stem(conv: Convolution) -> bool:
    return (
        conv.arithmetic == HALF
        and conv.channels == (3,)
        and conv.kernel == (3, 3)
        and max(conv.stride) <= STEM_REACH["stride"]
        and max(conv.dilation) <= STEM_REACH["dilation"]
    )


def stem_plan(conv: Convolution, limits: Limits) -> Plan:
    """The plan that ``csrc/cuda/stem.cu`` makes, and its clocks by the rule of ``plan.cpp``."""
    n_tiles = 4 if conv.out_channels > 16 else 2
    channels = 8 * n_tiles

    def patch(width: int) -> int:
        """Pixels of the picture under a tile."""
        sides = (STEM_PIXELS // width, width)
        reach = zip(sides, conv.stride, conv.dilation, strict=True)
        return math.prod((results - 1) * step + 2 * d + 1 for results, step, d in reach)

    width = min((8, 16, 32, 64), key=patch)
    height = STEM_PIXELS // width
    tiles = math.ceil(conv.out_size[0] / height) * math.ceil(conv.out_size[1] / width)
    blocks = conv.batch * tiles * math.ceil(conv.out_channels / channels)
    pixels = 2 * 3 * patch(width)
    matrix = STEM_PIXELS * (2 * STEM_DEPTH + 16)
    weights = 2 * STEM_DEPTH * channels
    staging = 4 * STEM_PIXELS * (channels + 8)
    held = -(-pixels // 16) * 16 + matrix + 2 * STEM_DEPTH * (channels + 8) + 2 * 3 * 256
    shared_bytes = max(held, staging)
    threads = 2048 if limits.capability in (80, 90, 100) else 1024
    resident = max(
        1,
        min(
            (limits.shared_bytes + 1024) // (shared_bytes + 1024),
            threads // STEM_PIXELS,
            65536 // (STEM_REGISTERS * STEM_PIXELS),
        ),
    )
    # A gathered value is 2 bytes, but costs a lane's 4 of the width of shared memory.
    gathered = 4 * STEM_PIXELS * STEM_DEPTH
    multiplied = 2 * STEM_DEPTH * (STEM_PIXELS + 8 * channels)
    shared = 2 * pixels + gathered + matrix + multiplied + 2 * staging
    products = STEM_PIXELS * STEM_DEPTH * channels
    stored = 2 * STEM_PIXELS * channels / conv.pool**2
    loaded = pixels + weights
    busy = max(shared / SHARED_BYTES, (loaded + stored) / CACHE_BYTES)
    waves = math.ceil(blocks / limits.multiprocessors)
    cycles = max(waves * busy, waves / min(resident, waves) * (BLOCK_CYCLES + busy))
    return Plan(
        8, 2, n_tiles, width, height, 9, 3, 1, shared_bytes, blocks, resident, products, shared,
        loaded, stored, cycles,
    )  # fmt: skip


# --- launches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """One launch of a network, planned and predicted; times in seconds.

    Attributes:
        label: what it does.
        kernel: name of the kernel's template.
        channels: of its inputs > of what it makes.
        height, width: of its result, after pooling.
        tile: in words; empty where there is nothing to plan. Likewise 0 what follows from a plan.
        taps: that reach the picture, of each convolution of a launch.
        blocks, resident, waves: of the launch, of a multiprocessor, and the turns it takes.
        shared_bytes: of shared memory, that a block takes.
        bytes: read and written, every tensor once.
        loaded: bytes that blocks ask of the last cache.
        operations: multiplications and additions that reach the result.
        issued: those that are carried out, padding included.
        floor: what no kernel can go below.
        predicted: with the gap to the next launch.
        bound: what takes longest: ``memory``, ``cache``, ``shared memory``, ``arithmetic``; or
            ``waiting``, where none of them is busy most of the time.
        measured: on a GPU; None where that was not done.
    """

    label: str
    kernel: str
    channels: str
    height: int
    width: int
    tile: str
    taps: str
    blocks: int
    resident: int
    waves: float
    shared_bytes: int
    bytes: int
    loaded: int
    operations: int
    issued: int
    floor: float
    predicted: float
    bound: str
    measured: float | None = None


@dataclass(frozen=True)
class Group:
    """Launches of one shape and plan."""

    launches: tuple[Launch, ...]

    @property
    def label(self) -> str:
        """Of the first, and in what the others' differ: ``hardblock 3, 7``."""
        first, *others = dict.fromkeys(launch.label for launch in self.launches)
        name = first.rpartition(" ")[0] + " "
        return ", ".join([first, *(other.removeprefix(name) for other in others)])

    @property
    def count(self) -> int:
        return len(self.launches)

    @property
    def first(self) -> Launch:
        return self.launches[0]

    def total(self, name: str) -> Any:
        return total(self.launches, name)

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dump`: of one launch, but times of all."""
        times = {f"{n}_s": self.total(n) for n in ("floor", "predicted", "measured")}
        one = asdict(self.first)
        kept = {name: one[name] for name in one if f"{name}_s" not in times}
        return {**kept, "label": self.label, "count": self.count, **times}


@dataclass(frozen=True)
class Prediction:
    """All launches of a network, in order.

    Attributes:
        network: name of the variant.
        height, width, batch: of the pictures.
        dtype: name of the type.
        output: ``labels`` or ``logits``.
        device: the GPU.
        launches: in order.
        replay: measured seconds of the network as one CUDA graph; None where that was not done.
    """

    network: str
    height: int
    width: int
    batch: int
    dtype: str
    output: Output
    device: Device
    launches: tuple[Launch, ...]
    replay: float | None = None

    @property
    def title(self) -> str:
        """What was predicted, and for what."""
        return (
            f"{self.network}, {self.batch} x {self.height}x{self.width}, {self.dtype}, "
            f"{self.output}, on {self.device.name}"
        )

    @property
    def floor(self) -> float:
        return self.total("floor")

    @property
    def predicted(self) -> float:
        return self.total("predicted")

    @property
    def frames_per_second(self) -> float:
        """As predicted."""
        return self.batch / self.predicted

    def total(self, name: str) -> Any:
        """Over all launches."""
        return total(self.launches, name)

    def groups(self) -> list[Group]:
        """Equal launches together, in the order in which they come."""
        found: dict[Launch, list[Launch]] = {}
        for launch in self.launches:
            kind = launch.label.partition(" ")[0]
            found.setdefault(replace(launch, label=kind, measured=None), []).append(launch)
        return [Group(tuple(launches)) for launches in found.values()]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds, equal launches together."""
        names = ("bytes", "loaded", "operations", "issued")
        return {
            "network": self.network,
            "size": [self.height, self.width],
            "batch": self.batch,
            "dtype": self.dtype,
            "output": self.output,
            "gpu": self.device.name,
            "launches": len(self.launches),
            **{name: self.total(name) for name in names},
            "floor_s": self.floor,
            "predicted_s": self.predicted,
            "measured_s": self.replay,
            "predicted_frames_per_second": self.frames_per_second,
            "rows": [group.to_json() for group in self.groups()],
        }


def total(launches: Iterable[Launch], name: str) -> Any:
    """The sum of an attribute; None where a launch has none."""
    values = [getattr(launch, name) for launch in launches]
    return None if None in values else sum(values)


class Model:
    """What launches take on one GPU, in one type.

    Args:
        device: an NVIDIA GPU.
        dtype: of the images.
        tf32: whether float32 products may be rounded to TF32.

    Raises:
        ValueError: if the CUDA backend does not serve the GPU, or the type on it.
    """

    def __init__(self, device: Device, dtype: torch.dtype, tf32: bool = False) -> None:
        if device.backend != "cuda" or not isinstance(device.arch, int):
            raise ValueError(f"gpu is {device.name}; the cuda backend is for NVIDIA's")
        if dtype == torch.bfloat16 and device.arch < 80:
            raise ValueError(
                f"dtype is bfloat16, which needs compute capability 8.0; {device.name} has "
                f"{device.arch / 10}"
            )
        self.device = device
        self.itemsize = dtype.itemsize
        self.limits = Limits(device.multiprocessors, device.shared, device.arch)
        tensor = TENSOR_RATES.get(device.name, device.rates[0])
        if dtype.itemsize == 2:
            self.arithmetic, self.rate = HALF, tensor
        elif tf32 and device.arch >= 80:
            self.arithmetic, self.rate = TF32, tensor / 2
        else:
            self.arithmetic, self.rate = FLOAT32, device.rates[1]

    def launches(self, launches: Sequence[Planned]) -> Iterator[Launch]:
        """Those of one operator call, from what the Triton backend would launch."""
        if launches[0].program.name == "hardblock":
            yield from self.hardblock(launches)
            return
        waiting: list[Pair] = []  # branches that are launched with those behind them
        for planned in launches:
            arguments, label = planned.launch.arguments, planned.label
            if label == "dapf 1x1":
                waiting = [self.single(planned)]
                if not any("dilations" in other.launch.arguments for other in launches):
                    yield from self.pairs("dapf", waiting)
            elif "dilations" in arguments:
                operator = label.partition(" ")[0]
                # The CUDA backend adds mda's square branch here, the Triton backend behind.
                addends = int(operator == "mda")
                yield from self.pairs(operator, [*waiting, *self.asymmetric(planned)], addends)
                waiting = []
            elif "KERNEL_H" in arguments:
                yield self.convolution(planned)
            else:
                yield self.elementwise(planned)

    def hardblock(self, layers: Sequence[Planned]) -> Iterator[Launch]:
        """Odd layers with the even ones behind them where that pays, else each alone."""
        layer = 0
        while layer < len(layers):
            couple = self.couple(*layers[layer : layer + 2]) if layer + 1 < len(layers) else None
            yield couple or self.convolution(layers[layer])
            layer += 2 if couple else 1

    def couple(self, odd: Planned, even: Planned) -> Launch | None:
        """Two layers in one launch; None where that does not pay."""
        first, second = self.shape(odd), self.shape(even)
        couple = Couple(
            first.batch, first.size, second.channels[1:], first.out_channels, second.out_channels,
            self.arithmetic,
        )  # fmt: skip
        plan = couple_together(couple, self.limits)
        if plan is None:
            return None
        # The odd layer is written, and not read back.
        images = (*couple.channels, couple.odd_channels, couple.even_channels)
        moved = sum(self.image(couple.batch, couple.size, channels) for channels in images)
        return self.launch(
            f"{odd.label}+{even.label.rpartition(' ')[2]}",
            "couple_kernel",
            f"{channels_of(first)}, {channels_of(second)}",
            couple.size,
            [plan],
            moved + self.weights(first) + self.weights(second),
            odd.launch.work.operations + even.launch.work.operations,
        )

    def convolution(self, planned: Planned) -> Launch:
        work, arguments = planned.launch.work, planned.launch.arguments
        conv = self.shape(planned)
        size = (arguments["out_height"], arguments["out_width"])
        moved = work.bytes
        if arguments["addend"] is not None:
            moved -= self.image(conv.batch, conv.size, conv.channels[0])
        stem = is_stem(conv) and not arguments["PROLOGUE"]
        plan = stem_plan(conv, self.limits) if stem else conv.plan(self.limits)
        kernel = "stem_kernel" if stem else "convolution_kernel"
        return self.launch(
            planned.label, kernel, channels_of(conv), size, [plan], moved, work.operations
        )

    def shape(self, planned: Planned) -> Convolution:
        at = planned.launch.arguments
        out = (at["out_height"] * at["POOL"], at["out_width"] * at["POOL"])
        return Convolution(
            at["pixels"] // (out[0] * out[1]),
            (at["height"], at["width"]),
            at["channels"],
            at["out_channels"],
            (at["KERNEL_H"], at["KERNEL_W"]),
            self.arithmetic,
            out,
            (at["step_h"], at["step_w"]),
            (at["dilation_h"], at["dilation_w"]),
            at["POOL"],
        )

    def single(self, planned: Planned) -> Pair:
        """DAPF's 1x1, as a branch beside its asymmetric ones."""
        conv = self.shape(planned)
        out = conv.out_channels
        return Pair(conv.batch, conv.size, conv.channels[0], out, out, 1, True, self.arithmetic)

    def asymmetric(self, planned: Planned) -> list[Pair]:
        at = planned.launch.arguments
        return [
            Pair(
                at["rows"] // at["height"],
                (at["height"], at["width"]),
                at["channels"],
                at["middles"],
                at["out_channels"],
                dilation,
                False,
                self.arithmetic,
            )
            for dilation in at["dilations"]
        ]

    def pairs(self, operator: str, pairs: Sequence[Pair], addends: int = 0) -> Iterator[Launch]:
        """Branches on the same input: one launch, or one for each convolution.

        Args:
            operator: for labels.
            pairs: the branches.
            addends: images of the result's size that each reads besides.
        """
        plans = plans_together(pairs, self.limits)
        if plans is not None:
            moved = self.image(pairs[0].batch, pairs[0].size, pairs[0].in_channels)
            for pair in pairs:
                moved += sum(map(self.weights, pair.convolutions))
                moved += (1 + addends) * self.image(pair.batch, pair.size, pair.out_channels)
            yield self.launch(
                f"{operator} {'branches' if len(pairs) > 1 else 'asymmetric'}",
                "pair_kernel",
                ", ".join(branches_of(pairs)),
                pairs[0].size,
                plans,
                moved,
                sum(sum(pair.operations) for pair in pairs),
            )
            return
        for pair in pairs:
            for conv, operations in zip(pair.convolutions, pair.operations, strict=True):
                last = conv is pair.convolutions[-1] or conv.kernel != (3, 1)
                moved = self.image(pair.batch, pair.size, conv.channels[0]) + self.weights(conv)
                images = 1 + (addends if last else 0)
                moved += images * self.image(pair.batch, pair.size, conv.out_channels)
                yield self.launch(
                    f"{operator} {conv.kernel[0]}x{conv.kernel[1]}", "convolution_kernel",
                    channels_of(conv), pair.size, [conv.plan(self.limits)], moved, operations,
                )  # fmt: skip

    def launch(
        self,
        label: str,
        kernel: str,
        channels: str,
        size: tuple[int, int],
        plans: Sequence[Plan],
        moved: int,
        operations: int,
    ) -> Launch:
        """A launch of planned blocks, of one or more shapes."""
        from fassd.bench.costs.triton import DRAM_EFFICIENCY, LAUNCH_S

        device = self.device
        blocks = sum(plan.blocks for plan in plans)
        # All take the shared memory of the largest.
        resident = min(plan.resident for plan in plans)
        issued = sum(2 * plan.blocks * plan.products for plan in plans)
        loaded = sum(plan.blocks * plan.loaded for plan in plans)
        stored = sum(plan.blocks * plan.stored for plan in plans)
        shared = sum(plan.blocks * plan.shared_read for plan in plans)
        clocks = device.clock * device.multiprocessors
        parts = {
            "memory": moved / (device.bandwidth * DRAM_EFFICIENCY),
            "cache": (loaded + stored) / (CACHE_BYTES * clocks),
            "shared memory": shared / (SHARED_BYTES * clocks),
            "arithmetic": issued / self.rate,
        }
        planned = cycles_together(plans, self.limits) / device.clock
        seconds = max(planned, parts["memory"], parts["arithmetic"])
        bound = max(parts, key=lambda name: parts[name])
        if seconds > WAITING * parts[bound]:
            bound = "waiting"
        return Launch(
            label=label,
            kernel=kernel,
            channels=channels,
            height=size[0],
            width=size[1],
            tile="; ".join(dict.fromkeys(plan.tile for plan in plans)),
            taps="+".join(str(plan.taps) for plan in plans),
            blocks=blocks,
            resident=resident,
            waves=blocks / (device.multiprocessors * resident),
            shared_bytes=max(plan.shared_bytes for plan in plans),
            bytes=moved,
            loaded=int(loaded),
            operations=operations,
            issued=int(issued),
            floor=max(moved / device.bandwidth, operations / self.rate),
            predicted=seconds + LAUNCH_S,
            bound=bound,
        )

    def elementwise(self, planned: Planned) -> Launch:
        """A launch without a plan: its bytes, or its operations at the rate of float32."""
        from fassd.bench.costs.triton import DRAM_EFFICIENCY, LAUNCH_S

        launch, device = planned.launch, self.device
        at, work = launch.arguments, launch.work
        seconds = {
            "memory": work.bytes / (device.bandwidth * DRAM_EFFICIENCY),
            "arithmetic": work.operations / device.rates[1],
        }
        bound = max(seconds, key=lambda name: seconds[name])
        width = at.get("out_width", 1 if "pixels" in at else at["width"])
        height = at.get("out_height", 1 if "pixels" in at else at["height"])
        return Launch(
            label=planned.label,
            kernel=launch.kernel.__name__,
            channels=str(at.get("channels", 3)),
            height=height,
            width=width,
            tile="",
            taps="",
            blocks=0,
            resident=0,
            waves=0,
            shared_bytes=0,
            bytes=work.bytes,
            loaded=0,
            operations=work.operations,
            issued=work.operations,
            floor=max(work.bytes / device.bandwidth, work.operations / device.rates[1]),
            predicted=seconds[bound] + LAUNCH_S,
            bound=bound,
        )

    def image(self, batch: int, size: tuple[int, int], channels: int) -> int:
        """Bytes of an image."""
        return batch * size[0] * size[1] * channels * self.itemsize

    def weights(self, conv: Convolution) -> int:
        """Bytes of its weight."""
        taps = conv.kernel[0] * conv.kernel[1]
        return taps * sum(conv.channels) * conv.out_channels * self.itemsize


def channels_of(conv: Convolution) -> str:
    return f"{'+'.join(map(str, conv.channels))}>{conv.out_channels}"


def branches_of(pairs: Sequence[Pair]) -> list[str]:
    """Channels of each kind of branch, with their number."""
    counts: dict[str, int] = {}
    for pair in pairs:
        middle = "" if pair.single else f">{pair.middle_channels}"
        name = f"{pair.in_channels}{middle}>{pair.out_channels}"
        counts[name] = counts.get(name, 0) + 1
    return [name if count == 1 else f"{count}x {name}" for name, count in counts.items()]


# --- networks -------------------------------------------------------------------------------------


def check_requirements() -> None:
    """See whether networks can be planned here.

    Raises:
        ImportError: without Triton, or without the C++ extension; the message says what to install.
    """
    if availability.triton_missing():
        raise ImportError(
            "the time model plans with Triton (no GPU is needed): "
            f"pip install 'fassd-net[triton]' ({availability.triton_missing()})"
        )
    if not hasattr(torch.ops.fassd_kernels, "couple_plan"):
        why = cpu_reason() or "it was built from older sources"
        raise ImportError(
            "the time model asks the C++ extension for its plans: pip install . builds it, in a "
            f"checkout pip install -e . ({why})"
        )


def find_device(name: str) -> Device:
    """A GPU of the data sheets or of this machine, by its name or a part of it.

    Raises:
        ImportError: as :func:`check_requirements`.
        ValueError: if none, or more than one, is meant.
    """
    check_requirements()
    for index in range(torch.cuda.device_count()):
        if name.lower() in torch.cuda.get_device_name(index).lower():
            return describe_gpu(torch.device("cuda", index))
    # Beyond this line Triton has to be there.
    return importlib.import_module("fassd_kernels.triton.device").device_named(name)


def predict_network(
    name: str,
    height: int,
    width: int,
    device: Device,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    output: Output = "labels",
    classes: int = 19,
    alpha: int = 2,
) -> Prediction:
    """What a variant of the family launches through the CUDA backend, and how long that takes.

    Args:
        name: a variant, as ``fassd list`` shows them.
        height, width: of the picture.
        device: to predict for, see :func:`find_device`; it need not be there.
        batch: pictures at once.
        dtype: of the network.
        output: ``labels`` or ``logits``.
        classes, alpha: of the network.

    Raises:
        ImportError: as :func:`check_requirements`.
        ValueError: if the variant is unknown, the picture too small, or the GPU is not served.
    """
    check_requirements()
    from fassd.bench.costs.triton import plan_network
    from fassd_kernels.triton.program import tf32_requested

    model = Model(device, dtype, dtype == torch.float32 and tf32_requested())
    planned = plan_network(name, height, width, device, batch, dtype, output, classes, alpha)
    calls: dict[int, list[Planned]] = {}
    for launch in planned:
        calls.setdefault(id(launch.program), []).append(launch)
    launches = tuple(launch for call in calls.values() for launch in model.launches(call))
    dtype_name = str(dtype).removeprefix("torch.")
    return Prediction(name, height, width, batch, dtype_name, output, device, launches)


# --- goals ----------------------------------------------------------------------------------------

GOAL_GPU, GOAL_SIZE, GOAL_DTYPE = "NVIDIA H200", (1024, 2048), "float16"
GOALS_S = {"fassd_net": 0.5e-3, "fassd_net_l2": 0.2e-3}
"""Of a frame at most, labels out."""

GOAL_BATCH, GOAL_GAIN = 8, 1.3
"""Frames per second of FASSD-Net in a batch, at least so many times those of single frames."""


@dataclass(frozen=True)
class Goal:
    """A goal, and the figure that is predicted for it."""

    network: str
    text: str
    unit: str
    figure: float
    limit: float

    @property
    def is_met(self) -> bool:
        """By the prediction."""
        return self.figure <= self.limit if self.unit == "ms" else self.figure >= self.limit

    @property
    def described(self) -> str:
        """The figure with its unit."""
        return f"{self.figure:.3f} ms" if self.unit == "ms" else f"{self.figure:.2f}x"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_met": self.is_met}


def goals_of(prediction: Prediction, single: Prediction | None = None) -> list[Goal]:
    """The goals that a prediction is for; none but on the H200 and at the goals' size.

    Args:
        prediction: of a network.
        single: of the same, one frame at a time; the goal of a batch is missing without.
    """
    here = (
        prediction.device.name, (prediction.height, prediction.width), prediction.dtype,
        prediction.output,
    )  # fmt: skip
    if here != (GOAL_GPU, GOAL_SIZE, GOAL_DTYPE, "labels"):
        return []
    name, batch = prediction.network, prediction.batch
    if batch == 1 and name in GOALS_S:
        limit = 1e3 * GOALS_S[name]
        text = f"at most {limit:g} ms a frame"
        return [Goal(name, text, "ms", 1e3 * prediction.predicted, limit)]
    if batch == GOAL_BATCH and name == "fassd_net" and single is not None:
        text = f"at batch {batch} at least {GOAL_GAIN:g}x the frames per second of batch 1"
        gain = prediction.frames_per_second / single.frames_per_second
        return [Goal(name, text, "x", gain, GOAL_GAIN)]
    return []
