"""The GPU report as a run: its session, and the command, rehearsed without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_report, tools, write_text
from benchmarks.gpu_report import SESSION, Session
from benchmarks.plan import build_plan, quick_scale
from benchmarks.probes import launch_times
from benchmarks.report import PARTS
from benchmarks.tools import CONFIGS, Visit
from fassd.bench.candidates import SWITCHED
from fassd.bench.cases import GROUPS
from fassd.bench.timeline import Kernel, Timeline

ROOT = Path(__file__).resolve().parents[2]


# --- a session, whose clock and measurements are stand-ins ----------------------------------------


class Clock:
    """Goes on when it is told to; an item of `standing_in` takes a second."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def state_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "device": "cpu",
        "quick": True,
        "first": False,
        "only": [],
        "run": "one",
        "started": 100.0,
        "budget_s": 1e6,
        "output": str(folder / "out"),
        "work": str(folder / "work"),
        "identity": {"device": "a"},
        "header": {"device": "a", "mode": "quick", "commit": "b"},
        **more,
    }


@pytest.fixture
def standing_in(monkeypatch) -> Clock:
    """Nothing is measured: every item takes a second and gives nothing but its name."""
    clock = Clock()

    def perform(self: Session, item: Any, limit_s: float) -> dict[str, Any]:
        clock.seconds += 1.0
        return {"status": "unavailable", "reason": f"a stand-in of {item.part}"}

    monkeypatch.setattr(Session, "perform", perform)
    return clock


def stand_in(patch: pytest.MonkeyPatch, part: str, measure: Any) -> None:
    patch.setitem(PARTS, part, replace(PARTS[part], measure=measure))


def statuses_of(folder: Path) -> dict[str, str]:
    report = json.loads((folder / "out" / "report.json").read_text())
    return {item["name"]: item["status"] for item in report["items"]}


COUNT = len(build_plan(quick_scale()))


@pytest.mark.parametrize("cut", range(COUNT + 1))
def test_wherever_the_clock_cuts_it_all_before_is_on_disk(cut, tmp_path, standing_in):
    session = Session(state_of(tmp_path), standing_in)
    session.publish()
    for index, item in enumerate(session.pending()):
        if index == cut:
            session.state["budget_s"] = session.elapsed() + 0.5  # less than any item needs
        turned = session.turn(item)
        assert (turned is None) == (index >= cut)
        # What is known is on disk at once, should the process end here.
        statuses = list(statuses_of(tmp_path).values())
        assert statuses.count("unavailable") == min(index + 1, cut)
    statuses = list(statuses_of(tmp_path).values())
    assert statuses == ["unavailable"] * cut + ["not run"] * (COUNT - cut)
    page = (tmp_path / "out" / "report.md").read_text()
    assert (f"* not run: out of time ({COUNT - cut}):" in page) == (cut < COUNT)
    session.archive()
    files = list((tmp_path / "out").iterdir())
    assert {file.name for file in files} == {"report.json", "report.md", "report.tar.gz"}


def test_another_run_goes_on_where_the_clock_cut(tmp_path, standing_in):
    one = Session(state_of(tmp_path), standing_in)
    for item in one.pending()[:3]:
        one.turn(item)
    done = list(one.plan[:3])
    two = Session(state_of(tmp_path, run="two"), standing_in)
    assert two.pending() == two.plan[3:]
    one.save(done[0], {"status": "failed", "reason": "broken"})
    assert done[0] not in one.pending()  # it was tried in this run
    assert two.pending() == [*two.plan[3:], done[0]]  # behind the untried
    changed = Session(state_of(tmp_path, identity={"device": "another"}), standing_in)
    assert changed.pending() == changed.plan


def test_first_and_only_choose_what_is_measured(tmp_path, standing_in):
    first = Session(state_of(tmp_path, first=True), standing_in)
    assert first.pending() == [item for item in first.plan if item.first]
    only = Session(state_of(tmp_path, only=["ceilings"]), standing_in)
    assert [item.name for item in only.pending()] == ["ceilings"]
    reasons = {item["name"]: item["reason"] for item in only.report()["items"]}
    assert reasons["ceilings"] == "out of time"
    assert reasons["environment"] == "left out with --only"


def test_what_a_process_died_in_is_recorded_and_passed_over(tmp_path, standing_in, monkeypatch):
    session = Session(state_of(tmp_path), standing_in)
    item = session.pending()[0]

    def die(self: Session, *_: Any) -> Any:
        raise SystemExit(9)

    monkeypatch.setattr(Session, "perform", die)
    with pytest.raises(SystemExit):
        session.turn(item)
    record = session.load(item)
    assert record["status"] == "failed" and record["reason"].startswith("the process died in it")
    assert item not in session.pending()
    assert statuses_of(tmp_path)[item.name] == "failed"


def test_a_damaged_record_or_one_of_other_sources_is_measured_again(tmp_path, standing_in):
    session = Session(state_of(tmp_path), standing_in)
    damaged, old = session.plan[:2]
    for item in (damaged, old):
        session.turn(item)
    session.path(damaged).write_text('{"status": "do')
    assert session.load(damaged) is None and session.load(old) is not None
    changed = {"device": "a", "sources": "changed"}
    assert Session(state_of(tmp_path, identity=changed), standing_in).load(old) is None


def test_writing_is_atomic(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_text(target, "new")
    assert target.read_text() == "old"


def test_an_error_becomes_a_record(tmp_path, monkeypatch):
    run = Session(state_of(tmp_path), Clock())

    def broken(visit: Visit) -> dict[str, Any]:
        raise ValueError("two\nlines")

    stand_in(monkeypatch, "environment", broken)
    record = run.turn(run.plan[0])
    assert (record["status"], record["reason"]) == ("failed", "ValueError: two")
    # JSON lacks this number: it is an error of the item, and nothing is saved of it.
    stand_in(monkeypatch, "environment", lambda visit: {"ms": float("inf")})
    assert run.turn(run.plan[0])["status"] == "failed"
    with pytest.raises(ValueError):
        run.save(run.plan[0], {"ms": float("nan")})


# --- the command ----------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 2
    out = capsys.readouterr().out
    assert out.startswith("No NVIDIA GPU is seen") and out.count("\n") == 1


def test_a_cpu_is_only_rehearsed(capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--device", "cpu"])
    assert "needs --quick" in capsys.readouterr().err


def command(folder: Path, *arguments: str) -> int:
    """The command on this CPU; the process is left as it was."""
    output, work = str(folder / "out"), str(folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        for name in (CONFIGS, "PYTHONPATH", "OMP_NUM_THREADS"):
            patch.setenv(name, os.environ.get(name, ""))
        for name in filter(lambda name: name.startswith("PYTEST_XDIST"), [*os.environ]):
            patch.delenv(name)  # a worker of xdist says so in its environment
        patch.setattr(signal, "signal", lambda *_: None)
        options = ["--device", "cpu", "--quick", "--output", output, "--work", work, *arguments]
        return gpu_report.main(options)


def measure_here(command: list[str], log: None, limit_s: float, environment: Any) -> int:
    """A stand-in for pytest's process: the same items, in this one."""
    session = Session(json.loads(environment[SESSION]))
    while pending := session.pending():
        session.turn(pending[0])
    assert gpu_report.usable()
    return 0


COUNTERS = """\
"ID","Kernel Name","gpu__time_duration.sum"
"","","ns"
"0","convolution_kernel","1,500"
"""


def started(command: list[str], log: Path, limit_s: float, environment: Any) -> int:
    """A stand-in for all other programs, which writes what each would write."""
    words = list(map(str, command))
    log.write_text("a log\n")
    for word in words:
        if word.startswith("--report-log="):
            test = {"$report_type": "TestReport", "nodeid": "a", "when": "call"}
            lines = [{**test, "outcome": "passed"}, {"$report_type": "SessionFinish"}]
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            Path(word.partition("=")[2]).write_text(text)
    if "--log-file" in words:
        watching = COUNTERS if words[0] == "ncu" else "========= ERROR SUMMARY: 0 errors\n"
        Path(words[words.index("--log-file") + 1]).write_text(watching)
    if "fassd_kernels.tune" in words:
        folder = Path(environment[CONFIGS]) / ("backends" if "--backends" in words else "")
        folder.mkdir(exist_ok=True)
        (folder / "a-gpu.json").write_text('{"configurations": {"a": 1}, "median_us": {"a": 1}}')
    return 0


def profiled(visit: Visit, backend: str, network: str, **place: Any) -> dict[str, Any]:
    """A stand-in for a GPU's profiler: the planned kernel ran, and nothing else."""
    kernels = [Kernel("conv_act_kernel", 0.0, 1e-6)]
    seen = Timeline([kernels], [1e-6])
    found = launch_times(["conv_act_kernel"], seen)
    return {"network": network, "backend": backend, "dtype": place["dtype"], **found}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    """The folder of a whole run in miniature: what needs a GPU or a compiler is a stand-in."""
    folder = tmp_path_factory.mktemp("rehearsal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_report, "run_logged", measure_here)
        patch.setattr(tools, "run_logged", started)
        patch.setattr(tools.shutil, "which", str)
        patch.setattr("benchmarks.gpu_report.require_operators", lambda *_: None)
        stand_in(patch, "profile", profiled)
        for environment in SWITCHED.values():  # these items need no process of their own, then
            for name, value in environment.items():
                patch.setenv(name, value)
        assert command(folder) == 0
    (output,) = (folder / "out").iterdir()
    return output


def test_a_rehearsal_runs_every_part(rehearsal):
    """Each kind of item, and each group of forms, is measured, and shown on the page."""
    report = json.loads((rehearsal / "report.json").read_text())
    statuses = {item["name"]: item["status"] for item in report["items"]}
    others = {"smoke/triton": "unavailable"}  # there is no Triton without a GPU
    assert statuses == {name: others.get(name, "done") for name in statuses}
    assert {item["part"] for item in report["items"]} == set(PARTS) - {"build"}
    page = (rehearsal / "report.md").read_text()
    assert "A rehearsal in miniature" in page and "| MDA(63, 2) | 1x64x64 |" in page
    for name, part in PARTS.items():
        assert (f"\n## {part.title}\n" in page) == (name != "build")
    assert "## Problems" not in page
    names = {"report.json", "report.md", "report.tar.gz"}
    assert {path.name for path in rehearsal.iterdir()} == names  # as much as can be carried home
    with tarfile.open(rehearsal / "report.tar.gz") as archive:
        folders = {name.partition("/")[0] for name in archive.getnames()}
    assert folders == {"parts", "logs", "configs"}


def test_a_rehearsal_times_every_form(rehearsal):
    report = json.loads((rehearsal / "report.json").read_text())
    cases = [item["data"] for item in report["items"] if item["part"] in ("networks", "modules")]
    assert {case["group"] for case in cases} == set(GROUPS) - {"max-autotune"}
    forms = [form for case in cases for form in case["candidates"]]
    timed = [form for form in forms if "timing" in form]
    ours = {"native", "native-dependent", "native-carve-out", "native-threads", "auto"}
    assert {form["name"] for form in timed} == {"eager", "channels_last", "compile"} | ours
    assert all(form["match"] and form["timing"]["median_s"] > 0 for form in timed)
    reasons = {f["name"]: f["reason"] for f in forms if f["status"] == "unavailable"}
    assert set(reasons) == {"triton"}
    assert reasons["triton"].startswith("backend triton")


def test_a_second_run_takes_up_the_first(rehearsal):
    """By a process of pytest, as on a GPU."""
    folder = rehearsal.parents[1]
    (parts,) = (folder / "work").glob("*/parts")
    before = {path: path.read_text() for path in parts.iterdir()}
    victim = parts / "ceilings.json"
    victim.unlink()
    assert command(folder, "--resume") == 0
    after = {path: path.read_text() for path in parts.iterdir()}
    assert {path for path in after if after[path] != before[path]} == {victim}


def test_the_page_can_be_written_again(rehearsal):
    page = (rehearsal / "report.md").read_text()
    (rehearsal / "report.md").unlink()
    assert gpu_report.main(["--from", str(rehearsal / "report.json")]) == 0
    assert (rehearsal / "report.md").read_text() == page


def test_a_process_that_dies_loses_its_item_alone(tmp_path, monkeypatch):
    """pytest is a stand-in that measures its own items, and dies in the third the first time."""
    session = Session(state_of(tmp_path, started=time.time()))
    died: list[str] = []
    environments: list[dict[str, str]] = []

    def run_pytest(command: list[str], log: None, limit_s: float, environment: Any) -> int:
        child = Session(json.loads(environment.pop(SESSION)))
        environments.append(environment)
        for index, item in enumerate(gpu_report.own_items(child)):
            assert item.environment == environment
            if index == 2 and not died:
                died.append(item.name)
                monkeypatch.setattr(Session, "perform", lambda *_: sys.exit(9))
                with pytest.raises(SystemExit):
                    child.turn(item)
                return -9
            child.save(item, {"status": "unavailable", "reason": "a stand-in"})
        return 0

    monkeypatch.setattr(gpu_report, "run_logged", run_pytest)
    gpu_report.supervise(session)
    statuses = statuses_of(tmp_path)
    assert statuses.pop(died[0]) == "failed" and set(statuses.values()) == {"unavailable"}
    # Switched kernels have a process of their own.
    assert [e for e in environments if e] == [*SWITCHED.values(), SWITCHED["dependent"]]


def test_nothing_is_started_without_time(tmp_path, monkeypatch):
    session = Session(state_of(tmp_path, started=time.time(), budget_s=0.5))
    monkeypatch.setattr(gpu_report, "run_logged", None)
    gpu_report.supervise(session)
    session.publish()
    assert set(statuses_of(tmp_path).values()) == {"not run"}


WITHOUT = """
import sys
plugins = ("pytest_timeout", "pytest_reportlog", "pytest_benchmark", "xdist")
commands = ("typer", "rich", "pydantic", "platformdirs", "jinja2", "matplotlib", "adjustText")
for name in (*plugins, *commands, "triton"):
    sys.modules[name] = None
import benchmarks.conftest
import benchmarks.gpu_report
"""


def test_it_runs_without_the_plugins():
    """On a bare machine they may be missing, as may what only pages and commands want."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
