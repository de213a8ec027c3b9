"""Timing that can be believed: interleaved rounds, medians with their spread, outputs compared."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fassd

__all__ = [
    "AGREEMENT_LIMIT",
    "SETTLE",
    "Agreement",
    "Memory",
    "Timing",
    "agreement",
    "agreement_of",
    "compare",
    "environment",
    "equal_labels",
    "peak_memory",
    "peak_memory_of_child",
    "torch_threads",
]

SETTLE = 0.05
"""`settle` of `compare` where candidates are runtimes: each has worker threads of its own,
which spin for a while. FASSD-Net at 128x256 on two cores of an EPYC: right after another runtime,
OpenVINO takes 11 ms and ours 16; after a rest 8, and 7 to 20 as the threads happen to wake; after a
rest and a call 5.5 and 6.1, round after round, as each does alone."""

AGREEMENT_LIMIT = 99.0
"""Share of equal labels in per cent below which two candidates do not do the same work, so that
their speeds are not compared."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every measured call of one candidate, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; the middle half of the calls lies between them."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles."""
        first, third = self.quartiles
        return (third - first) / 2

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Every figure of it, in seconds, ready for `json.dump`."""
        return {
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            "spread_s": self.spread,
            "minimum_s": self.minimum,
            "n": len(self.seconds),
            "seconds": self.seconds,
        }


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 10,
    warmup: int = 2,
    settle: float = 0,
    device: torch.device | str = "cpu",
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time several candidates fairly.

    Every round calls each candidate once, beginning with another one each time, so that a slow
    moment of the machine or a rising temperature meets all of them alike.

    Args:
        candidates: what to call, by name.
        repeats: measured rounds.
        warmup: rounds before them that are not measured.
        settle: for candidates that do not share their worker threads, seconds to wait before each
            measured call, in which the threads of the candidate before it stop spinning on the
            cores; then it is called once unmeasured, which wakes its own and fills its caches.
        device: on CUDA, calls are timed by events on the current stream, one call at a time.
        tick: called after every round, warm-up included (for a progress bar).

    Returns:
        A `Timing` for each name.

    Raises:
        ValueError: no candidates, `repeats` below 1, or `warmup` below 0.
    """
    if not candidates:
        raise ValueError("candidates is empty")
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}"
        )
    stopwatch = _cuda_seconds if torch.device(device).type == "cuda" else _seconds
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-warmup, repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            if settle and round_ >= 0:
                time.sleep(settle)
                candidates[name]()
            elapsed = stopwatch(candidates[name])
            if round_ >= 0:
                seconds[name].append(elapsed)
        tick()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Agreement:
    """How far one output equals another.

    Attributes:
        labels: pixels whose largest score is the same class, in per cent.
        relative: largest difference of two scores, over the largest reference score; NaN or
            infinite where an output is; None of an output that holds labels alone.
    """

    labels: float
    relative: float | None

    @property
    def comparable(self) -> bool:
        """Whether the two do the same work, so that their speeds may be compared."""
        return self.labels >= AGREEMENT_LIMIT


def equal_labels(reference: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of labels (N, H, W) of any integer type that equal the reference's, in per cent.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != labels.shape:
        raise ValueError(
            f"labels must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    return 100 * (reference == labels.to(reference.device)).double().mean().item()


def agreement(reference: torch.Tensor, logits: torch.Tensor) -> Agreement:
    """Compare logits (N, classes, H, W) with the reference's.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != logits.shape:
        raise ValueError(
            f"logits must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(logits.shape)}"
        )
    logits = logits.to(reference.device, reference.dtype)
    largest = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    difference = (logits - reference).abs().max() / largest
    return Agreement(equal_labels(reference.argmax(1), logits.argmax(1)), difference.item())


def agreement_of(reference: torch.Tensor, output: torch.Tensor) -> Agreement:
    """`agreement` with an output that may be labels, uint8 (N, H, W)."""
    if output.dtype == torch.uint8:
        return Agreement(equal_labels(reference.argmax(1).cpu(), output), None)
    return agreement(reference, output)


# ----------------------------------------------------------------------------------------- memory


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
    program = "from fassd.bench.stopwatch import _memory_child; _memory_child()"
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


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where figures come from: device, threads, versions, date, commit; ready for JSON.

    The instruction set is that of the C++ kernels, "" where they are missing. The commit is None
    outside a checkout, and ends in ``-dirty`` where files differ from it.
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
        "versions": {name: _version(name) for name in ("numpy", "onnx", "onnxruntime", "openvino")},
        "commit": _commit(Path(fassd.__file__).parents[1]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():  # installed, perhaps inside somebody else's checkout
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


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` CPU threads for a while; None leaves its own choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
