"""Peak memory of a call."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """Peak memory of a call in bytes beyond what was there before it, or None and the reason."""

    peak: int | None
    note: str = ""


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
    """Peak resident memory that a call adds on the CPU, measured in a process of its own.

    The child builds the call, notes its resident memory, makes the call once (so that caches and
    packed weights exist), resets the kernel's high-water mark, calls again and reads the mark. So
    the figure holds the working memory and whatever the call keeps, but neither Python and PyTorch
    nor the model's weights.

    Args:
        factory: "module:function"; the function takes `arguments` and returns the call.
        arguments: keyword arguments that JSON can carry.
        timeout: seconds after which the child is given up.

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
    """What the measuring process runs: the job from standard input, the figure to the output."""
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


# ------------------------------------------------------------------------------------ environment
