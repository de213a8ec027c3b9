"""Facts about the machine and the installed packages."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fassd

PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "triton")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The origin of figures: device, threads, versions, date, commit; ready for JSON.

    The instruction set is that of the C++ kernels, or "" without them. The commit is None outside a
    checkout, and ends in ``-dirty`` if files differ from it.
    """
    import fassd_kernels

    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device_type": device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": fassd_kernels.ops.CPU_CAPABILITY,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "fassd": fassd.__version__,
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(Path(fassd.__file__).parents[1]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():  # installed, perhaps inside another project's checkout
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu_name() -> str:
    with_name = Path("/proc/cpuinfo")
    if with_name.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", with_name.read_text(), re.M)
        if found is not None:
            return found[1].strip()
    return platform.processor() or platform.machine()
