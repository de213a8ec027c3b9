"""The conditions for Triton's kernels on this machine. Imports Triton only to check them."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import warnings

import torch

from fassd_kernels.triton.device import INTERPRETED
from fassd_kernels.triton.program import recorder

OLDEST_TRITON = (3, 6)
OLDEST_GPU = (7, 5)  # Triton compiles for it, but leaves its tensor cores idle
OLDEST_BFLOAT16_GPU = (8, 0)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
# The interpreter computes bfloat16 products incorrectly.
DTYPES = TYPES[:2] if INTERPRETED else TYPES


@functools.cache
def triton_missing() -> str:
    """The reason why Triton cannot be used; empty if it can."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"Triton is not installed ({error}): pip install triton"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TRITON:
        return f"Triton is {version}; at least {'.'.join(map(str, OLDEST_TRITON))} is needed"
    return ""


@functools.cache
def reason() -> str:
    """The reason why the backend is not available; empty if it is."""
    if triton_missing() or INTERPRETED:
        return triton_missing()
    if not torch.cuda.is_available():
        return "no GPU is seen"
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        return "Triton needs a C compiler when it runs: gcc, clang, or what CC names"
    refusals = [gpu_refusal(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    return "" if "" in refusals else refusals[0]


@functools.cache
def gpu_refusal(device: torch.device) -> str:
    """The reason why a GPU is too old; empty if it is not."""
    if torch.version.hip:
        return ""
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        name = torch.cuda.get_device_name(device)
        return f"{name} is sm_{capability[0]}{capability[1]}; at least sm_75 is needed"
    return ""


def takes(device: torch.device) -> bool:
    """True if the kernels take tensors on a device, judged by the device alone."""
    return device.type == ("cpu" if INTERPRETED else "cuda") or is_recording()


def is_recording() -> bool:
    """True while calls are only planned, for a GPU that this machine need not have."""
    return recorder.programs is not None


def refusal(device: torch.device, dtype: torch.dtype | None) -> str:
    """The reason why the kernels cannot run on a device and type; empty if they can."""
    if triton_missing():
        return triton_missing()
    if not takes(device):
        wanted = "cpu tensors (it is interpreted)" if INTERPRETED else "tensors on a GPU"
        return f"the triton backend takes {wanted}, not on {device.type}"
    accepted = TYPES if is_recording() else DTYPES
    if dtype not in accepted:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in accepted)
        return f"the triton backend takes {names}, not {str(dtype).removeprefix('torch.')}"
    if device.type != "cuda":
        return ""
    return gpu_refusal(device) or (bfloat16_refusal(device) if dtype == torch.bfloat16 else "")


@functools.cache
def bfloat16_refusal(device: torch.device) -> str:
    """The reason why a GPU has no tensor cores for bfloat16; empty if it has."""
    if torch.version.hip or torch.cuda.get_device_capability(device) >= OLDEST_BFLOAT16_GPU:
        return ""
    return f"bfloat16 needs sm_80; {torch.cuda.get_device_name(device)} is older"


@functools.cache
def say_fallback(operator: str, why: str) -> None:
    """Warn once that the reference is used."""
    warnings.warn(
        f"fassd_kernels: {operator} runs on the reference operators ({why})",
        RuntimeWarning,
        stacklevel=4,
    )


def refuses(device: torch.device, dtype: torch.dtype | None) -> str:
    """:func:`refusal` for a device without an index (the current one), and for any type."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return refusal(device, dtype or torch.float32)


def first_line(error: BaseException) -> str:
    """The name of an error's class, and the first line of its message."""
    said = next(iter(str(error).strip().splitlines()), "")[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def describe() -> str:
    """The hardware and versions that the kernels run on."""
    version = importlib.import_module("triton").__version__
    where = "interpreted, for tests" if INTERPRETED else torch.cuda.get_device_name()
    return f"Triton {version}, {where}"
