"""Facts about a device, first checks of the kernels, its ceilings, and a stream of pictures."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import Columns, Record, escape, matches, number, output_of, table
from benchmarks.tools import Visit
from fassd.bench import machine
from fassd.bench.candidates import require_operators
from fassd.bench.plain import Labelled, Normalize
from fassd.bench.stopwatch import Run, interleaved
from fassd.bench.subjects import (
    NETWORK_NEEDS,
    NORMALIZE,
    Case,
    fused_network,
    subject_of,
)
from fassd.evaluation.agreement import TOLERANCES, compare
from fassd.models.clock import synchronize
from fassd_kernels.tuning.accuracy import relative_error

# --- facts ----------------------------------------------------------------------------------------

SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def describe_environment(visit: Visit) -> dict[str, Any]:
    """Facts about this machine, for people, and the state of each backend; sizes in bytes."""
    import fassd_kernels

    device = visit.device
    nvcc = re.search(r"release ([\d.]+)", output_of(["nvcc", "--version"]))
    facts = {
        **machine.environment(device),
        **(gpu_facts(device) if device.type == "cuda" else {}),
        "cudnn": torch.backends.cudnn.version() or "none",
        "nvcc": nvcc[1] if nvcc else "none",
        "tf32 in convolutions (torch.backends.cudnn.allow_tf32)": torch.backends.cudnn.allow_tf32,
        "float32 matrix products": torch.get_float32_matmul_precision(),
        "fassd_kernels": str(Path(fassd_kernels.__file__).parent),
    }
    backends = [
        {"name": b.name, "available": b.available, "reason": b.reason}
        for b in fassd_kernels.backends()
    ]
    return {"facts": facts, "backends": backends}


def environment_section(runs: Sequence[Record]) -> str:
    (data,) = runs
    facts = ((name, escape(str(value))) for name, value in data["facts"].items())
    backends: Columns = {
        "backend": itemgetter("name"),
        "state": lambda b: "available" if b["available"] else escape(b["reason"]),
    }
    first = table({"what": itemgetter(0), "value": itemgetter(1)}, facts)
    return "\n".join([first, table(backends, data["backends"])])


def gpu_facts(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(device)
    return {
        "compute capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "L2 bytes": card.L2_cache_size,
        "memory bytes": card.total_memory,
        **{f"nvidia-smi {name}": value for name, value in smi(f"GPU-{card.uuid}").items()},
    }


def smi(card: str) -> dict[str, str]:
    """nvidia-smi's facts about a card; empty if the tool is missing or does not answer."""
    query = f"--query-gpu={','.join(SMI_FIELDS)}"
    answer = output_of(["nvidia-smi", f"--id={card}", query, "--format=csv,noheader"])
    values = [value.strip() for value in answer.split(",")]
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else {}


# --- first checks ---------------------------------------------------------------------------------

SHAPE = (1, 256, 512, 3)
SLEEP_CYCLES = 50_000_000
"""Some 25 ms on a GPU: a kernel that does not wait for the stream reads the picture too early."""


def smoke(visit: Visit, backend: str) -> dict[str, Any]:
    """Run `normalize` of a backend; on a GPU on a stream of its own, where the picture is late.

    Returns:
        ``checks``: for each dtype the relative error.

    Raises:
        UnavailableError: the backend is not available.
        RuntimeError: a result is wrong; the message names the checks.
    """
    device = visit.device
    checks: list[dict[str, Any]] = []
    for name in ("float32", "float16"):
        subject = subject_of(Case("operators", NORMALIZE, *SHAPE[1:3], name), device, "")
        call = subject.candidate(backend).call
        image, late = (subject.inputs(index)[0] for index in range(2))
        synchronize(device)
        with ExitStack() as stack:
            if device.type == "cuda":
                stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
                torch.cuda._sleep(SLEEP_CYCLES)
            image.copy_(late)
            output = call(image)
        synchronize(device)
        error = relative_error(output, subject.reference(late))
        match = error <= TOLERANCES["operators"][name]
        check = f"{backend}, normalize, {name}"
        checks.append({"check": check, "rel_error": f"{error:.2e}", "match": match})
    wrong = [check["check"] for check in checks if not check["match"]]
    if wrong:
        raise RuntimeError(f"wrong result: {'; '.join(wrong)}")
    return {"checks": checks}


SMOKE_COLUMNS: Columns = {
    "check": itemgetter("check"),
    "error": itemgetter("rel_error"),
    "match": lambda check: matches(check["match"]),
}


def smoke_section(runs: Sequence[Record]) -> str:
    return table(SMOKE_COLUMNS, [check for data in runs for check in data["checks"]])


# --- ceilings -------------------------------------------------------------------------------------

FORMATS = {
    "float16": (torch.float16, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
"""Name of a rate -> dtype of the matrices and `torch.set_float32_matmul_precision`."""


def measure_ceilings(visit: Visit, copy_bytes: int, matrix_side: int) -> dict[str, Any]:
    """Copy bandwidth (read + written) in bytes/s, and matrix rates in operations/s.

    Through PyTorch's own calls, on random data: a matrix product of zeros runs measurably faster
    than one of real numbers (less switching, higher clocks).

    Args:
        copy_bytes: size of the source buffer of the copy.
        matrix_side: side of the square matrices; a product counts 2 * side^3 operations.
    """
    device = visit.device
    source = torch.randint(-(2**62), 2**62, (copy_bytes // 8,), dtype=torch.int64, device=device)
    copy_s = median_s(visit, partial(torch.empty_like(source).copy_, source))
    matrix = {}
    before = torch.get_float32_matmul_precision()
    for name, (dtype, precision) in FORMATS.items():
        a, b = (torch.randn(matrix_side, matrix_side, device=device).to(dtype) for _ in range(2))
        torch.set_float32_matmul_precision(precision)
        try:
            seconds = median_s(visit, partial(torch.matmul, a, b, out=torch.empty_like(a)))
        finally:
            torch.set_float32_matmul_precision(before)
        matrix[name] = 2 * matrix_side**3 / seconds
    return {
        "copy_bytes": copy_bytes,
        "bytes_per_s": 2 * copy_bytes / copy_s,
        "matrix_side": matrix_side,
        "operations_per_s": matrix,
    }


def median_s(visit: Visit, once: Callable[[], Tensor]) -> float:
    """Seconds of a call without an input."""
    run = Run(once, 1, "", lambda: [])
    return interleaved({"": run}, visit.device, visit.bench.sampling)[""].median


def ceilings_section(runs: Sequence[Record]) -> str:
    (data,) = runs
    what = f"copy of {data['copy_bytes'] / 2**20:,.0f} MiB, read + written"
    rows = [(what, f"{data['bytes_per_s'] / 1e9:,.0f} GB/s")]
    for name, rate in data["operations_per_s"].items():
        what = f"matrix product, {name}, side {data['matrix_side']}"
        rows.append((what, f"{rate / 1e12:,.3g} TFLOP/s"))
    return table({"what": itemgetter(0), "measured": itemgetter(1)}, rows)


# --- from pictures in memory to labels there ------------------------------------------------------


def measure_runner(
    visit: Visit, backend: str, network: str, seconds: float, **place: Any
) -> dict[str, Any]:
    """Frames per second of a stream through `fassd_kernels.Runner`, copies included.

    Args:
        backend: name of our backend.
        network: name of the network.
        seconds: minimum duration of the stream.
        place: batch, height, width and dtype.

    Returns:
        ``fps``, ``latency_ms`` of a single call, ``frames``; and, for the labels of one picture,
        ``rel_error``, ``tolerance`` and ``match``.

    Raises:
        UnavailableError: the backend is not available.
    """
    from fassd_kernels import Runner

    device = visit.device
    require_operators(backend, NETWORK_NEEDS, device)
    case = Case("networks", network, **place)
    subject = subject_of(case, device, "")
    assert isinstance(subject.module, Labelled)
    fast = fused_network(subject.module.to(device), case.torch_dtype, backend)
    batch = None if case.batch == 1 else case.batch
    runner = Runner(fast, (case.height, case.width), case.torch_dtype, device, batch)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, runner.shape, dtype=torch.uint8, generator=generator)
    record: dict[str, Any] = {"network": network, "backend": backend, **place}
    with warnings.catch_warnings():
        # A runner without its graph is not to be measured.
        warnings.filterwarnings("error", "GraphRunner: ", RuntimeWarning)
        labels = runner(frame)
        speed = runner.measure(seconds)
    assert isinstance(labels, torch.Tensor)
    pictures = frame.view(case.batch, *runner.size, 3).to(device)
    scores = subject.reference(Normalize().to(device)(pictures))
    limit = TOLERANCES["networks"][case.dtype]
    compare([labels.view(case.batch, *runner.size).to(device)], [scores], limit, record)
    latency_ms = 1e3 * speed.latency_s
    return {**record, "fps": speed.fps, "latency_ms": latency_ms, "frames": speed.frames}


RUNNER_COLUMNS: Columns = {
    "network": itemgetter("network"),
    "backend": itemgetter("backend"),
    "pictures": lambda data: "{batch}x{height}x{width}".format(**data),
    "dtype": itemgetter("dtype"),
    "frames/s": lambda data: f"{data['fps']:,.0f}",
    "one call, ms": lambda data: number(data["latency_ms"]),
    "match": lambda data: matches(data["match"]),
}


def runner_faults(data: Record) -> list[str]:
    return [] if data["match"] else ["the labels do not match the reference"]
