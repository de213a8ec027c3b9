"""A run of the GPU report: what each item runs, and its results on disk as they are known."""

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

from benchmarks import ROOT
from benchmarks.plan import Item, build_plan, full_scale, quick_scale, untuned
from benchmarks.probes import (
    describe_environment,
    measure_ceilings,
    measure_runner,
    profile_network,
    smoke,
)
from benchmarks.report import render
from benchmarks.targets import load_predictions
from benchmarks.tools import (
    TimeLimitError,
    conformance,
    count_launches,
    run_logged,
    sanitize,
    tail,
    tune,
)
from benchmarks.variants import measure_variants
from fassd.bench.candidates import UnavailableError, require_operators
from fassd.bench.cases import Bench, measure_case
from fassd.bench.stopwatch import Sampling, first_line
from fassd.bench.subjects import Case
from fassd.io.files import replacing

SESSION, ALONE = "FASSD_GPU_REPORT", "FASSD_GPU_REPORT_ITEM"
"""Environment of pytest: the session as JSON, and the name of the one item to measure."""

SCHEMA = 3
SOURCE_SUFFIXES = {".py", ".def", ".h", ".cuh", ".cpp", ".cu", ".toml"}

# --- what an item runs ----------------------------------------------------------------------------


def case(
    device: str, sampling: dict[str, Any], compiler: str, group: str, **case: Any
) -> dict[str, Any]:
    bench = Bench(torch.device(device), Sampling(**sampling), compiler)
    return measure_case(Case(**case), group, bench)


def ceilings(device: str, sampling: dict[str, Any], **sizes: int) -> dict[str, Any]:
    return measure_ceilings(torch.device(device), Sampling(**sampling), **sizes)


def variants(device: str, sampling: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return measure_variants(torch.device(device), sampling=Sampling(**sampling), **arguments)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "environment": lambda device: describe_environment(torch.device(device)),
    "smoke": lambda device, backend: smoke(torch.device(device), backend),
    "profile": lambda device, **case: profile_network(torch.device(device), **case),
    "runner": lambda device, **place: measure_runner(torch.device(device), **place),
    "ceilings": ceilings,
    "variants": variants,
    "case": case,
}
"""In the process of pytest."""

PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {
    "conformance": conformance,
    "sanitizer": sanitize,
    "counters": count_launches,
    "tune": tune,
}
"""In one of their own; they take a folder of logs and a limit in seconds."""


def build(logs: Path, limit_s: float, architecture: str) -> dict[str, Any]:
    """Compile both extensions in place, the CUDA kernels for one architecture, on all cores.

    Raises:
        RuntimeError: it failed; the message holds the end of its log.
        TimeLimitError: it took too long.
    """
    log = logs / "build.log"
    environment = {
        "FASSD_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code = run_logged(command, log, limit_s, environment)
    if code != 0:
        raise RuntimeError(f"the build ended with code {code}:\n{tail(log)}")
    return {"log": log.name, "architecture": architecture}


# --- a session ------------------------------------------------------------------------------------


class Session:
    """One run over the plan, of which several processes know.

    Args:
        state: ready for JSON: ``device``, ``quick``, ``first``, ``only``, ``resume``, ``run``
            (its name), ``started`` and ``budget_s`` (seconds), ``output`` and ``work`` (folders),
            ``identity`` (a result of another machine is not taken up again) and ``header``.
        clock: seconds, of which `started` was read.
    """

    def __init__(self, state: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        self.state = dict(state)
        self.clock = clock
        scale = quick_scale(state["device"]) if state["quick"] else full_scale()
        self.plan = build_plan(scale)
        self.output = Path(state["output"])
        self.work = Path(state["work"])
        self.logs, self.configs = self.work / "logs", self.work / "configs"
        self.parts = self.work / "parts"
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
        open_items: list[tuple[int, Item]] = []
        for item in filter(self.is_asked, self.plan):
            saved = self.load(item)
            if saved is None:
                open_items.append((0, item))
            elif saved["run"] != self.state["run"] and not is_final(saved):
                open_items.append((1, item))
        return [item for _, item in sorted(open_items, key=lambda pair: pair[0])]

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
        if item.task == "tune" and record["status"] != "unavailable":
            # Cut short or not, what it has found is in the table: older figures are of another.
            self.drop(untuned(self.plan, item))
        return record

    def perform(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record of an item; whatever happens becomes one."""
        try:
            if item.backend:
                require_operators(item.backend, frozenset(), torch.device(self.state["device"]))
            if item.environment.items() - os.environ.items():
                return self.apart(item, limit_s)
            arguments = dict(item.arguments)
            if item.task == "tune":
                arguments["configs"] = self.configs
            if item.task in PROGRAMS:
                return judged(PROGRAMS[item.task](self.logs, limit_s, **arguments))
            if "limit_s" in arguments:  # it ends by itself then, and what it has is not lost
                arguments["limit_s"] = min(arguments["limit_s"], limit_s / 2)
            data = TASKS[item.task](**arguments)
            json.dumps(data, allow_nan=False)  # what JSON cannot hold is an error here, not later
            return {"status": "done", "data": data}
        except UnavailableError as reason:
            return {"status": "unavailable", "reason": str(reason)}
        except TimeLimitError as error:
            return {"status": "timeout", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            whole = isinstance(error, RuntimeError) and item.task in PROGRAMS
            return {"status": "failed", "reason": str(error) if whole else first_line(error)}

    def apart(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record that a process of its own makes, started with the item's environment.

        Raises:
            UnavailableError: the kernels do not read a variable of it.
        """
        for variable in item.environment:
            if not kernels_read(variable):
                raise UnavailableError(f"csrc/cuda does not read {variable}")
        log = self.logs / f"{self.path(item).stem}.log"
        environment = {**item.environment, SESSION: json.dumps(self.state), ALONE: item.name}
        self.drop([item])
        code = run_logged(pytest_command(), log, limit_s, environment)
        record = self.load(item)
        if record is None:
            raise RuntimeError(f"the process ended with code {code}: {tail(log, 3)}")
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

    def records(self) -> list[dict[str, Any]]:
        """What is known of every item of the plan."""
        return [self.describe(item) for item in self.plan]

    def describe(self, item: Item) -> dict[str, Any]:
        known: dict[str, Any] = {"name": item.name, "part": item.part}
        if item.task == "case":
            wanted = ("part", "subject", "batch", "height", "width", "dtype", "group")
            known["case"] = {name: item.arguments[name] for name in wanted}
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
            "items": self.records(),
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


def kernels_read(variable: str) -> bool:
    """Whether the CUDA kernels know a variable of the environment, by their sources."""
    return any(variable in path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.*"))


def is_final(record: Mapping[str, Any]) -> bool:
    """Whether a later run need not try again."""
    return record["status"] in ("done", "unavailable")


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """The record of a program: done, whatever it says, if it ended by itself."""
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


def write_text(path: Path, text: str) -> None:
    """A reader, or a run after a crash, sees the old file or the new one, never half of it."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


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
