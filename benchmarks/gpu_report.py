"""Measure a GPU: ``make gpu-report FIRST=1``, then ``make gpu-report``, in under ten minutes.

It builds the kernels in place for the card's architecture, then measures item by item, the most
important first, each as a pytest test in this file. Every result is on disk as soon as it is known;
items without time left are listed, and ``--resume`` measures them in another run. A process that
crashes or hangs only loses its item: the next one continues. The result is ``report.json``,
``report.md`` and ``report.tar.gz`` (tables of tuning, logs) in ``benchmarks/results/<gpu>/``.

Exit code: 0, or 1 if tests failed or a part crashed, or 2 if there is no NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import RESULTS, ROOT, slug, write_json, write_text
from benchmarks.facts import smi
from benchmarks.plan import FULL, Item, build_plan, quick_scale
from benchmarks.report import PARTS, problems, render
from benchmarks.tools import CONFIGS, GRACE_S, ProgramError, TimeLimitError, Visit, run_logged
from fassd.bench import machine
from fassd.bench.candidates import UnavailableError, require_operators
from fassd.bench.cases import Bench
from fassd.bench.memory import release
from fassd.io.files import replacing
from fassd_kernels.triton.availability import first_line

WORK = ROOT / "build" / "gpu-report"
CARRIED = ROOT / "build" / "carry"
"""Packages from `make gpu-carry`, for a machine without a network."""

BUDGET_S = {"first": 110.0, "full": 440.0}

SESSION = "FASSD_GPU_REPORT"
"""Environment variable of pytest: the session as JSON."""

SCHEMA = 5
SOURCES = ("fassd/models", "fassd_kernels", "csrc", "setup.py", "pyproject.toml")
SUFFIXES = {".py", ".def", ".h", ".cuh", ".cpp", ".cu", ".toml"}
FINAL = ("done", "unavailable")
"""Statuses that a later run need not try again."""

say = partial(print, flush=True)

# --- the result of each item, on disk as soon as it is known --------------------------------------


class Session:
    """One run over the plan, which several processes share.

    Args:
        state: ready for JSON: ``device``, ``quick``, ``first``, ``only``, ``run`` (its name),
            ``started`` and ``budget_s`` (seconds), ``output`` and ``work`` (folders), ``identity``
            (a result of another machine, or of other sources, is not taken up again) and ``header``
            (of the report).
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

    def elapsed(self) -> float:
        return self.clock() - self.state["started"]

    def left(self) -> float:
        return self.state["budget_s"] - self.elapsed()

    # Records: one file per item.

    def path(self, item: Item) -> Path:
        return self.parts / f"{item.name.replace('/', '.').replace(' ', '')}.json"

    def load(self, item: Item) -> dict[str, Any] | None:
        """The saved record, whatever its status, if it is from this machine and these sources."""
        try:
            record = json.loads(self.path(item).read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return record if record["identity"] == self.state["identity"] else None

    def save(self, item: Item, record: Mapping[str, Any]) -> None:
        """Write a record to disk, and the report with it."""
        marks = {"run": self.state["run"], "identity": self.state["identity"], "date": now()}
        commit = self.state["header"]["commit"]
        write_json(self.path(item), {**record, **marks, "commit": commit})
        self.publish()

    # Which items.

    def is_asked(self, item: Item) -> bool:
        if self.state["only"]:
            return item.part in self.state["only"]
        return item.first or not self.state["first"]

    def pending(self) -> list[Item]:
        """Requested items that were neither finished before nor tried in this run, in order.

        Items that an earlier run tried and did not finish come after the untried.
        """
        untried, tried = [], []
        for item in filter(self.is_asked, self.plan):
            saved = self.load(item)
            if saved is None:
                untried.append(item)
            elif saved["run"] != self.state["run"] and saved["status"] not in FINAL:
                tried.append(item)
        return untried + tried

    def turn(self, item: Item) -> dict[str, Any] | None:
        """Measure an item and save its record; None if there is no time for it."""
        if self.left() < item.least_s:
            return None
        limit_s = min(item.limit_s, self.left())
        died = f"the process died in it, or was killed at its limit of {limit_s:.0f} s"
        self.save(item, {"status": "failed", "reason": died})  # until it is known better
        begun = self.clock()
        record = self.perform(item, limit_s)
        record["seconds"] = round(self.clock() - begun, 2)
        self.save(item, record)
        return record

    def perform(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record of an item; any error becomes one, too."""
        try:
            if item.backend:
                require_operators(item.backend, frozenset(), self.bench.device)
            visit = Visit(self.bench, self.logs, self.configs, limit_s)
            data = PARTS[item.part].measure(visit, **item.arguments)
            json.dumps(data, allow_nan=False)  # values that JSON cannot hold raise here, not later
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

    # The report.

    def describe(self, item: Item) -> dict[str, Any]:
        """Everything known about an item."""
        known: dict[str, Any] = {"name": item.name, "part": item.part}
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


def digest(paths: Iterable[str]) -> str:
    """A short hash of the sources under `paths`, relative to the repository."""
    total = hashlib.sha256()
    for path in paths:
        found = ROOT / path
        for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if file.is_file() and file.suffix in SUFFIXES:
                total.update(str(file.relative_to(ROOT)).encode())
                total.update(file.read_bytes())
    return total.hexdigest()[:16]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- the tests ------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each item that is still to be measured here."""
    session = Session(json.loads(os.environ[SESSION]))
    rows = [pytest.param(session, item, id=item.name) for item in own_items(session)]
    metafunc.parametrize(("session", "item"), rows)


def own_items(session: Session) -> Iterable[Item]:
    """The next items, as far as they need the environment that this process has."""
    own = session.state["environment"]
    return takewhile(lambda item: item.environment == own, session.pending())


def test_item(session: Session, item: Item, request: pytest.FixtureRequest) -> None:
    # Programs have the limit themselves.
    faulthandler.dump_traceback_later(item.limit_s + 2 * GRACE_S, exit=True)
    record = session.turn(item)
    faulthandler.cancel_dump_traceback_later()
    if not usable() or item.part in ("tune", "choices"):
        # The next one needs another process, which reads the new table.
        request.session.shouldstop = f"after {item.name}"
    if record is None:
        pytest.skip("out of time")
    if record["status"] == "unavailable":
        pytest.skip(record["reason"])
    assert record["status"] == "done", record["reason"]


def usable() -> bool:
    """True if the GPU still answers after the last item; cleans up after it."""
    try:
        release()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


# --- the command ----------------------------------------------------------------------------------

PYTEST = (
    *(sys.executable, "-m", "pytest", str(ROOT / "benchmarks" / "gpu_report.py"), "-v"),
    *("--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"),
)


def supervise(session: Session) -> None:
    """Run pytest until everything is measured or the time is up; after a crash it continues.

    Items with an environment of their own get a process that is started with it.
    """
    tried: list[Item] = []
    while session.left() > 0:
        pending = session.pending()
        if pending == tried or not any(item.least_s <= session.left() for item in pending):
            break
        tried = pending
        own = pending[0].environment
        state = json.dumps({**session.state, "environment": own})
        try:
            run_logged(PYTEST, None, session.left() + GRACE_S, {**own, SESSION: state})
        except TimeLimitError as error:
            say(str(error))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu_report", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="rehearse everything in miniature; on --device cpu too"
    )
    parser.add_argument("--first", action="store_true", help="the most important, in two minutes")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS",
        help="default: {full:.0f}, with --first {first:.0f}".format(**BUDGET_S),
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep finished parts")
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART",
        help=f"measure this part alone (repeatable): {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=RESULTS, metavar="DIR",
        help="where <gpu>/report.json goes; default: benchmarks/results",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="where records and logs are kept; default: build/gpu-report",
    )  # fmt: skip
    parser.add_argument(
        "--commit", help="the commit to record, where the sources are not in a git checkout"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="REPORT.json",
        help="measure nothing; write report.md beside this file again",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is a rehearsal and needs --quick; `fassd bench` measures a CPU")
    return options


def state_of(options: argparse.Namespace, started: float) -> dict[str, Any]:
    """The state of a `Session`, from the command line."""
    facts = machine.environment(options.device)
    # Facts that must be the same for a saved result to be used again.
    identity = {
        "device": facts["device"],
        "torch": torch.__version__,
        "triton": facts["versions"]["triton"],
        "sources": digest(SOURCES),
    }
    if options.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        identity["driver"] = smi(f"GPU-{card.uuid}").get("driver_version", "unknown")
    # A rehearsal has a folder of its own: its figures must never be taken for measurements.
    folder = slug(facts["device"]) + ("-quick" if options.quick else "")
    header = {
        "device": facts["device"],
        "mode": "quick" if options.quick else "full",
        "commit": options.commit or facts["commit"] or "unknown",
    }
    return {
        "device": options.device,
        "quick": options.quick,
        "first": options.first,
        "only": options.only or [],
        "run": f"{now()} {os.getpid()}",
        "started": started,
        "budget_s": options.budget or BUDGET_S["first" if options.first else "full"],
        "output": str((options.output / folder).resolve()),
        "work": str((options.work / folder).resolve()),
        "identity": identity,
        "header": header,
    }


def built(session: Session) -> bool:
    """Compile the kernels, if that is the plan's first item; False if it failed."""
    item = session.plan[0]
    if item.part != "build" or not session.is_asked(item):
        return True
    record = session.turn(item)
    say(f"build: {record['status'] if record else 'out of time'} ({session.elapsed():.0f} s)")
    return record is not None and record["status"] == "done"


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.time()
    options = parse(arguments)
    if options.source:
        write_text(
            options.source.with_suffix(".md"), render(json.loads(options.source.read_text()))
        )
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        count = len(build_plan(quick_scale() if options.quick else FULL))
        say(
            f"No NVIDIA GPU is seen by torch {torch.__version__}; with one, this would build the "
            f"kernels, run the conformance suite and measure {count} items ({', '.join(PARTS)}) "
            "into benchmarks/results/<gpu>/; `--device cpu --quick` rehearses it here."
        )
        return 2
    session = Session(state_of(options, started))
    if not options.resume:
        for item in filter(session.is_asked, session.plan):
            session.path(item).unlink(missing_ok=True)
    # For all processes started from here: the user's own table is neither read nor written.
    os.environ[CONFIGS] = str(session.configs)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", ""), str(CARRIED)])
    )
    if options.quick:  # a rehearsal shares the machine; one thread disturbs least
        os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` publishes
    try:
        if built(session):
            supervise(session)
    finally:
        say(f"{session.publish()}")
        session.archive()
    found = problems(session.report())
    for problem in found:
        say(f"PROBLEM {problem.strip().splitlines()[0]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
