"""Measure a GPU: ``make gpu-report FIRST=1``, then ``make gpu-report``, in under ten minutes.

Builds the kernels in place for the card's architecture, then measures item by item, the most
important first, each a test of pytest in this file. Every result is on disk when it is known; what
finds no time is listed, and ``--resume`` measures it in another run. A process that crashes or
hangs loses its item alone: the next one goes on. The result is ``report.json``, ``report.md``,
``report.png`` and ``report.tar.gz`` (tables of what was tuned, logs) in
``benchmarks/results/<gpu>/``.

Exit code: 0, or 1 if tests failed or a part crashed, or 2 if there is no NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import RESULTS, ROOT, slug, write_text
from benchmarks.facts import smi, version_of
from benchmarks.plan import FULL, PARTS, Item, build_plan, quick_scale
from benchmarks.report import draw, problems, render
from benchmarks.session import ALONE, SESSION, Session, now, pytest_command
from benchmarks.tools import CONFIGS, GRACE_S, TimeLimitError, run_logged
from fassd.bench import machine

WORK = ROOT / "build" / "gpu-report"
CARRIED = ROOT / "build" / "carry"
"""Packages that `make gpu-carry` puts there, for a machine that has no network."""

BUDGET_S = {"first": 110.0, "full": 440.0}

say = partial(print, flush=True)

# --- the tests ------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each item that is still to be measured."""
    session = Session(json.loads(os.environ[SESSION]))
    alone = os.environ.get(ALONE)
    items = [item for item in session.pending() if alone in (None, item.name)]
    rows = [
        pytest.param(
            session,
            item,
            id=item.name,
            # Programs have the limit themselves.
            marks=pytest.mark.timeout(item.limit_s + 2 * GRACE_S, method="thread"),
        )
        for item in items
    ]
    metafunc.parametrize(("session", "item"), rows)


def test_item(session: Session, item: Item, request: pytest.FixtureRequest) -> None:
    if not request.config.pluginmanager.hasplugin("timeout"):
        faulthandler.dump_traceback_later(item.limit_s + 2 * GRACE_S, exit=True)
    record = session.turn(item)
    tuning = item.part in ("tune", "choices")
    tuned = tuning and record is not None and record["status"] != "unavailable"
    if not usable() or tuned:  # what comes next needs another process, which reads the new table
        request.session.shouldstop = f"after {item.name}"
    if record is None:
        pytest.skip("out of time")
    if record["status"] == "unavailable":
        pytest.skip(record["reason"])
    assert record["status"] == "done", record["reason"]


def usable() -> bool:
    """Whether the GPU still answers after the last item; clears up behind it."""
    torch._dynamo.reset()
    gc.collect()
    try:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


# --- the command ----------------------------------------------------------------------------------


def supervise(session: Session) -> None:
    """Run pytest until all is measured or the time is up; after a crash it goes on behind it."""
    tried: list[str] = []
    environment = {SESSION: json.dumps(session.state)}
    while session.left() > 0:
        pending = session.pending()
        names = [item.name for item in pending]
        if names == tried or not any(item.least_s <= session.left() for item in pending):
            break
        tried = names
        try:
            run_logged(pytest_command(), None, session.left() + GRACE_S, environment)
        except TimeLimitError as error:
            say(str(error))
        session.interrupted()


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
        help="measure nothing; write report.md and report.png beside this file again",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is a rehearsal and needs --quick; `fassd bench` measures a CPU")
    return options


def state_of(options: argparse.Namespace, started: float) -> dict[str, Any]:
    """The state of a `Session`, from the command line."""
    facts = machine.environment(options.device)
    # What must be the same for a saved result to be taken up again.
    identity = {
        "device": facts["device"],
        "torch": torch.__version__,
        "triton": version_of("triton"),
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
    """Compile the kernels, as the plan's first item, where that is one; False where it failed."""
    item = session.plan[0]
    if item.part != "build" or not session.is_asked(item):
        return True
    record = session.turn(item)
    say(f"build: {record['status'] if record else 'out of time'} ({session.elapsed():.0f} s)")
    return record is not None and record["status"] == "done"


def chart(source: Path) -> None:
    """Draw ``report.png`` beside a report, if it holds a figure and matplotlib is there."""
    try:
        drawn = draw(source.with_suffix(".png"), json.loads(source.read_text()))
    except ImportError as error:
        say(f"no {source.stem}.png: {error}")
        return
    say(f"{drawn}" if drawn else f"no {source.stem}.png: nothing was timed")


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.time()
    options = parse(arguments)
    if options.source:
        write_text(
            options.source.with_suffix(".md"), render(json.loads(options.source.read_text()))
        )
        chart(options.source)
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
        session.drop(filter(session.is_asked, session.plan))
    # For all processes started from here: the user's own table is neither read nor written.
    os.environ[CONFIGS] = str(session.configs)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", ""), str(CARRIED)])
    )
    if options.quick:  # a rehearsal shares the machine with other work; one thread disturbs least
        os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` publishes
    try:
        if built(session):
            supervise(session)
    finally:
        page = session.publish()
        say(f"{page}")
        chart(page.with_suffix(".json"))
        session.archive()
    found = problems(session.report())
    for problem in found:
        say(f"PROBLEM {problem.strip().splitlines()[0]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
