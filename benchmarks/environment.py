"""What a figure has to be read with: the card, the driver, the libraries, the commit."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Facts about this machine, for people; sizes in bytes."""
    facts = {
        **(gpu_facts(device) if device.type == "cuda" else {"device": cpu_name()}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "cuda (torch)": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "nvcc": nvcc_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpu cores": os.cpu_count(),
        "tf32 in convolutions (torch.backends.cudnn.allow_tf32)": torch.backends.cudnn.allow_tf32,
        "float32 matrix products": torch.get_float32_matmul_precision(),
        "date": now(),
    }
    return {"facts": facts, **package_facts()}


def gpu_facts(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "L2 bytes": card.L2_cache_size,
        "memory bytes": card.total_memory,
        **{f"nvidia-smi {name}": value for name, value in smi(f"GPU-{card.uuid}").items()},
    }


def smi(card: str) -> dict[str, str]:
    """What nvidia-smi says of a card; nothing where it is not there or does not answer."""
    command = [
        "nvidia-smi",
        f"--id={card}",
        f"--query-gpu={','.join(SMI_FIELDS)}",
        "--format=csv,noheader",
    ]
    values = [value.strip() for value in output_of(command).split(",")]
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else {}


def package_facts() -> dict[str, Any]:
    """Where the package that is measured was imported from, and its backends."""
    import fassd_kernels

    return {
        "fassd_kernels": str(Path(fassd_kernels.__file__).parent),
        "backends": [
            {"name": b.name, "available": b.available, "reason": b.reason}
            for b in fassd_kernels.backends()
        ],
    }


def version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def nvcc_version() -> str:
    found = re.search(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    return found[1] if found else "none"


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.machine()


def output_of(command: list[str]) -> str:
    """Standard output of a short command; empty where it fails or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The commit of the checkout, with ``+changes`` where files differ from it."""
    head = output_of(["git", "rev-parse", "HEAD"])
    if not head:
        return "unknown"
    return head + (
        "+changes" if output_of(["git", "status", "--porcelain", "--untracked-files=no"]) else ""
    )


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def digest(paths: Iterable[str]) -> str:
    """A short hash of the sources under `paths`, relative to the repository."""
    total = hashlib.sha256()
    for path in paths:
        found = ROOT / path
        files = sorted(found.rglob("*")) if found.is_dir() else [found]
        for file in files:
            if file.is_file() and file.suffix in SOURCE_SUFFIXES:
                total.update(str(file.relative_to(ROOT)).encode())
                total.update(file.read_bytes())
    return total.hexdigest()[:16]


SOURCE_SUFFIXES = {".py", ".def", ".h", ".cuh", ".cpp", ".cu", ".toml"}


def slug(name: str) -> str:
    """A folder's name: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
