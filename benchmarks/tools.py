"""Programs that the GPU report starts: the build, the conformance suite, NVIDIA's tools, the tuner.

Each gets a time limit and a log file, and is killed past its limit.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import ROOT, output_of
from benchmarks.rows import Record, data_of_part, escape, table, table_of
from fassd.bench.candidates import UnavailableError
from fassd.bench.cases import Bench

GRACE_S = 5.0
TOOLKIT = Path("/usr/local/cuda/bin")
NOTHING: Mapping[str, str] = MappingProxyType({})


class TimeLimitError(Exception):
    """The program was still running at its limit, and was killed."""


class ProgramError(RuntimeError):
    """A program failed; the message contains the end of its log."""


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


@dataclass(frozen=True)
class Visit:
    """The settings of the run that a measurement belongs to.

    Attributes:
        bench: device, sampling and compiler.
        logs: folder of the programs' logs.
        configs: folder of the tables that tuning writes, and that our kernels read.
        limit_s: seconds after which the measurement is killed.
    """

    bench: Bench
    logs: Path
    configs: Path
    limit_s: float

    @property
    def device(self) -> torch.device:
        return self.bench.device

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def run(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] = NOTHING
    ) -> int:
        """`run_logged` within the limit, with a log of this name."""
        return run_logged(command, self.log(log), self.limit_s, environment)

    def run_well(
        self, what: str, command: Sequence[str], log: str, environment: Mapping[str, str] = NOTHING
    ) -> None:
        """The same for a program that has to succeed.

        Raises:
            ProgramError: it did not; the message says `what` it was.
            TimeLimitError: it took too long.
        """
        code = self.run(command, log, environment)
        if code != 0:
            raise ProgramError(f"{what} ended with code {code}:\n{tail(self.log(log))}")


def read_log(path: Path) -> str:
    """The text of a log; empty if there is no file."""
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


# --- the build ------------------------------------------------------------------------------------


def build(visit: Visit) -> dict[str, Any]:
    """Compile both extensions in place, the CUDA kernels for this GPU alone, on all cores.

    Raises:
        ProgramError, TimeLimitError: it failed, or took too long.
    """
    # Hopper's own instructions require the architecture with an `a`; the sources do not use them.
    architecture = "{}.{}".format(*torch.cuda.get_device_capability(visit.device))
    environment = {
        "FASSD_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    visit.run_well("the build", command, "build", environment)
    return {"architecture": architecture}


# --- the conformance suite ------------------------------------------------------------------------

ENDED_BY_ITSELF = (0, 1, 2, 5)
"""pytest's exit codes: passed, failed, interrupted (a file did not import), nothing to run."""

MOST_PROCESSES = 8
MOST_FAILURES = 40
"""Maximum number of failures recorded with their message; all are counted."""

MESSAGE_LENGTH = 400


def conformance(
    visit: Visit,
    suite: str,
    options: Sequence[str],
    name: str = "conformance",
    under: Sequence[str] = (),
    environment: Mapping[str, str] = NOTHING,
) -> dict[str, Any]:
    """Run the tests in `suite` with `options` and count them by outcome.

    pytest-timeout ends the run slightly before the visit's limit, between two tests.

    Args:
        suite, options: paths and options for pytest.
        name: name of the log.
        under: command that watches the following one; the suite then runs in one process.
        environment: variables to add.

    Returns:
        ``counts`` by outcome, ``finished``, ``failures`` with messages; and ``crash``, with the end
        of the log, if pytest did not end by itself.

    Raises:
        UnavailableError: pytest-reportlog, which writes each result at once, is missing.
        ProgramError: no test was run.
    """
    if importlib.util.find_spec("pytest_reportlog") is None:
        raise UnavailableError("pytest-reportlog is not installed (`make gpu-carry` brings it)")
    log, results = visit.log(name), visit.logs / f"{name}.jsonl"
    results.unlink(missing_ok=True)
    # Several processes on the one GPU, if pytest-xdist is installed and there are cores.
    cores = os.cpu_count() or 1
    parallel = not under and importlib.util.find_spec("xdist") is not None
    processes = max(min(cores // 2, MOST_PROCESSES), 1) if parallel else 1
    command = [*under, sys.executable, "-m", "pytest", suite, *options, "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--report-log={results}"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command.append(f"--session-timeout={max(visit.limit_s - 2 * GRACE_S, 1):.0f}")
    if processes > 1:
        command += ["-n", str(processes)]
    threads = {"OMP_NUM_THREADS": str(max(cores // processes, 1))}
    code = 0
    with contextlib.suppress(TimeLimitError):  # whether cut short or not, the written results count
        code = visit.run(command, name, {**environment, **threads})
    # The last line of a killed process may be incomplete.
    lines = (line for line in read_log(results).splitlines(keepends=True) if line.endswith("\n"))
    summary = summarise(map(json.loads, lines))
    if not summary["counts"]:
        raise ProgramError(f"no test was run:\n{tail(log)}")
    if code not in ENDED_BY_ITSELF:
        summary["crash"] = f"pytest ended with code {code}:\n{tail(log)}"
    summary["finished"] &= "session-timeout" not in read_log(log)
    return {
        "suite": suite,
        "options": list(options),
        "environment": dict(environment),
        **summary,
    }


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
        # One outcome per test: that of its call, or of its setup or teardown if it did not pass.
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


def failing(data: Record) -> int:
    return data["counts"].get("failed", 0) + data["counts"].get("error", 0)


def failing_tests(data: Record) -> list[str]:
    return [f"{failing(data)} tests failed"] if failing(data) else []


def conformance_section(report: Record, part: str) -> str:
    texts = []
    for data in data_of_part(report, part):
        counts = ", ".join(f"{count} {what}" for what, count in sorted(data["counts"].items()))
        cut = "" if data["finished"] else " **Stopped before the end.**"
        switches = [f"{name}={value}" for name, value in data.get("environment", {}).items()]
        command = " ".join([*switches, "pytest", data["suite"], *data["options"]])
        texts.append(f"`{command}`: {counts}.{cut}\n")
        if data["failures"]:
            rows = [[escape(f["test"]), escape(f["message"])] for f in data["failures"]]
            texts.append(table(["failed", "message"], rows))
    return "\n".join(texts)


# --- compute-sanitizer ----------------------------------------------------------------------------

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")

OURS = "5fassd4cuda"
"""Part of the mangled names of our kernels; those of PyTorch are not watched, to save time."""

# In PyTorch's cache, memory is part of a large allocation, inside which nothing is detected.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "memcheck": UNCACHED,
    # The suite fills all memory with NaN first, which would count as written.
    "initcheck": {**UNCACHED, "CONFORMANCE_UNPOISONED": "1"},
}

MOST_QUOTED = 5
"""Maximum number of findings recorded with their text; all are counted."""

# "========= ERROR SUMMARY: 2 errors", "========= RACECHECK SUMMARY: 1 hazard displayed (...)"
SUMMARY = re.compile(r"^========= \w+ SUMMARY: (\d+) (?:error|hazard)", re.MULTILINE)
# Messages without a location are about the tool itself.
LOCATION = re.compile(r"^=========\s+(?:at|and|Warning: Race|Error: Race)\b.*", re.MULTILINE)
TROUBLE = re.compile(r"^=========.*(?:Internal Sanitizer Error|Error: (?!Race)).*", re.MULTILINE)


def sanitize(
    visit: Visit,
    tool: str,
    suite: str = "",
    options: Sequence[str] = (),
    forward: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run tests, or one forward of a network, under a tool of compute-sanitizer.

    Args:
        visit: run whose log ``sanitizer.TOOL.txt`` gets the tool's output.
        tool: one of `SANITIZERS`.
        suite, options: paths and options for pytest.
        forward: arguments of `benchmarks.probes.forward`, in place of a suite.

    Returns:
        The result of `conformance`, and ``tool``, ``findings`` (their number) and ``quoted``, the
        text of the first ones.

    Raises:
        UnavailableError: compute-sanitizer is not installed, or it cannot watch a program here.
        ProgramError: there is no test, or the forward failed.
    """
    command = find_tool("compute-sanitizer")
    name = f"sanitizer.{tool}"
    found = visit.logs / f"{name}.txt"
    found.unlink(missing_ok=True)
    under = [command, "--tool", tool, "--log-file", str(found)]
    # PyTorch makes calls that may fail; our own calls throw.
    under += ["--target-processes", "application-only", "--report-api-errors", "no"]
    under += filters(command, tool)
    environment = ENVIRONMENTS.get(tool, NOTHING)
    try:
        if forward is None:
            data = conformance(visit, suite, options, name, under, environment)
        else:
            visit.run_well("the forward", [*under, *forward_command(forward)], name, environment)
            data = {"counts": {"passed": 1}, "subject": forward["network"]}
    except ProgramError as error:
        trouble = TROUBLE.search(read_log(found)) or TROUBLE.search(str(error))
        if trouble is None:
            raise
        raise UnavailableError(f"compute-sanitizer: {trouble[0].lstrip('= ')}") from None
    return {**data, "tool": tool, **findings(read_log(found))}


def forward_command(arguments: Mapping[str, Any]) -> list[str]:
    """A forward pass of a network through our CUDA kernels, for a tool that watches it."""
    return [sys.executable, "-m", "benchmarks.probes", json.dumps(dict(arguments))]


def filters(command: str, tool: str) -> list[str]:
    """Options to watch only our kernels; `initcheck` has to see what the others write.

    The option's name has changed; without a known name nothing is left out.
    """
    known = "" if tool == "initcheck" else output_of([command, "--help"])
    for option in ("--kernel-regex", "--kernel-name"):
        if re.search(rf"{option}\b(?!-)", known):
            return [option, f"kns={OURS}"]
    return []


def findings(log: str) -> dict[str, Any]:
    """The number of findings in a log, ``findings``, and the first ones, ``quoted``.

    If the tool was stopped before it counted, the printed findings are counted.
    """
    noise = re.compile(r"=========\s+(Host Frame|Saved host backtrace|COMPUTE-SANITIZER)")
    kept = "\n".join(line for line in log.splitlines() if not noise.match(line))
    # Between lines that only contain the mark.
    blocks = re.split(r"^=========[ \t]*$", kept, flags=re.MULTILINE)
    printed = [block for block in blocks if LOCATION.search(block)]
    quoted = [re.sub(r"^=========\s?", "", block, flags=re.MULTILINE) for block in printed]
    return {
        "findings": max([len(printed), *map(int, SUMMARY.findall(log))]),
        "quoted": [text.strip() for text in quoted[:MOST_QUOTED]],
    }


def sanitizer_faults(data: Record) -> list[str]:
    found = [f"{data['findings']} findings"] if data["findings"] else []
    return [*failing_tests(data), *found]


def sanitizer_section(report: Record, part: str) -> str:
    runs = data_of_part(report, part)
    columns = (
        ("tool", lambda data: data["tool"]),
        ("tests", lambda data: str(sum(data["counts"].values()))),
        ("failed", lambda data: str(failing(data))),
        ("findings", lambda data: str(data["findings"])),
    )
    quotes = [f"{data['tool']}:\n\n```\n{text}\n```\n" for data in runs for text in data["quoted"]]
    return "\n".join([table_of(columns, runs), *quotes])


# --- the tuner ------------------------------------------------------------------------------------

CONFIGS = "FASSD_KERNELS_CONFIGS"
"""Environment variable: the folder whose table overrides the package's; tuning writes to it."""

TUNING_MARGIN_S = 30.0
"""Seconds that tuning takes beyond its budget, for starting, the last measurement, and writing."""


def tune(visit: Visit, model: str, backends: bool = False, **place: Any) -> dict[str, Any]:
    """Tune for a network at one size, batch and dtype, into the visit's folder of tables.

    Args:
        visit: run with the log ``tune.log``, or for backends ``choices.log``.
        model: name of the network.
        backends: True finds the fastest backend of each call, instead of the Triton kernels' tile
            sizes; these tables are in a separate subfolder.
        place: batch, height, width and dtype.

    Returns:
        ``command``, and for each table its number of rows.

    Raises:
        ProgramError: it failed, or wrote no table.
        TimeLimitError: it took too long.
    """
    log, folder, rows = "tune", visit.configs, "configurations"
    options = ["--model", model, "--size", "{height}x{width}".format(**place)]
    options += ["--dtype", place["dtype"], "--batch", str(place["batch"])]
    options += ["--budget", f"{max(visit.limit_s - TUNING_MARGIN_S, 1):.0f}"]
    if backends:
        log, folder, rows = "choices", folder / "backends", "median_us"
        options.append("--backends")
    command = [sys.executable, "-m", "fassd_kernels.tune", *options]
    visit.run_well("tuning", command, log, {CONFIGS: str(visit.configs)})
    tables = {
        str(path.relative_to(visit.configs)): len(json.loads(path.read_text())[rows])
        for path in sorted(folder.glob("*.json"))
    }
    if not tables:
        raise ProgramError(f"tuning wrote no table into {folder}:\n{tail(visit.log(log))}")
    return {"command": f"fassd_kernels.tune {' '.join(options)}", "tables": tables}


def tuning_section(report: Record, part: str) -> str:
    rows = [
        [f"`{data['command']}`", name, str(count)]
        for data in data_of_part(report, part)
        for name, count in data["tables"].items()
    ]
    return table(["command", "table in `configs/`", "rows"], rows)
