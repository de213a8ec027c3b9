"""Running the conformance suite on the device, and counting."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.process import GRACE_S, LAUNCH, TimeLimitError, run_logged, tail

REPORTING = ("-q", "--tb=short", "-p", "no:cacheprovider", "-p", "benchmarks.conformance_log")
ENDED_BY_ITSELF = (0, 1, 2, 5)
"""pytest's exit codes: passed, failed, interrupted (a file did not import), nothing to run."""

MOST_PROCESSES = 8
NOTHING: Mapping[str, str] = MappingProxyType({})

MOST_FAILURES = 40
"""Failures that are recorded with their message; all are counted."""


def conformance(
    logs: Path,
    limit_s: float,
    suite: str,
    options: Sequence[str],
    name: str = "conformance",
    under: Sequence[str] = (),
    environment: Mapping[str, str] = NOTHING,
) -> dict[str, Any]:
    """Run the tests in `suite` with `options` and count; the log is named after `name`.

    Args:
        logs: the folder of logs.
        limit_s: seconds.
        suite, options: of pytest.
        name: of the log.
        under: a command that runs the one behind it, and watches it: in one process, then.
        environment: variables to add.

    Returns:
        ``counts`` by outcome, ``collected``, ``failures`` with messages, ``finished``; ``crash``,
        with the end of the log, if pytest did not end by itself.

    Raises:
        RuntimeError: there is no test; the message holds the end of the log.
    """
    log, results = logs / f"{name}.log", logs / f"{name}.jsonl"
    results.unlink(missing_ok=True)
    processes = 1 if under else process_count()
    command = [*under, sys.executable, str(LAUNCH), "pytest", suite, *options, *REPORTING]
    if processes > 1:
        command += ["-n", str(processes)]
    environment = {
        **environment,
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1)),
        "CONFORMANCE_LOG": str(results),
        # Time to stop between two tests before it is killed in the middle of one.
        "CONFORMANCE_LIMIT_S": str(max(limit_s - 2 * GRACE_S, 1)),
    }
    code = 0
    with contextlib.suppress(TimeLimitError):  # cut short or not, what has been written is counted
        code = run_logged(command, log, limit_s, environment)
    lines = results.read_text().splitlines() if results.exists() else []
    summary = summarise([json.loads(line) for line in lines])
    if not (summary["counts"] or summary["collected"]):
        raise RuntimeError(f"no test was collected:\n{tail(log)}")
    if code not in ENDED_BY_ITSELF:
        summary["crash"] = f"pytest ended with code {code}:\n{tail(log)}"
    return {"suite": suite, "options": list(options), "log": log.name, **summary}


def process_count() -> int:
    """Several processes on the one GPU, where pytest-xdist is installed and there are cores."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(min((os.cpu_count() or 1) // 2, MOST_PROCESSES), 1)


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts and failures of the plugin's records (`benchmarks.conformance_log`)."""
    records = list(records)
    collected = sum(r["count"] for r in records if r["outcome"] == "collected")
    tests = [r for r in records if r["outcome"] != "collected"]
    failures = [
        {"test": r["test"], "message": r["message"]}
        for r in tests
        if r["outcome"] in ("failed", "error")
    ]
    return {
        "counts": dict(Counter(r["outcome"] for r in tests)),
        "collected": collected,
        "finished": len({r["test"] for r in tests}) >= collected,
        "failures": failures[:MOST_FAILURES],
    }
