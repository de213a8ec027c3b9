"""Programs that the GPU report starts: the build, the conformance suite, NVIDIA's tools, the tuner.

Each gets a time limit and a log file, and is killed past its limit.

``python -m benchmarks.tools '{"network": "fassd_net", "batch": 1, "height": 1024, "width": 2048,
"dtype": "float16"}'`` is one forward pass through the CUDA kernels, for NVIDIA's tools to watch.
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
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT, Record, escape, table
from fassd.bench.candidates import NATIVE, UnavailableError
from fassd.bench.cases import Bench
from fassd.bench.stopwatch import warm_up
from fassd.bench.subjects import Case, subject_of

GRACE_S = 5.0
TOOLKIT = Path("/usr/local/cuda/bin")


class TimeLimitError(Exception):
    """The program was still running at its limit, and was killed."""


class ProgramError(RuntimeError):
    """A program failed; the message contains the end of its log."""


def run_logged(
    command: Sequence[str], log: Path | None, limit_s: float, environment: Mapping[str, str]
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

    def run(self, command: Sequence[str], name: str, **environment: str) -> int:
        """`run_logged` within the limit, with a log of this name."""
        return run_logged(command, self.logs / f"{name}.log", self.limit_s, environment)

    def run_well(self, command: Sequence[str], name: str, **environment: str) -> None:
        """The same for a program that has to succeed.

        Raises:
            ProgramError: it did not.
            TimeLimitError: it took too long.
        """
        code = self.run(command, name, **environment)
        if code != 0:
            raise ProgramError(f"{name} ended with code {code}:\n{self.tail(name)}")

    def fresh(self, file: str) -> Path:
        """A file among the logs that a program is about to write."""
        path = self.logs / file
        path.unlink(missing_ok=True)
        return path

    def tail(self, name: str) -> str:
        """The last lines of a log."""
        return "\n".join(read_log(self.logs / f"{name}.log").splitlines()[-12:])


def read_log(path: Path) -> str:
    """The text of a log; empty if there is no file."""
    return path.read_text(errors="replace") if path.exists() else ""


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
    visit.run_well(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        "build",
        FASSD_KERNELS_CUDA="1",
        TORCH_CUDA_ARCH_LIST=architecture,
        MAX_JOBS=str(os.cpu_count() or 1),
    )
    return {"architecture": architecture}


# --- the conformance suite ------------------------------------------------------------------------

ENDED_BY_ITSELF = (0, 1, 2, 5)
"""pytest's exit codes: passed, failed, interrupted (a file did not import), nothing to run."""

MOST_FAILURES = 40
"""Maximum number of failures recorded with their message; all are counted."""

MESSAGE_LENGTH = 400


def conformance(visit: Visit, suite: str, options: Sequence[str]) -> dict[str, Any]:
    """Run the tests in `suite` with `options` and count them by outcome.

    pytest-timeout ends the run slightly before the visit's limit, between two tests.

    Returns:
        ``counts`` by outcome, ``finished``, ``failures`` with messages; and ``crash``, with the end
        of the log, if pytest did not end by itself.

    Raises:
        UnavailableError: pytest-reportlog, which writes each result at once, is missing.
        ProgramError: no test was run.
    """
    if importlib.util.find_spec("pytest_reportlog") is None:
        raise UnavailableError("pytest-reportlog is not installed (`make gpu-carry` brings it)")
    name, results = "conformance", visit.fresh("conformance.jsonl")
    command = [sys.executable, "-m", "pytest", suite, *options, "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--report-log={results}"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command.append(f"--session-timeout={max(visit.limit_s - 2 * GRACE_S, 1):.0f}")
    code = 0
    with contextlib.suppress(TimeLimitError):  # whether cut short or not, the written results count
        code = visit.run(command, name)
    # The last line of a killed process may be incomplete.
    lines = (line for line in read_log(results).splitlines(keepends=True) if line.endswith("\n"))
    summary = summarise(map(json.loads, lines))
    if not summary["counts"]:
        raise ProgramError(f"no test was run:\n{visit.tail(name)}")
    if code not in ENDED_BY_ITSELF:
        summary["crash"] = f"pytest ended with code {code}:\n{visit.tail(name)}"
    summary["finished"] &= "session-timeout" not in read_log(visit.logs / f"{name}.log")
    return {"suite": suite, "options": list(options), **summary}


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


def failing_tests(data: Record) -> list[str]:
    failing = data["counts"].get("failed", 0) + data["counts"].get("error", 0)
    return [f"{failing} tests failed"] if failing else []


def conformance_section(runs: Sequence[Record]) -> str:
    texts = []
    for data in runs:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(data["counts"].items()))
        cut = "" if data["finished"] else " **Stopped before the end.**"
        command = " ".join(["pytest", data["suite"], *data["options"]])
        texts.append(f"`{command}`: {counts}.{cut}\n")
        if data["failures"]:
            columns = {name: lambda f, n=name: escape(f[n]) for name in ("test", "message")}
            texts.append(table(columns, data["failures"]))
    return "\n".join(texts)


# --- a forward for NVIDIA's tools -----------------------------------------------------------------


def forward(network: str, **place: Any) -> None:
    """One forward pass through our CUDA kernels; the profiler is started after the warm-up."""
    device = torch.device("cuda")
    subject = subject_of(Case("networks", network, **place), device, "")
    call = subject.candidate(NATIVE).call
    (x,) = subject.inputs(0)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        warm_up(call, [(x,)])
        torch.cuda.profiler.start()
        call(x)
        torch.cuda.synchronize(device)
        torch.cuda.profiler.stop()


def forward_command(arguments: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.tools", json.dumps(dict(arguments))]


# --- compute-sanitizer ----------------------------------------------------------------------------

MOST_QUOTED = 5
"""Maximum number of findings recorded with their text; all are counted."""

SUMMARY = re.compile(r"^========= ERROR SUMMARY: (\d+) error", re.MULTILINE)
NOISE = re.compile(
    r"^=========\s+(Host Frame|Saved host backtrace|COMPUTE-SANITIZER).*\n", re.MULTILINE
)
# Messages without a location are about the tool itself.
LOCATION = re.compile(r"^=========\s+at\b", re.MULTILINE)
TROUBLE = re.compile(r"^========= (.*(?:Internal Sanitizer Error|Error: ).*)", re.MULTILINE)


def memcheck(visit: Visit, **arguments: Any) -> dict[str, Any]:
    """Run a forward pass of a network under compute-sanitizer's memcheck.

    Args:
        visit: run whose log ``memcheck.txt`` gets the tool's output.
        arguments: arguments of `forward`.

    Returns:
        ``findings``, their number, and ``quoted``, the text of the first ones.

    Raises:
        UnavailableError: compute-sanitizer is not installed, or it cannot watch a program here.
        ProgramError: the forward failed.
    """
    tool, found = find_tool("compute-sanitizer"), visit.fresh("memcheck.txt")
    # PyTorch makes calls that may fail; our own calls throw.
    options = ["--target-processes", "application-only", "--report-api-errors", "no"]
    command = [tool, "--tool", "memcheck", *options, "--log-file", str(found)]
    try:
        # In PyTorch's cache, memory is part of a large allocation, inside which nothing is found.
        visit.run_well(
            [*command, *forward_command(arguments)], "memcheck", PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
    except ProgramError:
        trouble = TROUBLE.search(read_log(found))
        if trouble is None:
            raise
        raise UnavailableError(f"compute-sanitizer: {trouble[1]}") from None
    return {"network": arguments["network"], **findings(read_log(found))}


def findings(log: str) -> dict[str, Any]:
    """The number of findings in a log, ``findings``, and the first ones, ``quoted``.

    If the tool was stopped before it counted, the printed findings are counted.
    """
    # Between lines that only contain the mark.
    blocks = re.split(r"^=========[ \t]*$", NOISE.sub("", log), flags=re.MULTILINE)
    printed = [block for block in blocks if LOCATION.search(block)]
    quoted = [re.sub(r"^=========\s?", "", block, flags=re.MULTILINE) for block in printed]
    return {
        "findings": max([len(printed), *map(int, SUMMARY.findall(log))]),
        "quoted": [text.strip() for text in quoted[:MOST_QUOTED]],
    }


def memcheck_faults(data: Record) -> list[str]:
    return [f"{data['findings']} findings"] if data["findings"] else []


def memcheck_section(runs: Sequence[Record]) -> str:
    texts = [f"{data['network']}: {data['findings']} findings.\n" for data in runs]
    return "\n".join([*texts, *(f"```\n{text}\n```\n" for data in runs for text in data["quoted"])])


# --- the tuner ------------------------------------------------------------------------------------

CONFIGS = "FASSD_KERNELS_CONFIGS"
"""Environment variable: the folder whose table overrides the package's; tuning writes to it."""

TUNING_MARGIN_S = 30.0
"""Seconds that tuning takes beyond its budget, for starting, the last measurement, and writing."""


def tune(visit: Visit, model: str, backends: bool = False, **place: Any) -> dict[str, Any]:
    """Tune for a network at one size, batch and dtype, into the visit's folder of tables.

    Args:
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
    folder, rows = visit.configs, "configurations"
    options = ["--model", model, "--size", "{height}x{width}".format(**place)]
    options += ["--dtype", place["dtype"], "--batch", str(place["batch"])]
    options += ["--budget", f"{max(visit.limit_s - TUNING_MARGIN_S, 1):.0f}"]
    if backends:
        folder, rows = folder / "backends", "median_us"
        options.append("--backends")
    command = [sys.executable, "-m", "fassd_kernels.tune", *options]
    visit.run_well(command, "tuning", **{CONFIGS: str(visit.configs)})
    tables = {
        str(path.relative_to(visit.configs)): len(json.loads(path.read_text())[rows])
        for path in sorted(folder.glob("*.json"))
    }
    if not tables:
        raise ProgramError(f"tuning wrote no table into {folder}:\n{visit.tail('tuning')}")
    return {"command": f"fassd_kernels.tune {' '.join(options)}", "tables": tables}


def tuning_section(runs: Sequence[Record]) -> str:
    rows = [(f"`{d['command']}`", name, str(n)) for d in runs for name, n in d["tables"].items()]
    headings = ("command", "table in `configs/`", "rows")
    return table({name: itemgetter(index) for index, name in enumerate(headings)}, rows)


if __name__ == "__main__":
    forward(**json.loads(sys.argv[1]))
