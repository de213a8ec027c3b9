"""Peak memory of a call, freeing it, and the energy that a call takes on an NVIDIA GPU."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """Peak memory of a call in bytes beyond the memory in use before it, or None and the reason."""

    peak: int | None
    note: str = ""


NOT_ASKED = Memory(None, "not asked for")


def memory_of(
    call: Callable[[], object],
    device: torch.device | str,
    factory: str,
    arguments: Mapping[str, Any],
) -> Memory:
    """Peak memory of a call: on CUDA in this process, on the CPU in a separate one.

    Args:
        call: function to measure on CUDA.
        device: device on which it runs.
        factory, arguments: arguments of `peak_memory_of_child`, for the CPU.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return peak_memory(call)
    if kind == "cpu":
        return peak_memory_of_child(factory, arguments)
    return Memory(None, f"no counter for {kind} devices")


def peak_memory(call: Callable[[], object]) -> Memory:
    """Peak memory that `call` adds in this process on CUDA, as PyTorch's allocator counts it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return Memory(torch.cuda.max_memory_allocated() - before, "CUDA allocator, one call")


def peak_memory_of_child(
    factory: str, arguments: Mapping[str, Any], timeout: float = 600
) -> Memory:
    """Peak resident memory that a call adds on the CPU, measured in a separate process.

    The child builds the call, reads its resident memory, makes the call once (so that caches and
    packed weights exist), resets the kernel's high-water mark, calls again and reads the mark. The
    figure therefore includes the working memory and whatever the call keeps, but neither Python and
    PyTorch nor the model's weights.

    Args:
        factory: function to import, "module:function"; it takes `arguments` and returns the call.
        arguments: keyword arguments that can be written as JSON.
        timeout: seconds after which the child is stopped.

    Returns:
        The figure, or None with the reason why it could not be measured.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return Memory(None, "needs Linux's /proc/self/clear_refs, which is not writable here")
    job = json.dumps({"factory": factory, "arguments": dict(arguments)})
    program = "from fassd.bench.memory import _memory_child; _memory_child()"
    search = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    try:
        child = subprocess.run(
            [sys.executable, "-c", program],
            input=job,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=search,
        )
    except subprocess.TimeoutExpired:
        return Memory(None, f"the measuring process took more than {timeout:.0f} s")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Memory(None, f"the measuring process was ended by {name}")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Memory(None, f"the measuring process failed: {last}")
    return Memory(int(child.stdout.split()[-1]), "resident memory, one call, own process")


def _memory_child() -> None:
    """The measuring process: reads the job from standard input and prints the figure."""
    import importlib

    job = json.loads(sys.stdin.read())
    module, _, function = job["factory"].partition(":")
    call = getattr(importlib.import_module(module), function)(**job["arguments"])
    before = _status("VmRSS")
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
    call()
    print(max(_status("VmHWM") - before, 0))


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no field {field}")
    return int(found[1]) * 1024


def release() -> None:
    """Free memory of the last candidates: compiled code, cycles, cached activations."""
    import fassd_kernels

    torch._dynamo.reset()
    gc.collect()
    fassd_kernels.release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------ energy

LEAST_SECONDS = 0.5
"""Seconds to measure for: the counter moves in steps of some 20 to 100 ms."""


@dataclass(frozen=True)
class Energy:
    """Joules per call, idle power included, or None and the reason."""

    joules: float | None
    note: str = ""


def energy_of(
    call: Callable[[], object], device: torch.device | str, seconds: float = LEAST_SECONDS
) -> Energy:
    """Energy of the whole GPU for one call, measured over calls that last `seconds`."""
    device = torch.device(device)
    if device.type != "cuda":
        return Energy(None, "NVML counts on NVIDIA GPUs only")
    try:
        import pynvml
    except ImportError:
        return Energy(None, "needs pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
        try:
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            card = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return _energy(call, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card), seconds)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Energy(None, f"NVML: {error}")


def _energy(call: Callable[[], object], millijoules: Callable[[], int], seconds: float) -> Energy:
    torch.cuda.synchronize()
    before, start, calls = millijoules(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        torch.cuda.synchronize()
        calls += 1
    return Energy((millijoules() - before) / 1e3 / calls, f"NVML, {calls} calls")
