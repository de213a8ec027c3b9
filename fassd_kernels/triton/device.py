"""Properties of a GPU that the kernels depend on, for one in this machine or a compile target."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@dataclass(frozen=True)
class Device:
    """A GPU, or the interpreter.

    Attributes:
        name: name given by the vendor, or ``interpreter``.
        backend: name of Triton's compiler: ``cuda`` or ``hip``.
        arch: compute capability times ten, or AMD's name.
        multiprocessors: number of streaming multiprocessors, or compute units.
        shared: bytes of shared memory available to one block.
        bandwidth: bandwidth of its memory, bytes per second, from the data sheet; for predictions
            only.
        rates: multiplications and additions per second with 16-bit inputs and with float32 ones,
            dense, from the data sheet; for predictions only.
        l2: bytes of the last cache.
        clock: clock of its multiprocessors, in Hz, at which the data sheet gives those rates; for
            predictions only.
    """

    name: str
    backend: str
    arch: int | str
    multiprocessors: int
    shared: int
    bandwidth: float
    rates: tuple[float, float]
    l2: int
    clock: float = 1.5e9
    interpreted: bool = False

    @property
    def has_tf32(self) -> bool:
        """True if it multiplies float32 values rounded to TF32 faster than exact ones."""
        return self.arch >= 80 if isinstance(self.arch, int) else self.arch == "gfx942"


# T4: Triton does not use Turing's tensor cores, so its rate is that of packed halves.
# Figures from the makers' data sheets (dense rates, boost clocks; for Hopper and Blackwell, the
# clock for which the tensor cores' rate is given); from the CUDA programming guide for the shared
# memory of a block. The first of an architecture represents it in reports.
A100, H100 = (312e12, 19.5e12), (989e12, 67e12)
GA102, AD102 = (71e12, 35.6e12), (165e12, 82.6e12)
KB, MB = 1 << 10, 1 << 20
KNOWN = (
    Device("Tesla T4", "cuda", 75, 40, 64 * KB, 320e9, (16e12, 8.1e12), 4 * MB, 1.59e9),
    Device("NVIDIA A100-SXM4-80GB", "cuda", 80, 108, 163 * KB, 2.04e12, A100, 40 * MB, 1.41e9),
    Device("NVIDIA GeForce RTX 3090", "cuda", 86, 82, 99 * KB, 936e9, GA102, 6 * MB, 1.695e9),
    Device("NVIDIA L4", "cuda", 89, 58, 99 * KB, 300e9, (121e12, 30.3e12), 48 * MB, 2.04e9),
    Device("NVIDIA GeForce RTX 4090", "cuda", 89, 128, 99 * KB, 1e12, AD102, 72 * MB, 2.52e9),
    Device("NVIDIA H200", "cuda", 90, 132, 227 * KB, 4.8e12, H100, 50 * MB, 1.83e9),
    Device("NVIDIA H100 80GB HBM3", "cuda", 90, 132, 227 * KB, 3.35e12, H100, 50 * MB, 1.83e9),
    Device("NVIDIA B200", "cuda", 100, 148, 227 * KB, 8e12, (2250e12, 75e12), 126 * MB, 1.85e9),
    Device("AMD MI300X", "hip", "gfx942", 304, 64 * KB, 5.3e12, (1307e12, 163e12), 256 * MB, 2.1e9),
)
INTERPRETER = Device("interpreter", "cuda", 80, 2, 163 * KB, 1e9, (1e9, 1e9), MB, interpreted=True)

# Without a data sheet: shared memory of a block by compute capability.
SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


class Assumption(threading.local):
    """The GPU that reports plan for, if any."""

    device: Device | None = None


assumption = Assumption()


@contextlib.contextmanager
def assuming(device: Device) -> Iterator[None]:
    """Plan for this GPU, whatever the device of the tensors."""
    before, assumption.device = assumption.device, device
    try:
        yield
    finally:
        assumption.device = before


def describe_device(device: torch.device) -> Device:
    """The GPU of a tensor; for tensors on a CPU, the interpreter or a report's assumed GPU."""
    if assumption.device is not None:
        return assumption.device
    return INTERPRETER if device.type == "cpu" else describe_gpu(device)


@functools.cache
def describe_gpu(device: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(device)
    known = next((d for d in KNOWN if d.name == properties.name), None)
    if torch.version.hip:
        arch: int | str = properties.gcnArchName.split(":")[0]
        likely, backend = next(d for d in KNOWN if d.backend == "hip"), "hip"
        shared = likely.shared
    else:
        arch = properties.major * 10 + properties.minor
        older = [d for d in KNOWN if isinstance(d.arch, int) and d.arch <= arch]
        likely, backend = known or (older or list(KNOWN))[-1], "cuda"
        shared = getattr(properties, "shared_memory_per_block_optin", SHARED.get(arch, 64) * 1024)
    return Device(
        properties.name,
        backend,
        arch,
        properties.multi_processor_count,
        shared,
        likely.bandwidth,
        likely.rates,
        getattr(properties, "L2_cache_size", likely.l2) or likely.l2,
        known.clock if known else getattr(properties, "clock_rate", 0) * 1e3 or likely.clock,
    )


def device_named(name: str) -> Device:
    """A GPU of the data sheets, by its name or a part of it.

    Raises:
        ValueError: no GPU, or more than one, matches.
    """
    found = [device for device in KNOWN if name.lower() in device.name.lower()]
    exact = [device for device in found if device.name.lower() == name.lower()]
    if len(exact or found) != 1:
        names = ", ".join(device.name for device in KNOWN)
        raise ValueError(f"gpu is {name!r}; expected one of {names}, or a part of one name")
    return (exact or found)[0]
