"""Energy of a call on an NVIDIA GPU, by the counter that the driver keeps (NVML)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Energy", "energy_of"]

LEAST_SECONDS = 0.5
"""The counter moves in steps of some 20 to 100 ms."""


@dataclass(frozen=True)
class Energy:
    """Joules per call, idle power included, or None and the reason."""

    joules: float | None
    note: str = ""


def energy_of(
    call: Callable[[], object], device: torch.device | str, seconds: float = LEAST_SECONDS
) -> Energy:
    """Energy that the whole GPU takes for one call, over calls that last `seconds`."""
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
            return _measure(call, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card), seconds)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Energy(None, f"NVML: {error}")


def _measure(call: Callable[[], object], millijoules: Callable[[], int], seconds: float) -> Energy:
    torch.cuda.synchronize()
    before, start, calls = millijoules(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        torch.cuda.synchronize()
        calls += 1
    return Energy((millijoules() - before) / 1e3 / calls, f"NVML, {calls} calls")
