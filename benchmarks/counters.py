"""The hardware's counters, of a network's slowest launches: what Nsight Compute reads of them."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import UnavailableError
from benchmarks.process import LAUNCH, run_logged, tail
from benchmarks.tools import find_tool, read_log

SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "WarpStateStats",
    "LaunchStats",
)
MOST = 5
"""The slowest launches, that are recorded."""

# Of a figure, the metric, or what older or newer versions call it. Percentages are of the peak.
METRICS: dict[str, tuple[str, ...]] = {
    "sm": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "dram": (
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "l2": ("lts__throughput.avg.pct_of_peak_sustained_elapsed",),
    "occupancy": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "registers": ("launch__registers_per_thread",),
    "blocks": ("launch__grid_size",),
}
DURATION = "gpu__time_duration.sum"
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
STALL = re.compile(
    r"smsp__average_warp(?:s|_latency)_issue_stalled_(\w+?)(?:_per_issue_active)?\.ratio"
)
ISSUED = "selected"  # among the states of a warp, the one that is no stall


def count_launches(logs: Path, limit_s: float, **arguments: Any) -> dict[str, Any]:
    """Run a forward under ncu, whose log is ``counters.csv``.

    Args:
        logs: the folder of logs.
        limit_s: seconds.
        arguments: of `benchmarks.forward`.

    Returns:
        ``launches``, their number; ``us``, what all of them take, each alone; ``slowest``.

    Raises:
        UnavailableError: ncu is not installed, or may not read the counters.
        RuntimeError: it failed, or saw nothing; the message holds the end of a log.
        TimeLimitError: it took too long.
    """
    found, log = logs / "counters.csv", logs / "counters.log"
    found.unlink(missing_ok=True)
    command = [find_tool("ncu"), "--clock-control", "none", "--profile-from-start", "off"]
    for section in SECTIONS:
        command += ["--section", section]
    command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(found)]
    command += [sys.executable, str(LAUNCH), "benchmarks.forward", json.dumps(arguments)]
    code = run_logged(command, log, limit_s, {})
    text = read_log(found)
    refused = re.search(r"^==ERROR== .*", text + "\n" + read_log(log), re.MULTILINE)
    if refused:
        raise UnavailableError(f"ncu: {refused[0].removeprefix('==ERROR== ')}")
    launches = parse(text)
    if code != 0 or not launches:
        raise RuntimeError(
            f"ncu ended with code {code} and saw {len(launches)} launches:\n{tail(log)}"
        )
    slowest = sorted(launches, key=lambda launch: -launch["us"])[:MOST]
    return {
        "network": arguments["network"],
        "launches": len(launches),
        "us": sum(launch["us"] for launch in launches),
        "slowest": slowest,
    }


def parse(text: str) -> list[dict[str, Any]]:
    """The launches of ncu's raw page: a line of names, a line of units, and one of each launch."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[header:]))
    if not rows:
        return []
    units, *launches = rows
    return [launch_of(row, units, index) for index, row in enumerate(launches)]


def launch_of(row: Mapping[str, str], units: Mapping[str, str], index: int) -> dict[str, Any]:
    """What is kept of a line; a figure that ncu did not give is None."""
    unit = MICROSECONDS[units[DURATION].replace("second", "s")]
    stalls = {
        match[1]: value
        for name, text in row.items()
        if (match := STALL.fullmatch(name)) and (value := number_of(text)) is not None
    }
    stalls = {k: v for k, v in stalls.items() if k != ISSUED and not k.endswith("not_issued")}
    top = max(stalls, key=lambda name: stalls[name], default=None)
    figures = {name: first_of(row, metrics) for name, metrics in METRICS.items()}
    return {
        "index": index,
        "kernel": row["Kernel Name"],
        "us": unit * (number_of(row[DURATION]) or 0.0),
        **figures,
        "stall": top,
        "stall_share": stalls[top] / (sum(stalls.values()) or 1.0) if top else None,
    }


def first_of(row: Mapping[str, str], metrics: Sequence[str]) -> float | None:
    return next((number_of(row[name]) for name in metrics if row.get(name)), None)


def number_of(text: str | None) -> float | None:
    """A figure as ncu writes it, thousands apart by commas."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
