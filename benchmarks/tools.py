"""Programs that the GPU report starts: pytest on the conformance suite, NVIDIA's tools, the tuner.

Each is given a time limit, writes a log, and is killed past its limit.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import ROOT, output_of
from fassd.bench.candidates import UnavailableError

GRACE_S = 5.0
TOOLKIT = Path("/usr/local/cuda/bin")
NOTHING: Mapping[str, str] = MappingProxyType({})


class TimeLimitError(Exception):
    """The program was still at work at its limit, and was killed."""


def run_logged(
    command: Sequence[str],
    log: Path | None,
    limit_s: float,
    environment: Mapping[str, str] = NOTHING,
) -> int:
    """Run `command` in the repository, output to `log`, if any; return its exit code.

    Raises:
        TimeLimitError: it took longer than `limit_s` seconds.
    """
    with log.open("wb") if log else contextlib.nullcontext() as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TimeLimitError(f"killed after {limit_s:.0f} s") from None
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_S)


def read_log(path: Path) -> str:
    """The text of a log; empty where there is no file."""
    return path.read_text(errors="replace") if path.exists() else ""


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    return "\n".join(read_log(log).splitlines()[-lines:])


def find_tool(name: str) -> str:
    """The path of a tool of the CUDA toolkit.

    Raises:
        UnavailableError: it is not installed.
    """
    found = shutil.which(name) or shutil.which(TOOLKIT / name)
    if found is None:
        raise UnavailableError(f"{name} is not installed: neither on PATH nor in {TOOLKIT}")
    return found


# --- the conformance suite ------------------------------------------------------------------------

ENDED_BY_ITSELF = (0, 1, 2, 5)
"""pytest's exit codes: passed, failed, interrupted (a file did not import), nothing to run."""

MOST_PROCESSES = 8
MOST_FAILURES = 40
"""Failures that are recorded with their message; all are counted."""

MESSAGE_LENGTH = 400


def conformance(
    logs: Path,
    limit_s: float,
    suite: str,
    options: Sequence[str],
    name: str = "conformance",
    under: Sequence[str] = (),
    environment: Mapping[str, str] = NOTHING,
) -> dict[str, Any]:
    """Run the tests in `suite` with `options` and count them by outcome.

    Args:
        logs: the folder of logs.
        limit_s: seconds; pytest-timeout ends the run a little before, between two tests.
        suite, options: of pytest.
        name: of the log.
        under: a command that watches the one behind it; the suite then runs in one process.
        environment: variables to add.

    Returns:
        ``counts`` by outcome, ``finished``, ``failures`` with messages; ``crash``, with the end of
        the log, if pytest did not end by itself.

    Raises:
        UnavailableError: pytest-reportlog, which writes each result as it comes, is missing.
        RuntimeError: no test was run; the message holds the end of the log.
    """
    if importlib.util.find_spec("pytest_reportlog") is None:
        raise UnavailableError("pytest-reportlog is not installed (`make gpu-carry` brings it)")
    log, results = logs / f"{name}.log", logs / f"{name}.jsonl"
    results.unlink(missing_ok=True)
    processes = 1 if under else process_count()
    command = [*under, sys.executable, "-m", "pytest", suite, *options, "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--report-log={results}"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command.append(f"--session-timeout={max(limit_s - 2 * GRACE_S, 1):.0f}")
    if processes > 1:
        command += ["-n", str(processes)]
    threads = str(max((os.cpu_count() or 1) // processes, 1))
    code = 0
    with contextlib.suppress(TimeLimitError):  # cut short or not, what has been written is counted
        code = run_logged(command, log, limit_s, {**environment, "OMP_NUM_THREADS": threads})
    # The last line of a process that was killed may not be whole.
    lines = (line for line in read_log(results).splitlines(keepends=True) if line.endswith("\n"))
    summary = summarise(map(json.loads, lines))
    if not summary["counts"]:
        raise RuntimeError(f"no test was run:\n{tail(log)}")
    if code not in ENDED_BY_ITSELF:
        summary["crash"] = f"pytest ended with code {code}:\n{tail(log)}"
    summary["finished"] &= "session-timeout" not in read_log(log)
    return {"suite": suite, "options": list(options), "log": log.name, **summary}


def process_count() -> int:
    """Several processes on the one GPU, where pytest-xdist is installed and there are cores."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(min((os.cpu_count() or 1) // 2, MOST_PROCESSES), 1)


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and failures of a report log (pytest-reportlog)."""
    outcomes: dict[str, str] = {}
    failures: dict[str, str] = {}
    finished = False
    for record in records:
        kind = record["$report_type"]
        finished |= kind == "SessionFinish"
        if kind not in ("TestReport", "CollectReport"):
            continue
        # One outcome per test: of its call, or of its setup or teardown if not passed.
        when = record.get("when", "collect")
        if when != "call" and record["outcome"] == "passed":
            continue
        failed = record["outcome"] == "failed"
        outcome = "error" if failed and when != "call" else record["outcome"]
        outcomes[record["nodeid"]] = outcome
        if failed:
            failures[record["nodeid"]] = message_of(record["longrepr"])
    return {
        "counts": dict(Counter(outcomes.values())),
        "finished": finished,
        "failures": [
            {"test": test, "message": text} for test, text in list(failures.items())[:MOST_FAILURES]
        ],
    }


def message_of(longrepr: Any) -> str:
    crash = longrepr.get("reprcrash") if isinstance(longrepr, dict) else None
    return str(crash["message"] if crash else longrepr)[:MESSAGE_LENGTH]


# --- compute-sanitizer ----------------------------------------------------------------------------

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")

OURS = "5fassd4cuda"
"""In the mangled names of our kernels; those of PyTorch are not watched, which takes its time."""

# Out of PyTorch's cache, memory is in one large allocation, whose inside nobody watches.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "memcheck": UNCACHED,
    # The suite fills all memory with NaN first, and that would count as written.
    "initcheck": {**UNCACHED, "CONFORMANCE_UNPOISONED": "1"},
}

MOST_QUOTED = 5
"""Findings that are recorded with their text; all are counted."""

# "========= ERROR SUMMARY: 2 errors", "========= RACECHECK SUMMARY: 1 hazard displayed (...)"
SUMMARY = re.compile(r"^========= \w+ SUMMARY: (\d+) (?:error|hazard)", re.MULTILINE)
# What is said without a location is of the tool itself.
LOCATION = re.compile(r"^=========\s+(?:at|and|Warning: Race|Error: Race)\b.*", re.MULTILINE)
TROUBLE = re.compile(r"^=========.*(?:Internal Sanitizer Error|Error: (?!Race)).*", re.MULTILINE)


def sanitize(
    logs: Path,
    limit_s: float,
    tool: str,
    suite: str = "",
    options: Sequence[str] = (),
    forward: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run tests, or one forward of a network, under a tool of compute-sanitizer.

    Args:
        logs: the folder of logs; this one's is ``sanitizer.TOOL.txt``.
        limit_s: seconds.
        tool: one of `SANITIZERS`.
        suite, options: of pytest.
        forward: in place of a suite, arguments of `benchmarks.probes.forward`.

    Returns:
        What `conformance` does, and ``tool``, ``findings`` (their number) and ``quoted``, the text
        of the first ones.

    Raises:
        UnavailableError: compute-sanitizer is not installed, or it cannot watch a program here.
        RuntimeError: there is no test, or the forward failed; the message holds the end of a log.
    """
    command = find_tool("compute-sanitizer")
    found = logs / f"sanitizer.{tool}.txt"
    found.unlink(missing_ok=True)
    under = [command, "--tool", tool, "--log-file", str(found)]
    # PyTorch asks for things that may fail; our own calls throw.
    under += ["--target-processes", "application-only", "--report-api-errors", "no"]
    under += filters(command, tool)
    environment = ENVIRONMENTS.get(tool, {})
    name = f"sanitizer.{tool}"
    try:
        if forward is None:
            data = conformance(logs, limit_s, suite, options, name, under, environment)
        else:
            data = watched_forward(logs / f"{name}.log", limit_s, under, forward, environment)
    except RuntimeError as error:
        trouble = TROUBLE.search(read_log(found)) or TROUBLE.search(str(error))
        if trouble is None:
            raise
        raise UnavailableError(f"compute-sanitizer: {trouble[0].lstrip('= ')}") from None
    return {**data, "tool": tool, **findings(read_log(found))}


def forward_command(arguments: Mapping[str, Any]) -> list[str]:
    """A forward of a network through our CUDA kernels, for a tool that watches it."""
    return [sys.executable, "-m", "benchmarks.probes", json.dumps(dict(arguments))]


def watched_forward(
    log: Path,
    limit_s: float,
    under: Sequence[str],
    arguments: Mapping[str, Any],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    code = run_logged([*under, *forward_command(arguments)], log, limit_s, environment)
    if code != 0:
        raise RuntimeError(f"the forward ended with code {code}:\n{tail(log)}")
    return {"counts": {"passed": 1}, "subject": arguments["network"]}


def filters(command: str, tool: str) -> list[str]:
    """Watch our kernels alone; `initcheck` has to see what the others write.

    The option has changed its name; nothing is left out where neither is known.
    """
    if tool == "initcheck":
        return []
    known = output_of([command, "--help"])
    return next(
        ([option, f"kns={OURS}"] for option in ("--kernel-regex", "--kernel-name")
         if re.search(rf"{option}\b(?!-)", known)),
        [],
    )  # fmt: skip


def findings(log: str) -> dict[str, Any]:
    """The number of findings in a log, ``findings``, and the first ones, ``quoted``.

    Where the tool was stopped before it counted, those that it had printed are counted.
    """
    noise = re.compile(r"=========\s+(Host Frame|Saved host backtrace|COMPUTE-SANITIZER)")
    kept = "\n".join(line for line in log.splitlines() if not noise.match(line))
    # Between lines of nothing but the mark.
    blocks = re.split(r"^=========[ \t]*$", kept, flags=re.MULTILINE)
    printed = [block for block in blocks if LOCATION.search(block)]
    quoted = [re.sub(r"^=========\s?", "", block, flags=re.MULTILINE) for block in printed]
    return {
        "findings": max([len(printed), *map(int, SUMMARY.findall(log))]),
        "quoted": [text.strip() for text in quoted[:MOST_QUOTED]],
    }


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

# Of a figure, the metric, or what older or newer versions call it. Percentages are of the peak.
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
ISSUED = "selected"  # among the states of a warp, the one that is no stall
NO_INSTRUCTION = "no_instruction"  # the stall of a warp that waits for its next instruction


def count_launches(logs: Path, limit_s: float, **arguments: Any) -> dict[str, Any]:
    """Run a forward under ncu, whose log is ``counters.csv``.

    Args:
        logs: the folder of logs.
        limit_s: seconds.
        arguments: of `benchmarks.probes.forward`.

    Returns:
        ``launches``, their number; ``us``, what all of them take, each alone; ``rows``, the figures
        of every launch in order.

    Raises:
        UnavailableError: ncu is not installed, or may not read the counters.
        RuntimeError: it saw no launch; the message holds the end of a log.
    """
    found, log = logs / "counters.csv", logs / "counters.log"
    found.unlink(missing_ok=True)
    command = [find_tool("ncu"), "--clock-control", "none", "--profile-from-start", "off"]
    for section in SECTIONS:
        command += ["--section", section]
    command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(found)]
    outcome = "was killed at its limit"
    with contextlib.suppress(TimeLimitError):  # the launches that it has written are worth keeping
        outcome = (
            f"ended with code {run_logged([*command, *forward_command(arguments)], log, limit_s)}"
        )
    text = read_log(found)
    refused = re.search(r"^==ERROR== .*", text + "\n" + read_log(log), re.MULTILINE)
    launches = parse_counters(text)
    if refused and not launches:
        raise UnavailableError(f"ncu: {refused[0].removeprefix('==ERROR== ')}")
    if not launches:
        raise RuntimeError(f"ncu {outcome} and saw no launch:\n{tail(log)}")
    return {
        "network": arguments["network"],
        "launches": len(launches),
        "us": sum(launch["us"] for launch in launches),
        "outcome": outcome,
        "rows": launches,
    }


def parse_counters(text: str) -> list[dict[str, Any]]:
    """The launches of ncu's raw page: a line of names, a line of units, and one of each launch."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[header:]))
    if not rows:
        return []
    units, *launches = rows
    return [launch_of(row, units, index) for index, row in enumerate(launches)]


def launch_of(row: Mapping[str, str], units: Mapping[str, str], index: int) -> dict[str, Any]:
    """The figures of a line; one that ncu did not give is None."""
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
    return {
        "index": index,
        "kernel": row["Kernel Name"],
        "us": unit * (number_of(row[DURATION]) or 0.0),
        **figures,
        "stall": top,
        "stall_share": stalls[top] / total if top else None,
        "no_instruction_share": stalls[NO_INSTRUCTION] / total
        if NO_INSTRUCTION in stalls
        else None,
    }


def number_of(text: str | None) -> float | None:
    """A figure as ncu writes it, thousands apart by commas."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


# --- the tuner ------------------------------------------------------------------------------------

CONFIGS = "FASSD_KERNELS_CONFIGS"
"""Environment variable: the folder whose table overrides the package's; tuning writes there."""

TUNING_MARGIN_S = 30.0
"""Seconds that tuning takes beyond its budget, to start, to end its last measurement, to write."""


def tune(
    logs: Path,
    configs: Path,
    limit_s: float,
    model: str,
    batch: int,
    height: int,
    width: int,
    dtype: str,
    backends: bool = False,
) -> dict[str, Any]:
    """Tune for a network at one size, batch and dtype, into `configs`.

    Args:
        logs: the folder of logs; this one's is ``tune.log``, of backends ``choices.log``.
        configs: the folder of tables; those of backends are in a folder of their own below.
        limit_s: seconds.
        model, batch, height, width, dtype: what to tune for.
        backends: find the fastest backend of each call, instead of the Triton kernels' tile sizes.

    Returns:
        ``command``, and for each table its number of rows.

    Raises:
        RuntimeError: it failed, or wrote no table; the message says how its log ends.
        TimeLimitError: it took too long.
    """
    log = logs / ("choices.log" if backends else "tune.log")
    folder, rows = (configs / "backends", "median_us") if backends else (configs, "configurations")
    options = ["--model", model, "--size", f"{height}x{width}", "--dtype", dtype]
    options += ["--batch", str(batch), "--budget", f"{max(limit_s - TUNING_MARGIN_S, 1):.0f}"]
    options += ["--backends"] if backends else []
    command = [sys.executable, "-m", "fassd_kernels.tune", *options]
    code = run_logged(command, log, limit_s, {CONFIGS: str(configs)})
    if code != 0:
        raise RuntimeError(f"tuning ended with code {code}:\n{tail(log)}")
    tables = {
        str(path.relative_to(configs)): len(json.loads(path.read_text())[rows])
        for path in sorted(folder.glob("*.json"))
    }
    if not tables:
        raise RuntimeError(f"tuning wrote no table into {folder}:\n{tail(log)}")
    return {"log": log.name, "command": f"fassd_kernels.tune {' '.join(options)}", "tables": tables}
