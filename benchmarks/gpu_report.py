"""Measure a GPU: ``python -m benchmarks.gpu_report`` (``make gpu-report``), in under ten minutes.

Installs the package into the Python that runs this, runs the conformance suite on the device,
times the CUDA and the Triton kernels beside what they have to beat, the latter tuned, and looks
into the CUDA kernels with what NVIDIA's tools can see. Every item is saved as it ends; what finds
no time is listed, and ``--resume`` measures it in another run. The result is ``report.json``,
``report.md``, ``report.png`` and the tables of what was tuned in ``benchmarks/results/<gpu>/``.

Exit code: 0, or 1 if tests failed or a part crashed, or 2 if there is no NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.charts import draw
from benchmarks.conformance import conformance
from benchmarks.counters import count_launches
from benchmarks.environment import ROOT, commit, cpu_name, now, slug, smi, version_of
from benchmarks.install import install, is_installed
from benchmarks.peers import UnavailableError
from benchmarks.plan import PARTS, Item, Scale, build_plan, full_scale, quick_scale, untuned
from benchmarks.process import TimeLimitError, Worker, WorkerDiedError
from benchmarks.report import problems, render
from benchmarks.sanitizer import sanitize
from benchmarks.store import Store, write_atomically
from benchmarks.targets import load_predictions
from benchmarks.timing import first_line
from benchmarks.tuning import CONFIGS, tune

RESULTS = ROOT / "benchmarks" / "results"
BUDGET_S = 540.0


@dataclass(frozen=True)
class Run:
    """One run over a plan.

    Attributes:
        device: ``cuda`` or ``cpu``.
        plan: what to measure, most important first.
        parts: the parts that this run works on; of the others, what is saved is merged.
        resume: keep what is finished.
        store: where results are.
        worker: measures.
        header: of the report: ``device``, ``mode``, ``commit``.
        budget_s: seconds for everything.
        started: when they began to count, of `time.monotonic`.
        backends: of ours, what the worker said when it was asked for them.
    """

    device: str
    plan: Sequence[Item]
    parts: Sequence[str]
    resume: bool
    store: Store
    worker: Worker
    header: Mapping[str, Any]
    budget_s: float
    started: float
    backends: dict[str, dict[str, Any]] = field(default_factory=dict)

    def go(self) -> int:
        """Measure, publish after every item, and return the exit code."""
        items = [item for item in self.plan if item.part in self.parts]
        if not self.resume:
            self.store.drop(items)
        try:
            for item in sorted(items, key=self.precedence):
                self.turn(item)
        finally:
            self.worker.close()
            page = self.store.publish(self.full_header(), self.records())
            say(f"{page}")
            chart(page.with_suffix(".json"))
        found = problems({"items": self.records(), "mode": self.header["mode"]})
        for problem in found:
            say(f"PROBLEM {first_text(problem)}")
        return 1 if found else 0

    def precedence(self, item: Item) -> int:
        """Sorts the plan: what was tried before and did not finish comes behind the untried.

        Only the install stays first: the machine may be another, without the package.
        """
        return int(item.task != "install" and self.store.load(item) is not None)

    def turn(self, item: Item) -> None:
        """Measure one item, unless it is finished or there is no time for it."""
        if self.is_finished(item):
            return
        left = self.budget_s - self.elapsed()
        if left < item.least_s:
            return
        begun = time.monotonic()
        record = self.perform(item, min(item.limit_s, left))
        record.update(
            seconds=round(time.monotonic() - begun, 2), date=now(), commit=self.header["commit"]
        )
        self.store.save(item, record)
        if item.task == "tune" and record["status"] != "unavailable":
            # Cut short or not, what it has found is in the table: our figures are older than that,
            # and the worker has read the table as it was.
            self.store.drop(untuned(self.plan, item))
            self.worker.close()
        self.store.publish(self.full_header(), self.records())
        outcome = f"{record['status']} {first_text(record.get('reason', ''))}".strip()
        say(f"[{self.elapsed():5.0f} s] {item.name}: {outcome} ({record['seconds']:.1f} s)")

    def is_finished(self, item: Item) -> bool:
        saved = self.store.load(item)
        if saved is None or saved["status"] not in ("done", "unavailable"):
            return False
        return item.task != "install" or is_installed()

    def perform(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The record of an item; whatever happens becomes one."""
        logs = self.store.logs
        try:
            if item.backend:
                there = self.ask_for(item.backend, limit_s)
                if there["status"] != "done":
                    return dict(there)
            if item.task == "install":
                return done(install(logs, limit_s))
            if item.task == "conformance":
                name = item.name.replace("/", ".")
                return judged(conformance(logs, limit_s, name=name, **item.arguments))
            if item.task == "sanitizer":
                return judged(sanitize(logs, limit_s, **item.arguments))
            if item.task == "counters":
                return done(count_launches(logs, limit_s, **item.arguments))
            if item.task == "tune":
                return done(tune(logs, self.store.configs, limit_s, **item.arguments))
            return self.ask_worker(item, limit_s)
        except UnavailableError as reason:
            return {"status": "unavailable", "reason": str(reason)}
        except TimeLimitError as error:
            return {"status": "timeout", "reason": str(error)}
        except (WorkerDiedError, OSError, RuntimeError) as error:
            return {"status": "failed", "reason": str(error) or first_line(error)}

    def ask_worker(self, item: Item, limit_s: float) -> dict[str, Any]:
        """The worker's answer, or that of one for this item alone."""
        arguments = dict(item.arguments)
        if "limit_s" in arguments:  # it ends by itself then, and what it has is not lost
            arguments["limit_s"] = min(arguments["limit_s"], limit_s / 2)
        if not item.environment:
            return self.worker.ask(item.task, arguments, limit_s)
        other = self.worker.with_environment(item.environment)
        try:
            return other.ask(item.task, arguments, limit_s)
        finally:
            other.close()

    def ask_for(self, backend: str, limit_s: float) -> dict[str, Any]:
        """A record that is done if a backend of ours is there, and else says why not."""
        if backend not in self.backends:
            arguments = {"device": self.device, "name": backend}
            self.backends[backend] = self.worker.ask("backend", arguments, limit_s)
        return self.backends[backend]

    def records(self) -> list[dict[str, Any]]:
        """What is known of every item of the plan."""
        return [self.describe(item) for item in self.plan]

    def describe(self, item: Item) -> dict[str, Any]:
        known: dict[str, Any] = {"name": item.name, "part": item.part}
        if item.task == "case":
            wanted = ("part", "subject", "batch", "height", "width", "dtype", "group")
            known["case"] = {name: item.arguments[name] for name in wanted}
        saved = self.store.load(item)
        if saved is not None:
            return {**known, **saved}
        reason = "out of time" if item.part in self.parts else "left out with --only"
        return {**known, "status": "not run", "reason": reason}

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def full_header(self) -> dict[str, Any]:
        return {
            **self.header,
            "date": now(),
            "budget_s": self.budget_s,
            "elapsed_s": round(self.elapsed(), 1),
            "predicted": load_predictions(),
        }


def done(data: dict[str, Any]) -> dict[str, Any]:
    return {"status": "done", "data": data}


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """The record of the conformance suite: done, whatever the tests say, if all were run."""
    if "crash" in data:
        return {"status": "failed", "reason": data["crash"], "data": data}
    if data["finished"]:
        return done(data)
    ran = sum(data["counts"].values())
    reason = f"stopped after {ran} of {data['collected']} tests"
    return {"status": "timeout", "reason": reason, "data": data}


def chart(source: Path) -> None:
    """Draw ``report.png`` beside a report, if it holds a figure and matplotlib is there."""
    try:
        drawn = draw(source.with_suffix(".png"), json.loads(source.read_text()))
    except ImportError as error:
        say(f"no {source.stem}.png: {error}")
        return
    say(f"{drawn}" if drawn else f"no {source.stem}.png: nothing was timed")


def say(line: str) -> None:
    print(line, flush=True)


def first_text(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


# --- command line ---------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu_report", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="rehearse everything in miniature; on --device cpu too"
    )
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="default: %(default)s"
    )
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
        "--commit", help="the commit to record, where the sources are not in a git checkout"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="REPORT.json",
        help="measure nothing; write report.md and report.png beside this file again",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is a rehearsal and needs --quick; `fassd bench` measures a CPU")
    return options


def identity(device: str) -> dict[str, str]:
    """What must be the same for a saved result to be taken up again."""
    libraries = {"torch": torch.__version__, "triton": version_of("triton")}
    if device == "cpu":
        return {"device": cpu_name(), **libraries}
    card = torch.cuda.get_device_properties(0)
    driver = smi(f"GPU-{card.uuid}").get("driver_version", "unknown")
    return {"device": card.name, "driver": driver, **libraries}


def rerender(source: Path) -> int:
    page = source.with_suffix(".md")
    write_atomically(page, render(json.loads(source.read_text())))
    say(f"{page}")
    chart(source)
    return 0


def no_gpu(scale: Scale) -> int:
    count = len(build_plan(scale))
    say(
        f"No NVIDIA GPU is seen by torch {torch.__version__}; with one, this would install the "
        f"package, run the conformance suite and measure {count} items ({', '.join(PARTS)}) into "
        "benchmarks/results/<gpu>/; `--device cpu --quick` rehearses it here."
    )
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parse(arguments)
    if options.source:
        return rerender(options.source)
    scale = quick_scale(options.device) if options.quick else full_scale()
    if options.device == "cuda" and not torch.cuda.is_available():
        return no_gpu(scale)
    who = identity(options.device)
    mode = "quick" if options.quick else "full"
    # A rehearsal has a folder of its own: its figures must never be taken for measurements.
    folder = slug(who["device"]) + ("-quick" if options.quick else "")
    store = Store((options.output / folder).resolve(), who)
    # For all processes started from here: the user's own table is neither read nor written.
    os.environ[CONFIGS] = str(store.configs)
    run = Run(
        options.device,
        build_plan(scale),
        options.only or PARTS,
        options.resume,
        store,
        # A rehearsal shares the machine with other work; one thread disturbs least.
        Worker(store.logs / "worker.log", {"OMP_NUM_THREADS": "1"} if options.quick else {}),
        {"device": who["device"], "mode": mode, "commit": options.commit or commit()},
        options.budget,
        started,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` publishes
    return run.go()


if __name__ == "__main__":
    sys.exit(main())
