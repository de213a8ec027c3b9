"""The time model of the CUDA backend: the launches of a network, and the predicted time of each.

No GPU is needed. The C++ extension describes the kernels that an operator's call launches on a GPU
with given limits, and their division into blocks (``csrc/plan``): the same plans with which the
CUDA kernels are launched. This module adds up their figures.

The *floor* of a launch is the minimum for any kernel: every tensor moved once at the memory's full
bandwidth, or every operation that contributes to the result at the full rate, whichever takes
longer. The *floor of issue* is the minimum for these kernels: their warp instructions, one per
clock from each of a multiprocessor's four schedulers. The *prediction* is the longest of the plan's
clocks, which include issue, the bytes at the bandwidth that a copy reaches, and the operations
after padding at the full rate; plus the gap to the next launch of a graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from fassd.bench.costs import DRAM_EFFICIENCY, LAUNCH_S
from fassd_kernels.backends import cpu_reason
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import Device, describe_gpu, device_named

if TYPE_CHECKING:
    from fassd_kernels.modules.network import Output
    from fassd_kernels.tuning.calls import OperatorCall

HALF, TF32, FLOAT32 = range(3)  # Arithmetic in csrc/plan/plan.h
# Rates of a T4's tensor cores; the table of GPUs has the rates that Triton reaches without them.
TENSOR_RATES = {"Tesla T4": 65e12}
# For one multiprocessor and clock, to name what a launch is bound by.
SHARED_BYTES = 128
CACHE_BYTES = 32
ISSUED_PER_CLOCK = 4
# Fraction that schedulers with enough warps reach, as in csrc/plan/plan.cpp.
ISSUE_EFFICIENCY = 0.7
# A launch that takes this many times the time of its busiest part mostly waits.
WAITING = 1.5

# --- plans ----------------------------------------------------------------------------------------


GpuLimits: TypeAlias = tuple[int, int, int]
"""The limits of a GPU that a plan depends on, DeviceLimits in ``csrc/plan/plan.h``:
multiprocessors, bytes of shared memory available to a block, compute capability times ten."""


def tile_of(blocks: Mapping[str, Any]) -> str:
    """The tile of a division into blocks, as C++ describes it, in words."""
    pixels, stages = blocks["tile_width"] * blocks["tile_height"], blocks["stages"]
    channels, depth = 8 * blocks["n_tiles"], f"{stages} stage{'s' if stages > 1 else ''}"
    return f"{pixels} px x {channels} ch, chunk {blocks['chunk']}, {depth}"


# --- launches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictedLaunch:
    """One launch of a network, planned and predicted; times in seconds.

    Attributes:
        label: purpose of the launch.
        kernel: name of the kernel's template.
        channels: channels of its inputs > those of its result.
        height, width: size of its result, after pooling.
        tile: the tile in words; empty without a plan, in which case the figures of a plan are 0.
        taps: number of taps that reach the picture, for each convolution of the launch.
        blocks, resident, waves: number of blocks of the launch, number of blocks of a
            multiprocessor at a time, and number of turns of the launch.
        shared_bytes: bytes of shared memory that a block takes.
        bytes: bytes read and written, every tensor once.
        loaded: bytes that blocks request from the last cache.
        operations: number of multiplications and additions that contribute to the result.
        issued: number of those carried out, padding included.
        instructions: number of warp instructions; `copy_instructions` and the like give those for
            copies to shared memory, for products and for the epilogue.
        memory_floor, arithmetic_floor: seconds for bytes and operations at the full rates.
        floor: the longer of the two, the minimum for any kernel.
        issue: minimum seconds for these instructions.
        predicted: predicted seconds, including the gap to the next launch.
        bound: the part that takes longest: ``memory``, ``cache``, ``shared memory``,
            ``arithmetic``, ``issue``; or ``waiting``, if none of them is busy most of the time.
        measured: measured seconds on a GPU; None if not measured.
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
    instructions: float
    copy_instructions: float
    product_instructions: float
    epilogue_instructions: float
    memory_floor: float
    arithmetic_floor: float
    floor: float
    issue: float
    predicted: float
    bound: str
    measured: float | None = None


TIMES = ("memory_floor", "arithmetic_floor", "floor", "issue", "predicted", "measured")
COUNTS = ("instructions", "copy_instructions", "product_instructions", "epilogue_instructions")


@dataclass(frozen=True)
class LaunchGroup:
    """Launches of one shape and plan."""

    launches: tuple[PredictedLaunch, ...]

    @property
    def label(self) -> str:
        """The first one's label, and the differences of the others: ``hardblock 3, 7``."""
        first, *others = dict.fromkeys(launch.label for launch in self.launches)
        name = first.rpartition(" ")[0] + " "
        return ", ".join([first, *(other.removeprefix(name) for other in others)])

    @property
    def count(self) -> int:
        return len(self.launches)

    @property
    def first(self) -> PredictedLaunch:
        return self.launches[0]

    def total(self, name: str) -> Any:
        """The sum of an attribute; None if a launch lacks it."""
        values = [getattr(launch, name) for launch in self.launches]
        return None if None in values else sum(values)

    def to_json(self) -> dict[str, Any]:
        """The figures of one launch with the times of all, ready for `json.dump`."""
        times = {f"{n}_s": self.total(n) for n in TIMES}
        one = asdict(self.first)
        kept = {name: one[name] for name in one if f"{name}_s" not in times}
        return {**kept, "label": self.label, "count": self.count, **times}


@dataclass(frozen=True)
class Prediction:
    """All launches of a network, in order.

    Attributes:
        network: name of the variant.
        height, width, batch: size of the pictures, and their number.
        dtype: name of the dtype.
        output: ``labels`` or ``logits``.
        device: GPU of the prediction.
        launches: launches in order.
        replay: measured seconds of the network as one CUDA graph; None if not measured.
    """

    network: str
    height: int
    width: int
    batch: int
    dtype: str
    output: Output
    device: Device
    launches: tuple[PredictedLaunch, ...]
    replay: float | None = None

    @property
    def title(self) -> str:
        """The network, the pictures and the GPU of the prediction."""
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
        """Predicted frames per second."""
        return self.batch / self.predicted

    def total(self, name: str) -> Any:
        """The sum of an attribute over all launches; None if a launch lacks it."""
        return LaunchGroup(self.launches).total(name)

    def groups(self) -> list[LaunchGroup]:
        """Equal launches grouped, in the order of their first ones."""
        found: dict[PredictedLaunch, list[PredictedLaunch]] = {}
        for launch in self.launches:
            kind = launch.label.partition(" ")[0]
            one = replace(launch, label=kind, measured=None)
            found.setdefault(one, []).append(launch)
        return [LaunchGroup(tuple(launches)) for launches in found.values()]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; times in seconds, equal launches grouped."""
        names = ("network", "batch", "dtype", "output")
        sums = ("bytes", "loaded", "operations", "issued", *COUNTS)
        return {
            **{name: getattr(self, name) for name in names},
            "size": [self.height, self.width],
            "gpu": self.device.name,
            "launches": len(self.launches),
            **{name: self.total(name) for name in sums},
            "floor_s": self.floor,
            "issue_s": self.total("issue"),
            "predicted_s": self.predicted,
            "measured_s": self.replay,
            "predicted_frames_per_second": self.frames_per_second,
            "rows": [group.to_json() for group in self.groups()],
        }


class Model:
    """A model of launch times on one GPU, in one dtype.

    Args:
        device: GPU by NVIDIA.
        dtype: dtype of the images.
        tf32: True if float32 products may be rounded to TF32.

    Raises:
        ValueError: the CUDA backend does not support the GPU, or the dtype on it.
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
        self.tf32 = tf32
        self.limits: GpuLimits = (device.multiprocessors, device.shared, device.arch)
        tensor = TENSOR_RATES.get(device.name, device.rates[0])
        self.rates = {"half": tensor, "tf32": tensor / 2, "float32": device.rates[1]}

    def answer(self, call: OperatorCall) -> list[dict[str, Any]]:
        """The launches of an operator's call, as described by C++ (``csrc/plan/launches.h``)."""
        operator = getattr(torch.ops.fassd_kernels_plan, call.operator)
        return json.loads(operator(**call.arguments, gpu=self.limits, allow_tf32=self.tf32))

    def launch(self, answer: dict[str, Any]) -> PredictedLaunch:
        """One launch of an answer, with its times."""
        device = self.device
        plans = answer["blocks"]
        moved, operations = answer["bytes"], answer["operations"]
        rate = self.rates[answer["arithmetic"]]
        blocks = sum(plan["blocks"] for plan in plans)
        # All take the shared memory of the largest.
        resident = min((plan["resident"] for plan in plans), default=0)
        names = ("products", "loaded", "stored", "shared_read")
        products, loaded, stored, shared = (
            sum(plan["blocks"] * plan[name] for plan in plans) for name in names
        )
        issued = 2 * products if plans else operations
        clocks = device.clock * device.multiprocessors
        counts = answer["instructions"]
        instructions = sum(counts.values())
        issue = instructions / (ISSUED_PER_CLOCK * clocks)
        floors = moved / device.bandwidth, operations / rate
        parts = {
            "memory": moved / (device.bandwidth * DRAM_EFFICIENCY),
            "cache": (loaded + stored) / (CACHE_BYTES * clocks),
            "shared memory": shared / (SHARED_BYTES * clocks),
            "arithmetic": issued / rate,
            "issue": issue / ISSUE_EFFICIENCY,
        }
        seconds = max(answer["cycles"] / device.clock, parts["memory"], parts["arithmetic"])
        bound = max(parts, key=lambda name: parts[name])
        if seconds > WAITING * parts[bound]:
            bound = "waiting"
        same = ("label", "kernel", "channels", "height", "width", "bytes", "operations")
        return PredictedLaunch(
            **{name: answer[name] for name in same},
            tile="; ".join(dict.fromkeys(map(tile_of, plans))),
            taps="+".join(str(plan["taps"]) for plan in plans),
            blocks=blocks,
            resident=resident,
            waves=blocks / (device.multiprocessors * resident) if plans else 0,
            shared_bytes=max((plan["shared_bytes"] for plan in plans), default=0),
            loaded=int(loaded),
            issued=int(issued),
            instructions=instructions,
            **{f"{part}_instructions": counts[part] for part in ("copy", "product", "epilogue")},
            issue=issue,
            memory_floor=floors[0],
            arithmetic_floor=floors[1],
            floor=max(floors),
            predicted=seconds + LAUNCH_S,
            bound=bound,
        )


# --- networks -------------------------------------------------------------------------------------


def check_requirements() -> None:
    """Check that networks can be planned on this machine.

    Raises:
        ImportError: Triton or the C++ extension is missing; the message says what to install.
    """
    if availability.triton_missing():
        raise ImportError(
            "the time model records a network's calls with Triton (no GPU is needed): "
            f"pip install 'fassd-net[triton]' ({availability.triton_missing()})"
        )
    if not hasattr(torch.ops.fassd_kernels_plan, "hardblock"):
        why = cpu_reason() or "it was built from older sources"
        raise ImportError(
            "the time model asks the C++ extension for its plans: pip install . builds it, in a "
            f"checkout pip install -e . ({why})"
        )


def find_device(name: str) -> Device:
    """Find a GPU of the data sheets or of this machine, by its name or a part of it.

    Raises:
        ImportError: as in :func:`check_requirements`.
        ValueError: no GPU, or more than one, matches.
    """
    check_requirements()
    for index in range(torch.cuda.device_count()):
        if name.lower() in torch.cuda.get_device_name(index).lower():
            return describe_gpu(torch.device("cuda", index))
    return device_named(name)


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
    """Predict the launches of a variant of the family through the CUDA backend, and their times.

    Args:
        name, height, width, batch, dtype, output, classes, alpha: network and pictures, as in
            :func:`fassd_kernels.tuning.calls.record_network`.
        device: GPU to predict for, see :func:`find_device`; this machine need not have it.

    Raises:
        ImportError: as in :func:`check_requirements`.
        ValueError: the variant is unknown, the picture too small, or the GPU not supported.
    """
    check_requirements()
    from fassd.bench.costs.triton import record_network
    from fassd_kernels.triton.program import tf32_requested

    model = Model(device, dtype, dtype == torch.float32 and tf32_requested())
    calls, _ = record_network(
        name, height, width, device, batch, dtype, output=output, classes=classes, alpha=alpha
    )
    launches = tuple(model.launch(answer) for call in calls for answer in model.answer(call))
    dtype_name = str(dtype).removeprefix("torch.")
    return Prediction(name, height, width, batch, dtype_name, output, device, launches)
