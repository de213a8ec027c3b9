"""A network's launches on a GPU: each compared with its plan, and the hardware's counters."""

from __future__ import annotations

import contextlib
import csv
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import filterfalse
from typing import Any

import torch

from benchmarks import NONE, Columns, Record, escape, number, scaled, table
from benchmarks.tools import (
    ProgramError,
    TimeLimitError,
    Visit,
    find_tool,
    forward_command,
    read_log,
)
from fassd.bench.candidates import UnavailableError, require_operators
from fassd.bench.costs import SUMS
from fassd.bench.costs.cuda import TIMES, find_device, predict_network
from fassd.bench.plain import CLASSES
from fassd.bench.subjects import NETWORK_NEEDS
from fassd.models.device import DTYPES

# --- launches, as planned and as the GPU saw them -------------------------------------------------

REPLAYS = 20
"""Replays of a network's graph, whose median is a launch's time."""

MOST_LAUNCHES = 12
"""Number of a network's launches that the page lists, longest first; ``report.json`` has all."""


def profile_network(visit: Visit, backend: str, network: str, **place: Any) -> dict[str, Any]:
    """Check that an accelerated network only consists of our launches, and time each.

    Args:
        backend: name of our backend.
        network: name of the network.
        place: batch, height, width and dtype; the input is channels_last.

    Returns:
        ``planned`` and ``seen``, numbers of launches, and the ``foreign`` ones by name;
        ``kernels``: name and seconds of each launch in order; ``measured_s``, of a whole replay;
        ``rows``: equal launches grouped, with the prediction of the CUDA backend's time model if
        they match it, otherwise by the kernel's name; ``mismatch``: the first difference from it.

    Raises:
        UnavailableError: the backend, its planner, or the profiler is not available.
    """
    from fassd.bench import timeline
    from fassd.bench.costs.triton import plan_network

    require_operators(backend, NETWORK_NEEDS, visit.device)
    if visit.device.type != "cuda":
        raise UnavailableError("only a GPU's launches can be profiled")
    try:
        device = find_device(torch.cuda.get_device_name(visit.device))
        case = (network, place["height"], place["width"], device)
        settings = {"batch": place["batch"], "dtype": DTYPES[place["dtype"]]}
        planned: Any = predict_network(*case, **settings)
        seen = timeline.time_network(planned, REPLAYS, CLASSES, alpha=2, backend=backend)
        if backend == "triton":
            planned = [one.launch.kernel.__name__ for one in plan_network(*case, **settings)]
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    except RuntimeError as error:
        if "CUPTI" not in str(error):
            raise
        raise UnavailableError(str(error)) from None
    found = launch_times(planned, seen)
    return {"network": network, "backend": backend, "dtype": place["dtype"], **found}


def launch_times(planned: Any, seen: Any) -> dict[str, Any]:
    """A `Timeline` combined with its `Prediction`, or with the names of our Triton kernels.

    If the GPU ran other kernels than predicted, ``mismatch`` says which; their times are kept.
    """
    from fassd.bench import timeline

    names = [kernel.name for kernel in seen.replays[0]]
    alike = [replay for replay in seen.replays if [k.name for k in replay] == names]
    spans = zip(*map(timeline.spans_of, alike), strict=True)
    kernels = [
        {"kernel": name, "measured_s": statistics.median(times)}
        for name, times in zip(names, spans, strict=True)
    ]
    found = {"seen": len(names), "kernels": kernels, "measured_s": statistics.median(seen.seconds)}
    if isinstance(planned, list):
        others, count = foreign(names, planned), len(planned)
        return {"planned": count, "foreign": others, **found, "rows": rows_by_kernel(kernels)}
    others, count = dict(Counter(filterfalse(is_cuda_kernel, names))), len(planned.launches)
    found |= {"planned": count, "foreign": others, "predicted_s": planned.predicted}
    try:
        measured = timeline.measured(planned, timeline.Timeline(alike, seen.seconds))
    except ValueError as error:
        return {**found, "mismatch": str(error), "rows": rows_by_kernel(kernels)}
    return {**found, "rows": measured.to_json()["rows"]}


def foreign(seen: Sequence[str], planned: Sequence[str]) -> dict[str, int]:
    """The `seen` launches of kernels that were not planned, with their number."""
    return dict(Counter(name for name in seen if not name.startswith(tuple(planned))))


def is_cuda_kernel(name: str) -> bool:
    """True if a kernel is from our CUDA sources, by its name, mangled or not."""
    return "fassd::cuda" in name or "5fassd4cuda" in name


def rows_by_kernel(kernels: Sequence[Record]) -> list[dict[str, Any]]:
    """Launches grouped by name, without a prediction, as rows of the page's table."""
    rows: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        name = kernel["kernel"]
        row = rows.setdefault(name, {"label": name, "count": 0, "measured_s": 0.0})
        row["count"] += 1
        row["measured_s"] += kernel["measured_s"]
    return list(rows.values())


def profile_faults(data: Record) -> list[str]:
    """Launches that were not planned, or planned but not seen."""
    alike = not data["foreign"] and data["seen"] == data["planned"]
    return [] if alike else [launches_text(data)]


def launches_text(data: Record) -> str:
    others = ", ".join(f"{count} of {name}" for name, count in data["foreign"].items())
    return (
        f"{data['network']} in {data['dtype']} through {data['backend']} is {data['seen']} "
        f"launches, {data['planned']} of our kernels were planned; others: {others or 'none'}"
    )


def profile_section(runs: Sequence[Record]) -> str:
    parts = []
    for data in runs:
        parts.append(f"{escape(launches_text(data))}.\n")
        if "mismatch" in data:
            parts.append(f"{escape(data['mismatch'])}.\n")
        longest = sorted(data["rows"], key=lambda row: -row["measured_s"])[:MOST_LAUNCHES]
        parts.append(table(LAUNCH_COLUMNS, longest))
    return "\n".join(parts)


LAUNCH_COLUMNS: Columns = {
    "launch": lambda row: escape(row["label"]),
    "channels": lambda row: escape(row.get("channels", NONE)),
    "size": lambda row: "{height}x{width}".format(**row) if "height" in row else NONE,
    "tile": lambda row: row.get("tile") or NONE,
    "bound by": lambda row: row.get("bound", NONE),
    "x": lambda row: str(row["count"]),
    "blocks": lambda row: str(row.get("blocks") or NONE),
    "waves": lambda row: f"{row['waves']:.2f}" if row.get("blocks") else NONE,
    **{
        title.replace("\n", " "): scaled(f"{name}_s" if name in TIMES else name, unit, digits)
        for title, name, unit, digits in SUMS
    },
}
"""Columns for equal launches: rows of `Prediction.to_json`, or of `rows_by_kernel`."""


# --- ncu ------------------------------------------------------------------------------------------

SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "InstructionStats",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "WarpStateStats",
    "LaunchStats",
)

# For each figure the metric, and its name in older or newer versions. Percentages are of the peak.
METRICS: dict[str, tuple[str, ...]] = {
    "sm": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "dram": (
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "l2": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "occupancy": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "issue_slots_busy": (
        "sm__inst_issued.avg.pct_of_peak_sustained_active",
        "sm__instruction_throughput.avg.pct_of_peak_sustained_active",
        "smsp__issue_active.avg.pct_of_peak_sustained_active",
    ),
    "instructions": ("smsp__inst_executed.sum", "sm__inst_executed.sum"),
    "registers": ("launch__registers_per_thread",),
    "blocks": ("launch__grid_size",),
}
DURATION = "gpu__time_duration.sum"
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
STALL = re.compile(
    r"smsp__average_warp(?:s|_latency)_issue_stalled_(\w+?)(?:_per_issue_active)?\.ratio"
)
ISSUED = "selected"  # among the states of a warp, the one that is not a stall
NO_INSTRUCTION = "no_instruction"  # the stall of a warp that waits for its next instruction


def count_launches(visit: Visit, **arguments: Any) -> dict[str, Any]:
    """Run a forward pass under ncu, whose log is ``counters.csv``.

    Args:
        arguments: arguments of `forward`.

    Returns:
        ``launches``, their number; ``us``, the time of all of them, each alone; ``rows``, the
        figures of every launch in order.

    Raises:
        UnavailableError: ncu is not installed, or may not read the counters.
        ProgramError: it saw no launch.
    """
    found = visit.fresh("counters.csv")
    command = [find_tool("ncu"), "--clock-control", "none", "--profile-from-start", "off"]
    for section in SECTIONS:
        command += ["--section", section]
    command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(found)]
    outcome = "was killed at its limit"
    with contextlib.suppress(TimeLimitError):  # the launches written so far are worth keeping
        code = visit.run([*command, *forward_command(arguments)], "counters")
        outcome = f"ended with code {code}"
    text = read_log(found)
    said = read_log(visit.logs / "counters.log")
    refused = re.search(r"^==ERROR== (.*)", f"{text}\n{said}", re.MULTILINE)
    launches = parse_counters(text)
    if refused and not launches:
        raise UnavailableError(f"ncu: {refused[1]}")
    if not launches:
        raise ProgramError(f"ncu {outcome} and saw no launch:\n{visit.tail('counters')}")
    return {
        "network": arguments["network"],
        "launches": len(launches),
        "us": sum(launch["us"] for launch in launches),
        "outcome": outcome,
        "rows": launches,
    }


def parse_counters(text: str) -> list[dict[str, Any]]:
    """The launches on ncu's raw page: a line of names, a line of units, and a line per launch."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[header:]))
    if not rows:
        return []
    units, *launches = rows
    return [launch_of(row, units, index) for index, row in enumerate(launches)]


def launch_of(row: Mapping[str, str], units: Mapping[str, str], index: int) -> dict[str, Any]:
    """The figures of a line; None for those that ncu did not give."""
    unit = MICROSECONDS[units[DURATION].replace("second", "s")]
    stalls = {
        match[1]: value
        for name, text in row.items()
        if (match := STALL.fullmatch(name or "")) and (value := number_of(text)) is not None
    }
    stalls = {k: v for k, v in stalls.items() if k != ISSUED and not k.endswith("not_issued")}
    top = max(stalls, key=lambda name: stalls[name], default=None)
    total = sum(stalls.values()) or 1.0
    figures = {
        name: next((number_of(row[metric]) for metric in metrics if row.get(metric)), None)
        for name, metrics in METRICS.items()
    }
    shares = {name: value / total for name, value in stalls.items()}
    return {
        "index": index,
        "kernel": row["Kernel Name"],
        "us": unit * (number_of(row[DURATION]) or 0.0),
        **figures,
        "stall": top,
        "stall_share": shares.get(top or ""),
        "no_instruction_share": shares.get(NO_INSTRUCTION),
    }


def number_of(text: str | None) -> float | None:
    """A figure in ncu's format, with commas between thousands."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def of_hundred(name: str) -> Callable[[Record], str]:
    return lambda one: NONE if one[name] is None else f"{one[name]:.0f}%"


COUNTED: Columns = {
    "launch": lambda one: str(one["index"]),
    "kernel": lambda one: escape(one["kernel"]),
    "us": lambda one: number(one["us"]),
    "SM": of_hundred("sm"),
    "DRAM": of_hundred("dram"),
    "L2": of_hundred("l2"),
    "occupancy": of_hundred("occupancy"),
    "issue slots": of_hundred("issue_slots_busy"),
    "instructions": scaled("instructions"),
    "top stall": lambda one: one["stall"] or NONE,
    "of stalls, %": scaled("stall_share", 100),
    "no instruction, %": scaled("no_instruction_share", 100),
    "registers": scaled("registers"),
    "blocks": scaled("blocks"),
}
"""Columns for a launch that ncu saw."""


def counters_section(runs: Sequence[Record]) -> str:
    texts = []
    for data in runs:
        slowest = sorted(data["rows"], key=lambda one: -one["us"])[:MOST_LAUNCHES]
        texts += [
            f"The slowest of {data['launches']} launches of {data['network']}, which take "
            f"{number(data['us'])} us in all, each alone.\n",
            table(COUNTED, slowest),
        ]
    return "\n".join(texts)
