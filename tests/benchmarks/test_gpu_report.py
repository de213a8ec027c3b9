"""The GPU report, without a GPU: its arithmetic, its page, and a whole run in miniature."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fassd
import fassd_kernels
from benchmarks import gpu_report, session
from benchmarks.plan import build_plan, full_scale, quick_scale, untuned
from benchmarks.report import problems, render
from benchmarks.rows import floor_ms, launch_floors_ms, number, speedup
from benchmarks.session import Session, judged, write_text
from benchmarks.tools import conformance
from fassd.bench.candidates import (
    SWITCHED,
)
from fassd.bench.subjects import MODULES, OPERATORS, PICTURES

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


# --- a record made by hand ------------------------------------------------------------------------


# 4 MB at 4 TB/s: 1 microsecond. 1.6 GFLOP at 800 TFLOP/s: 2 microseconds.
WORK = {"activation_bytes": 3_000_000, "weight_bytes": 1_000_000, "operations": 1_600_000_000}


def form(name: str, ms: float, match: bool = True, **more: Any) -> dict[str, Any]:
    timing = {"ms": ms, "q1_ms": 0.99 * ms, "q3_ms": 1.01 * ms, "n": 15, "method": "graph"}
    return {
        "name": name,
        "status": "done",
        "timing": timing,
        "plain": {**timing, "ms": 3 * ms, "method": "events"},
        "rel_error": 4e-4 if match else None,
        "match": match,
        **more,
    }


def case_item(group: str, *forms: dict[str, Any], part: str = "modules") -> dict[str, Any]:
    subject = {"modules": "DAPF(224)", "networks": "fassd_net", "operators": "normalize"}[part]
    place = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
    case = {"part": part, "subject": subject, **place}
    item = {"name": f"{part}/{group}", "part": part, "case": {**case, "group": group}}
    if not forms:
        return {**item, "status": "not run", "reason": "out of time"}
    work = {**WORK, "arithmetic": "float16"}
    return {**item, "status": "done", "data": {**case, **work, "candidates": list(forms)}}


# 4 MB in 1 microsecond, and 0.8 GFLOP in 1 microsecond.
LAUNCHES = {"bytes": [4_000_000, 1_000], "operations": [1_000, 800_000_000]}
OURS = form("triton", 0.004, launches=LAUNCHES)

CEILINGS = {
    "copy": {
        "bytes_per_s": 4e12,
        "buffer_bytes": 2 << 30,
        "timing": {"ms": 1.0, "q1_ms": 0.99, "q3_ms": 1.0, "n": 15},
    },
    "matrix": {
        "float16": {
            "operations_per_s": 8e14,
            "side": 8192,
            "timing": {"ms": 1.4, "q1_ms": 1.4, "q3_ms": 1.407, "n": 15},
        }
    },
}


@pytest.fixture
def report() -> dict[str, Any]:
    suite = {
        "suite": "tests/conformance",
        "options": ["--device=cuda"],
        "counts": {"passed": 98, "failed": 2},
        "finished": True,
        "failures": [{"test": "test_mda.py::test[a|b]", "message": "off by\none"}],
    }
    missing = {"name": "triton", "status": "unavailable", "reason": "not implemented yet: no dapf"}
    items = [
        {"name": "ceilings", "part": "ceilings", "status": "done", "data": CEILINGS},
        {"name": "conformance/triton", "part": "conformance", "status": "done", "data": suite},
        case_item("library", form("eager", 0.020), form("channels_last", 0.010)),
        case_item("ours", {"name": "eager", "status": "done"}, missing),
        case_item("compile", form("eager", 0.021), form("compile", 0.005, match=False)),
        case_item("max-autotune"),
        case_item("library", form("eager", 2.0), form("channels_last", 1.0), part="networks"),
        case_item("ours", form("eager", 0.02), OURS, part="operators"),
    ]
    return {
        "schema": 1,
        "device": "NVIDIA H200",
        "mode": "full",
        "commit": "abc",
        "date": "2026-01-01T00:00:00+00:00",
        "budget_s": 540.0,
        "elapsed_s": 500.0,
        "items": items,
    }


def cells(page: str, *start: str) -> list[str]:
    """The cells of the table row that begins with `start`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {' | '.join(start)} |")]
    assert len(lines) == 1, lines
    return lines[0].strip("| ").split(" | ")


def test_rows_say_what_was_measured(report):
    page = render(report)
    picture = ("1x1024x2048", "float16")
    folded = cells(page.split("## Modules")[1].split("## Networks")[0], *picture, TITLE_FOLDED)
    # ms, IQR, n, plain calls, speed-up, floor, of floor
    expected = ["0.01000", "2.0%", "15", "0.03000", "2.00x", "0.002000", "20%"]
    # launches, of launch floors, error, match, method
    assert folded[3:] == [*expected, "-", "-", "4.0e-04", "yes", "graph"]
    network = cells(page.split("## Networks")[1], *picture, TITLE_FOLDED)
    assert network[3:8] == ["1.000", "1,000", "2.0%", "15", "3.000"]
    operators = page.split("## Operators")[1].split("## Modules")[0]
    assert cells(operators, *picture, "ours, Triton")[7:12] == [
        "5.00x",
        "0.002000",
        "50%",
        "2",
        "50%",
    ]


TITLE_FOLDED = "channels_last, BN folded, cudnn.benchmark"


def test_a_mismatch_has_no_speedup(report):
    row = cells(render(report), "1x1024x2048", "float16", "torch.compile")
    assert row[7] == "-"
    assert row[12:14] == ["not finite", "**NO**"]


def test_what_has_no_figure_says_why(report):
    page = render(report)
    modules = page.split("## Modules")[1].split("## Networks")[0]
    assert (
        cells(modules, "1x1024x2048", "float16", "ours, Triton")[3]
        == "not implemented yet: no dapf"
    )
    late = cells(page, "1x1024x2048", "float16", "torch.compile max-autotune")
    assert late[3] == "not run: out of time"
    assert "* not run: out of time (1): `modules/max-autotune`" in page


def test_ceilings_and_conformance_are_shown(report):
    page = render(report)
    assert cells(page, "copy of 2,048 MiB, read + written")[1:] == ["4,000 GB/s", "1.0%", "15"]
    assert cells(page, "matrix product, float16, side 8192")[1:3] == ["800 TFLOP/s", "0.5%"]
    assert "`pytest tests/conformance --device=cuda`: 2 failed, 98 passed." in page
    assert r"| test_mda.py::test[a\|b] | off by one |" in page


def test_every_table_is_rectangular(report):
    for block in render(report).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths = {row.replace(r"\|", "").count("|") for row in rows}
        assert len(widths) <= 1, block


def test_problems_are_failures_of_ours(report):
    assert problems(report) == [
        "conformance/triton: 2 tests failed"
    ]  # a peer's mismatch is not ours
    smoke = {"name": "smoke", "part": "smoke", "status": "failed", "reason": "wrong result"}
    report["items"].append(smoke)
    report["items"].append(case_item("ours", form("eager", 1.0), form("triton", 1.0, match=False)))
    assert problems(report)[1:] == [
        "smoke: wrong result",
        "modules/ours: the result does not match the reference",
    ]
    assert "## Problems" in render(report)


def test_the_headline_names_every_commit(report):
    assert "commit abc." in render(report)
    report["items"][0]["commit"] = "older"
    assert "commit abc, other items at older." in render(report)


def test_render_leaves_the_record_alone(report):
    before = copy.deepcopy(report)
    render(report)
    assert report == before


def test_floor_is_the_larger_of_bytes_and_operations():
    work = {**WORK, "arithmetic": "float16"}
    assert floor_ms(work, CEILINGS) == pytest.approx(0.002)
    assert floor_ms({**work, "operations": 0}, CEILINGS) == pytest.approx(0.001)
    assert floor_ms(work, None) is None


def test_the_floor_of_launches_is_the_sum_of_theirs():
    work = {**WORK, "arithmetic": "float16"}
    assert launch_floors_ms(OURS, work, CEILINGS) == pytest.approx(0.002)
    assert launch_floors_ms(form("eager", 1.0), work, CEILINGS) is None
    assert launch_floors_ms(OURS, work, None) is None


def test_speedup_needs_eager_and_a_match():
    assert speedup(form("ours", 1.0), form("eager", 3.0)) == pytest.approx(3.0)
    assert speedup(form("ours", 1.0), None) is None
    assert speedup(form("ours", 1.0), form("eager", 3.0, match=False)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0123456, "0.01235"), (1.5, "1.500"), (1234.5, "1234"), (0.0, "0")],
)
def test_number(value, text):
    assert number(value) == text


# --- plan and store -------------------------------------------------------------------------------


def test_the_plan_holds_everything():
    names = [item.name for item in build_plan(full_scale())]
    assert len(set(names)) == len(names)
    subjects = {"modules": list(MODULES), "networks": fassd.list_models()}
    for part, size, batch, dtype in itertools.product(
        subjects, ("1024x2048", "512x1024"), (1, 8), ("float16", "bfloat16", "float32")
    ):
        for subject, group in itertools.product(
            subjects[part], ("library", "ours", "compile", "max-autotune")
        ):
            assert f"{part}/{subject}/{batch}x{size}/{dtype}/{group}" in names
    for name in ("fassd_net", "fassd_net_l2"):
        for group in ("native", "dependent", "carve-out", "choice"):
            assert f"networks/{name}/1x1024x2048/float16/{group}" in names
        wanted = {f"runner/{name}", f"profile/cuda/{name}"}
        wanted |= {f"{kind}/{name}/1x1024x2048/float16" for kind in ("variants", "choices")}
        assert wanted <= set(names)
    tools = {"memcheck", "racecheck", "initcheck", "synccheck"}
    assert {f"sanitizer/{tool}" for tool in tools} | {"counters/fassd_net"} <= set(names)
    assert "sanitizer/memcheck/fassd_net" in names
    operators = {place.operator for place in OPERATORS.values()}
    operators |= {subject.partition(" ")[0] for subject in PICTURES}
    modules = {place.operator for place in MODULES.values()}
    assert operators | modules == set(fassd_kernels.ops.SCHEMAS) - {"pack_weight"}


def test_the_first_two_minutes_hold_the_headline():
    plan = build_plan(full_scale())
    first = [item.name for item in plan if item.first]
    assert [item.name for item in plan[: len(first)]] == first
    here, half = "1x1024x2048/float16", "1x512x1024/float16"
    networks = ("networks/fassd_net", "networks/fassd_net_l2")
    assert first == [
        "build",
        "environment",
        "smoke/cuda",
        *(f"{network}/{place}/native" for place in (here, half) for network in networks),
        "profile/cuda/fassd_net",
        "profile/cuda/fassd_net_l2",
        *(f"{network}/{here}/{group}" for network in networks for group in SWITCHED),
    ]


def test_the_most_important_comes_first():
    names = [item.name for item in build_plan(full_scale())]

    def place(subject: str, group: str, where: str = "1x1024x2048/float16") -> int:
        return names.index(f"{subject}/{where}/{group}")

    def in_order(*places: int) -> bool:
        return list(places) == sorted(places)

    network, crowd = "networks/fassd_net", "8x1024x2048/float16"
    assert in_order(
        place(network, "dependent"),
        place(network, "ours"),
        place(network, "library"),
        place(network, "compile"),
        names.index("counters/fassd_net"),
        names.index("conformance/cuda/sample"),
        names.index("runner/fassd_net_l2"),
        place(network, "native", crowd),
        names.index("ceilings"),
        names.index("sanitizer/memcheck/fassd_net"),
        names.index("tune/fassd_net/1x1024x2048/float16"),
        names.index("choices/fassd_net/1x1024x2048/float16"),
        place(network, "choice"),
        place(network, "max-autotune"),
        names.index("variants/fassd_net/1x1024x2048/float16"),
        names.index("sanitizer/racecheck"),
        place("networks/baseline", "library"),
        names.index("conformance/cuda"),
    )
    elsewhere = "1x512x1024/float16"
    tuned = names.index(f"tune/fassd_net/{elsewhere}")
    assert in_order(place("networks/baseline", "ours"), tuned, place(network, "library", elsewhere))
    assert in_order(
        place("networks/baseline", "ours", "8x512x1024/float32"),
        place("networks/fassd_net_l1", "compile"),
    )


def test_tuning_changes_ours_at_its_place():
    plan = build_plan(full_scale())
    tuning = next(item for item in plan if item.name == "tune/fassd_net/8x1024x2048/float16")
    names = {item.name for item in untuned(plan, tuning)}
    assert "networks/baseline/8x1024x2048/float16/ours" in names
    assert "operators/upsample/8x1024x2048/float16/ours" in names
    assert all(name.endswith("/8x1024x2048/float16/ours") for name in names)
    first = next(item for item in plan if item.name == "choices/fassd_net/1x1024x2048/float16")
    assert {item.name for item in untuned(plan, first)} == {
        f"networks/{name}/1x1024x2048/float16/choice" for name in ("fassd_net", "fassd_net_l2")
    }


def test_a_quick_plan_builds_nothing_and_autotunes_nothing():
    names = [item.name for item in build_plan(quick_scale())]
    assert "build" not in names
    assert not any("max-autotune" in name for name in names)


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
    reasons = {item["name"]: item["reason"] for item in only.records()}
    assert reasons["ceilings"] == "out of time"
    assert reasons["environment"] == "left out with --only"


def test_what_a_process_died_in_is_recorded_and_passed_over(tmp_path, standing_in, monkeypatch):
    session = Session(state_of(tmp_path), standing_in)
    item = session.pending()[0]
    assert not session.interrupted()

    def die(self: Session, *_: Any) -> Any:
        raise SystemExit(9)

    monkeypatch.setattr(Session, "perform", die)
    with pytest.raises(SystemExit):
        session.turn(item)
    assert session.interrupted() and not session.interrupted()
    assert session.load(item)["reason"] == "the process died in it"
    assert item not in session.pending()
    with pytest.raises(SystemExit):
        session.turn(item)
    standing_in.seconds += item.limit_s
    assert session.interrupted() and session.load(item)["status"] == "timeout"


def test_tuning_leaves_older_figures_to_be_measured_again(tmp_path, standing_in, monkeypatch):
    """Also where tuning was cut short: its table holds what it had found."""
    session = Session(state_of(tmp_path), standing_in)
    by_name = {item.name: item for item in session.plan}
    here = "networks/fassd_net/1x64x64/float32"
    ours, library = by_name[f"{here}/ours"], by_name[f"{here}/library"]
    for item in (ours, library):
        session.turn(item)
    monkeypatch.setattr(Session, "perform", lambda *_: {"status": "timeout", "reason": "killed"})
    session.turn(by_name["tune/fassd_net/1x64x64/float32"])
    assert session.load(ours) is None and session.load(library) is not None


def test_a_damaged_record_is_measured_again(tmp_path, standing_in):
    session = Session(state_of(tmp_path), standing_in)
    item = session.plan[0]
    session.turn(item)
    session.path(item).write_text('{"status": "do')
    assert session.load(item) is None


def test_a_change_of_the_sources_makes_a_record_old(tmp_path, standing_in, monkeypatch):
    session = Session(state_of(tmp_path), standing_in)
    item = session.plan[1]
    session.turn(item)
    assert session.load(item) is not None
    monkeypatch.setattr("benchmarks.session.digest", lambda paths: "changed")
    assert Session(state_of(tmp_path), standing_in).load(item) is None


def test_writing_is_atomic(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_text(target, "new")
    assert target.read_text() == "old"


def test_numbers_that_json_lacks_are_refused(tmp_path):
    session = Session(state_of(tmp_path))
    with pytest.raises(ValueError):
        session.save(session.plan[0], {"ms": float("nan")})


def test_an_error_becomes_a_record(tmp_path, monkeypatch):
    run = Session(state_of(tmp_path), Clock())

    def broken(**_: Any) -> dict[str, Any]:
        raise ValueError("two\nlines")

    monkeypatch.setitem(session.TASKS, "environment", broken)
    record = run.turn(run.plan[0])
    assert (record["status"], record["reason"]) == ("failed", "ValueError: two")
    monkeypatch.setitem(session.TASKS, "environment", lambda **_: {"ms": float("inf")})
    assert run.turn(run.plan[0])["status"] == "failed"


# --- the conformance suite ------------------------------------------------------------------------


SUITE = """
import time, pytest
def pytest_addoption(parser): pass
def test_right(): pass
def test_wrong(): assert 1 == 2, "one is not two"
def test_left_out(): pytest.skip("not here")
@pytest.fixture
def broken(): raise ValueError("broken")
def test_error(broken): pass
"""


def test_the_suite_is_counted(tmp_path):
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE)
    data = conformance(tmp_path, 60.0, str(suite), [])
    assert data["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert data["finished"]
    assert [failure["test"].split("::")[1] for failure in data["failures"]] == [
        "test_wrong",
        "test_error",
    ]
    assert "one is not two" in data["failures"][0]["message"]


def test_a_suite_that_crashes_has_counted_what_it_did(tmp_path):
    suite = tmp_path / "test_crash.py"
    suite.write_text("import os\ndef test_a(): pass\ndef test_b(): os._exit(77)\n")
    data = conformance(tmp_path, 60.0, str(suite), [])
    assert data["counts"] == {"passed": 1} and not data["finished"]
    record = judged(data)
    assert record["status"] == "failed" and "code 77" in record["reason"]


def test_a_suite_that_takes_too_long_is_cut_between_two_tests(tmp_path):
    suite = tmp_path / "test_slow.py"
    suite.write_text("import time\ndef test_a(): time.sleep(6)\ndef test_b(): pass\n")
    # Six seconds, in which a busy machine starts pytest, too, and ten to come to an end.
    data = conformance(tmp_path, 16.0, str(suite), [])
    assert data["counts"].get("passed", 0) < 2 and "crash" not in data
    assert judged(data)["reason"] == "stopped after 1 tests"


def test_a_suite_without_tests_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no test was run"):
        conformance(tmp_path, 60.0, str(tmp_path / "nothing.py"), [])


# --- the command ----------------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--device", "cpu", "--quick"]
    command += ["--output", str(folder / "out"), "--work", str(folder / "work"), *arguments]
    # A worker of xdist says so in its environment.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=inherited
    )


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 2
    out = capsys.readouterr().out
    assert out.startswith("No NVIDIA GPU is seen") and out.count("\n") == 1


def test_a_cpu_is_only_rehearsed(capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--device", "cpu"])
    assert "needs --quick" in capsys.readouterr().err


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    """The folder of a whole run in miniature."""
    folder = tmp_path_factory.mktemp("rehearsal")
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (output,) = (folder / "out").iterdir()
    return output


@pytest.mark.xdist_group("rehearsal")
def test_a_rehearsal_runs_every_part(rehearsal):
    report = json.loads((rehearsal / "report.json").read_text())
    statuses = {item["name"]: item["status"] for item in report["items"]}
    assert set(statuses.values()) <= {"done", "unavailable"}, statuses
    measured = [item["data"] for item in report["items"] if "case" in item and "data" in item]
    forms = [f for data in measured for f in data["candidates"] if "timing" in f]
    ours = {"native", "native-dependent", "auto"}
    assert {f["name"] for f in forms} >= {"eager", "channels_last", "compile"} | ours
    assert all(f["match"] and f["timing"]["ms"] > 0 for f in forms)
    unavailable = {
        f["name"]: f["reason"]
        for data in measured
        for f in data["candidates"]
        if f["status"] == "unavailable"
    }
    assert set(unavailable) == {"cudnn-relu", "triton", "triton-graph"}
    assert unavailable["triton"].startswith("backend triton")
    network = "fassd_net/1x64x64/float32"
    for part in ("conformance/cuda", "conformance/triton", "smoke/triton", "sanitizer/memcheck"):
        assert statuses[part] == "unavailable"
    # Nothing in the kernels sets the carve-out yet.
    for part in (f"networks/{network}/carve-out", f"choices/{network}"):
        assert statuses[part] == "unavailable"
    for part in ("profile/cpu/fassd_net", "counters/fassd_net"):
        assert statuses[part] == "unavailable"
    for part in ("runner/fassd_net", f"networks/{network}/dependent", "smoke/cpu"):
        assert statuses[part] == "done"
    page = (rehearsal / "report.md").read_text()
    assert "A rehearsal in miniature" in page and "### MDA(63, 2)" in page
    assert (rehearsal / "report.png").read_bytes().startswith(b"\x89PNG")
    # As much as can be carried home.
    names = {"report.json", "report.md", "report.png", "report.tar.gz"}
    assert {path.name for path in rehearsal.iterdir()} == names
    with tarfile.open(rehearsal / "report.tar.gz") as archive:
        folders = {name.partition("/")[0] for name in archive.getnames()}
    assert folders == {"parts", "logs", "configs"}


@pytest.mark.xdist_group("rehearsal")
def test_a_second_run_takes_up_the_first(rehearsal):
    folder = rehearsal.parents[1]
    (parts,) = (folder / "work").glob("*/parts")
    before = {path: path.read_text() for path in parts.iterdir()}
    victim = parts / "ceilings.json"
    victim.unlink()
    done = run(folder, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path: path.read_text() for path in parts.iterdir()}
    assert {path for path in after if after[path] != before[path]} == {victim}


@pytest.mark.xdist_group("rehearsal")
def test_the_page_can_be_written_again(rehearsal):
    page = (rehearsal / "report.md").read_text()
    for name in ("report.md", "report.png"):
        (rehearsal / name).unlink()
    assert gpu_report.main(["--from", str(rehearsal / "report.json")]) == 0
    assert (rehearsal / "report.md").read_text() == page
    assert (rehearsal / "report.png").exists()


def test_a_process_that_dies_loses_its_item_alone(tmp_path, monkeypatch):
    """pytest is a stand-in that measures two items, and dies in the third the first time."""
    session = Session(state_of(tmp_path, started=time.time()))
    died: list[str] = []

    def run_pytest(command: list[str], log: None, limit_s: float, environment: Any) -> int:
        child = Session(json.loads(environment["FASSD_GPU_REPORT"]))
        for index, item in enumerate(child.pending()):
            if index == 2 and not died:
                died.append(item.name)
                running = {"name": item.name, "begun": time.time(), "limit_s": 60.0}
                (child.work / "running.json").write_text(json.dumps(running))
                return -9
            child.save(item, {"status": "unavailable", "reason": "a stand-in"})
        return 0

    monkeypatch.setattr(gpu_report, "run_logged", run_pytest)
    gpu_report.supervise(session)
    statuses = statuses_of(tmp_path)
    assert statuses.pop(died[0]) == "failed" and set(statuses.values()) == {"unavailable"}


def test_nothing_is_started_without_time(tmp_path, monkeypatch):
    session = Session(state_of(tmp_path, started=time.time(), budget_s=0.5))
    monkeypatch.setattr(gpu_report, "run_logged", None)
    gpu_report.supervise(session)
    session.publish()
    assert set(statuses_of(tmp_path).values()) == {"not run"}


def test_the_kernels_are_built_for_the_card_on_all_cores(tmp_path, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(session, "run_logged", lambda *given: calls.append(given) or 0)
    assert session.build(tmp_path, 60.0, "9.0")["architecture"] == "9.0"
    ((command, log, limit_s, environment),) = calls
    assert command[1:] == ["setup.py", "build_ext", "--inplace"] and limit_s == 60.0
    wanted = {"FASSD_KERNELS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert environment == {**wanted, "MAX_JOBS": str(os.cpu_count())} and log.name == "build.log"
    monkeypatch.setattr(session, "run_logged", lambda *_: 1)
    with pytest.raises(RuntimeError, match="ended with code 1"):
        session.build(tmp_path, 60.0, "9.0")


WITHOUT = """
import sys
plugins = ("pytest_timeout", "pytest_reportlog", "pytest_benchmark", "xdist")
for name in (*plugins, "matplotlib", "adjustText", "pydantic", "platformdirs"):
    sys.modules[name] = None
import benchmarks.gpu_report, benchmarks.session
"""


def test_it_runs_without_the_plugins():
    """On a bare machine they may be missing, as may what only pages and commands want."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
