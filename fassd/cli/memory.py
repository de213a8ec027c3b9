"""A limit on a process's memory, so that exceeding it is an error and does not kill the process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def bounded_memory(processes: int = 1) -> Iterator[None]:
    """Let allocations fail when the machine, or its container, has no memory left for them.

    Linux promises memory that it does not have, and then kills a process that uses it. On other
    systems, and if a GPU's driver maps memory of its own, there is no limit.

    Args:
        processes: number of processes that share the machine's memory.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(OSError, KeyError):  # a kernel without these figures
        limit = _sizes("/proc/self/status")["VmData"] + _free() // processes
        limit = min([limit, *(each for each in before if each != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _free() -> int:
    """Free bytes of the machine, or of the process's control groups."""
    machine = _sizes("/proc/meminfo")
    free = machine["MemAvailable"] + machine["SwapFree"]
    group = Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()
    for folder in (CGROUPS / group, *(CGROUPS / group).parents):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            cached = dict(line.split() for line in (folder / "memory.stat").open())["file"]
            free = min(free, limit - used + int(cached))
    return max(0, free)


def _sizes(file: str) -> dict[str, int]:
    """The lines "Name: 123 kB" of a file, in bytes."""
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return {words[0][:-1]: 1024 * int(words[1]) for words in lines if words[2:] == ["kB"]}
