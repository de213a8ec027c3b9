"""A run of the GPU report: what each item gives, and its results on disk as they are known."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT, write_json, write_text
from benchmarks.plan import FULL, PARTS, Item, build_plan, quick_scale, untuned
from benchmarks.predicted import load_predictions
from benchmarks.report import render
from benchmarks.tools import ProgramError, TimeLimitError, Visit, run_logged, tail
from fassd.bench.candidates import UnavailableError, require_operators
from fassd.bench.cases import Bench
from fassd.io.files import replacing
from fassd_kernels.triton.availability import first_line

SESSION, ALONE = "FASSD_GPU_REPORT", "FASSD_GPU_REPORT_ITEM"
"""Environment of pytest: the session as JSON, and the name of the one item to measure."""

SCHEMA = 4
SOURCE_SUFFIXES = {".py", ".def", ".h", ".cuh", ".cpp", ".cu", ".toml"}
FINAL = ("done", "unavailable")
"""What a later run need not try again."""


class Session:
    """One run over the plan, of which several processes know.

    Args:
        state: ready for JSON: ``device``, ``quick``, ``first``, ``only``, ``run`` (its name),
            ``started`` and ``budget_s`` (seconds), ``output`` and ``work`` (folders), ``identity``
            (a result of another machine is not taken up again) and ``header`` (of the report).
        clock: seconds, of which `started` was read.
    """

    def __init__(self, state: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        self.state = dict(state)
        self.clock = clock
        scale = quick_scale(state["device"]) if state["quick"] else FULL
        self.plan = build_plan(scale)
        self.bench = Bench(torch.device(state["device"]), scale.sampling, scale.compiler)
        self.output, self.work = Path(state["output"]), Path(state["work"])
        self.logs, self.configs, self.parts = (
            self.work / name for name in ("logs", "configs", "parts")
        )
        for folder in (self.logs, self.configs, self.parts):
            folder.mkdir(parents=True, exist_ok=True)
        self._digests: dict[tuple[str, ...], str] = {}

    def elapsed(self) -> float:
        return self.clock() - self.state["started"]

    def left(self) -> float:
        return self.state["budget_s"] - self.elapsed()

    # Records: one file per item.

    def path(self, item: Item) -> Path:
        return self.parts / f"{item.name.replace('/', '.').replace(' ', '')}.json"

    def load(self, item: Item) -> dict[str, Any] | None:
        """The saved record, whatever its status, if it is of this machine and these sources."""
        try:
            record = json.loads(self.path(item).read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return record if record["fingerprint"] == self.fingerprint(item) else None

    def save(self, item: Item, record: Mapping[str, Any]) -> None:
        """Put a record on disk, and with it the report."""
        marks = {"run": self.state["run"], "fingerprint": self.fingerprint(item)}
        commit = self.state["header"]["commit"]
        write_json(self.path(item), {**record, **marks, "date": now(), "commit": commit})
        self.publish()

    def drop(self, items: Iterable[Item]) -> None:
        for item in items:
            self.path(item).unlink(missing_ok=True)

    def fingerprint(self, item: Item) -> dict[str, str]:
        """Of the machine, and of the sources as they were when this process first looked."""
        if item.sources not in self._digests:
            self._digests[item.sources] = digest(item.sources)
        return {**self.state["identity"], "sources": self._digests[item.sources]}

    # Which items.

    def is_asked(self, item: Item) -> bool:
        if self.state["only"]:
            return item.part in self.state["only"]
        return item.first or not self.state["first"]

    def pending(self) -> list[Item]:
        """What is asked for and was neither finished before nor tried in this run, in order.

        What an earlier run tried and did not finish comes behind the untried.
        """
        untried, tried = [], []
        for item in filter(self.is_asked, self.plan):
            saved = self.load(item)
            if saved is None:
                untried.append(item)
            elif saved["run"] != self.state["run"] and saved["status"] not in FINAL:
                tried.append(item)
        return untried + tried

    # One item.

    def turn(self, item: Item) -> dict[str, Any] | None:
        """Measure an item and save its record; None where there is no time for it."""
        if self.left() < item.least_s:
            return None
        limit_s = min(item.limit_s, self.left())
        begun = self.clock()
        running = {"name": item.name, "begun": begun, "limit_s": limit_s}
        write_json(self.work / "running.json", running)
        record = self.perform(item, limit_s)
        record["seconds"] = round(self.clock() - begun, 2)
        self.save(item, record)
        (self.work / "running.json").unlink(missing_ok=True)
        if item.part in ("tune", "choices") and record["status"] != "unavailable":
            # Cut short or not, what it has found is in the table: older figures are of another.
            self.drop(untuned(self.plan, item))
        return record

    def perform(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record of an item; whatever happens becomes one."""
        try:
            if item.backend:
                require_operators(item.backend, frozenset(), self.bench.device)
            if item.environment.items() - os.environ.items():
                return self.apart(item, limit_s)
            visit = Visit(self.bench, self.logs, self.configs, limit_s)
            data = PARTS[item.part].measure(visit, **item.arguments)
            json.dumps(data, allow_nan=False)  # what JSON cannot hold is an error here, not later
            return judged(data)
        except UnavailableError as reason:
            return {"status": "unavailable", "reason": str(reason)}
        except TimeLimitError as error:
            return {"status": "timeout", "reason": str(error)}
        except ProgramError as error:
            return {"status": "failed", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            return {"status": "failed", "reason": first_line(error)}

    def apart(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record that a process of its own makes, started with the item's environment."""
        log = self.logs / f"{self.path(item).stem}.log"
        environment = {**item.environment, SESSION: json.dumps(self.state), ALONE: item.name}
        self.drop([item])
        code = run_logged(pytest_command(), log, limit_s, environment)
        record = self.load(item)
        if record is None:
            raise ProgramError(f"the process ended with code {code}: {tail(log, 3)}")
        return record

    def interrupted(self) -> bool:
        """Record the item that the process died in, if it did."""
        path = self.work / "running.json"
        if not path.exists():
            return False
        running = json.loads(path.read_text())
        path.unlink()
        item = next(item for item in self.plan if item.name == running["name"])
        seconds = self.clock() - running["begun"]
        late = seconds >= running["limit_s"]
        reason = f"killed after {seconds:.0f} s" if late else "the process died in it"
        record = {"status": "timeout" if late else "failed", "reason": reason}
        self.save(item, {**record, "seconds": round(seconds, 2)})
        return True

    # The report.

    def describe(self, item: Item) -> dict[str, Any]:
        """What is known of an item."""
        known: dict[str, Any] = {"name": item.name, "part": item.part}
        if "group" in item.arguments:
            known["case"] = item.arguments
        saved = self.load(item)
        if saved is not None:
            return {**known, **saved}
        later = "left out with --only" if self.state["only"] else "left for the run without --first"
        reason = "out of time" if self.is_asked(item) else later
        return {**known, "status": "not run", "reason": reason}

    def report(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **self.state["header"],
            "date": now(),
            "budget_s": self.state["budget_s"],
            "elapsed_s": round(self.elapsed(), 1),
            "predicted": load_predictions(),
            "items": [self.describe(item) for item in self.plan],
        }

    def publish(self) -> Path:
        """Write ``report.json`` and ``report.md``; return the latter's path."""
        report = self.report()
        write_json(self.output / "report.json", report)
        page = self.output / "report.md"
        write_text(page, render(report))
        return page

    def archive(self) -> None:
        """``report.tar.gz``: records, logs and tables, which are too many files to carry."""
        with (
            replacing(self.output / "report.tar.gz") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for folder in (self.parts, self.logs, self.configs):
                archive.add(folder, folder.name)


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """The record of data: done, whatever it says, unless a program did not end by itself."""
    if "crash" in data:
        return {"status": "failed", "reason": data["crash"], "data": data}
    if data.get("finished", True):
        return {"status": "done", "data": data}
    ran = sum(data["counts"].values())
    return {"status": "timeout", "reason": f"stopped after {ran} tests", "data": data}


def pytest_command() -> list[str]:
    """pytest on the tests of `benchmarks.gpu_report`, one for each item."""
    return [
        *(sys.executable, "-m", "pytest", str(ROOT / "benchmarks" / "gpu_report.py"), "-v"),
        *("--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"),
    ]


def digest(paths: Iterable[str]) -> str:
    """A short hash of the sources under `paths`, relative to the repository."""
    total = hashlib.sha256()
    for path in paths:
        found = ROOT / path
        for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if file.is_file() and file.suffix in SOURCE_SUFFIXES:
                total.update(str(file.relative_to(ROOT)).encode())
                total.update(file.read_bytes())
    return total.hexdigest()[:16]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
