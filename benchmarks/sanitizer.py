"""Part of the conformance suite under compute-sanitizer, and what it found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conformance import conformance
from benchmarks.environment import output_of
from benchmarks.peers import UnavailableError
from benchmarks.tools import find_tool, read_log

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")

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
    logs: Path, limit_s: float, tool: str, suite: str, options: Sequence[str]
) -> dict[str, Any]:
    """Run tests under a tool of compute-sanitizer; its log is ``sanitizer.TOOL.txt``.

    Returns:
        What `conformance` does, and ``tool``, ``findings`` (their number) and ``quoted``, the text
        of the first ones.

    Raises:
        UnavailableError: compute-sanitizer is not installed, or it cannot watch a program here.
        RuntimeError: there is no test; the message holds the end of the log.
    """
    command = find_tool("compute-sanitizer")
    found = logs / f"sanitizer.{tool}.txt"
    found.unlink(missing_ok=True)
    under = [command, "--tool", tool, "--log-file", str(found)]
    # PyTorch asks for things that may fail; our own calls throw.
    under += ["--target-processes", "application-only", "--report-api-errors", "no"]
    under += filters(command, tool)
    environment = ENVIRONMENTS.get(tool, {})
    try:
        data = conformance(logs, limit_s, suite, options, f"sanitizer.{tool}", under, environment)
    except RuntimeError as error:
        trouble = TROUBLE.search(read_log(found)) or TROUBLE.search(str(error))
        if trouble is None:
            raise
        raise UnavailableError(f"compute-sanitizer: {trouble[0].lstrip('= ')}") from None
    return {**data, "tool": tool, **findings(read_log(found))}


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
    printed = [block for block in blocks(log) if LOCATION.search(block)]
    quoted = [re.sub(r"^=========\s?", "", block, flags=re.MULTILINE) for block in printed]
    return {
        "findings": max([len(printed), *map(int, SUMMARY.findall(log))]),
        "quoted": [text.strip() for text in quoted[:MOST_QUOTED]],
    }


def blocks(log: str) -> list[str]:
    """What stands between lines of nothing but the mark; backtraces of the host are left out."""
    noise = re.compile(r"=========\s+(Host Frame|Saved host backtrace|COMPUTE-SANITIZER)")
    kept = [line for line in log.splitlines() if not noise.match(line)]
    return re.split(r"^=========[ \t]*$", "\n".join(kept), flags=re.MULTILINE)
