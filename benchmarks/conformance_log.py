"""A pytest plugin: writes each result as it comes, and stops in good order when time is up.

Loaded with ``-p benchmarks.conformance_log``; reads ``CONFORMANCE_LOG``, the file to write JSON
lines to, and ``CONFORMANCE_LIMIT_S``. A run that is cut short or crashes has thus still counted
what it did. Works under pytest-xdist too, whose workers load it as well. Where
``CONFORMANCE_UNPOISONED`` is set, new tensors are not filled with NaN.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
import torch

from benchmarks.launch import prefer_installed

# A worker of pytest-xdist gets its path from the controller, the repository in front.
prefer_installed()

STARTED = time.monotonic()
MESSAGE_LENGTH = 400


def write(record: dict[str, Any]) -> None:
    with open(os.environ["CONFORMANCE_LOG"], "a") as log:
        log.write(json.dumps(record) + "\n")


def message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text[:MESSAGE_LENGTH]


class Recorder:
    """The hooks of the process that sees every report: the only one, or xdist's controller."""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            write({"outcome": "error", "test": report.nodeid, "message": message(report)})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One line per test: its call, or its setup or teardown where that failed or skipped it."""
        if report.when == "call" or not report.passed:
            outcome = report.outcome
            if report.failed and report.when != "call":
                outcome = "error"
            text = "" if report.passed else message(report)
            write({"outcome": outcome, "test": report.nodeid, "message": text})


def worker_id(config: pytest.Config) -> str | None:
    """The name that pytest-xdist gave this process; None where it is no worker."""
    return getattr(config, "workerinput", {}).get("workerid")


def pytest_configure(config: pytest.Config) -> None:
    if worker_id(config) is None:
        config.pluginmanager.register(Recorder())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Every worker collects the same tests; one says how many."""
    if worker_id(session.config) in (None, "gw0") and session.items:
        write({"outcome": "collected", "count": len(session.items)})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """When time is up, pass over the rest; what has no report is not counted."""
    if time.monotonic() - STARTED > float(os.environ["CONFORMANCE_LIMIT_S"]):
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Leave memory as it is where a tool looks for what is read before it is written.

    The suite's own fixture has set this before, and restores it.
    """
    if os.environ.get("CONFORMANCE_UNPOISONED"):
        # A property of the module's own class, which type checkers do not see.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
