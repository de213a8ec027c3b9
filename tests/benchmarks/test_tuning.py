"""Tuning as a part of the GPU report, and the targets that the tuned kernels are held to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import tools
from benchmarks.report import problems, render
from benchmarks.rows import draw
from benchmarks.targets import TARGETS, Target, Throughput, goals_of
from benchmarks.tools import CONFIGS, tune

PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}


def run_like(code: int, table: str | None, calls: list[Any]) -> Any:
    """A stand-in for the process: notes the call, writes a table, ends with a code."""

    def run(command: list[str], log: Path, limit_s: float, environment: dict[str, str]) -> int:
        calls.append((command, limit_s, environment))
        log.write_text("compiling\nthe last line\n")
        if table:
            (Path(environment[CONFIGS]) / "nvidia-h200.json").write_text(table)
        return code

    return run


def test_tuning_gets_its_budget_and_folder(tmp_path, monkeypatch):
    calls: list[Any] = []
    table = json.dumps({"configurations": {"a": {}, "b": {}}})
    monkeypatch.setattr(tools, "run_logged", run_like(0, table, calls))
    data = tune(tmp_path, tmp_path, 100.0, model="fassd_net", **PLACE)
    assert data["tables"] == {"nvidia-h200.json": 2}
    ((command, limit_s, environment),) = calls
    options = "--model fassd_net --size 1024x2048 --dtype float16 --batch 1 --budget 70"
    assert " ".join(command).endswith(f"fassd_kernels.tune {options}")
    assert limit_s == 100.0 and environment == {CONFIGS: str(tmp_path)}


def test_backends_have_a_table_of_their_own(tmp_path, monkeypatch):
    calls: list[Any] = []

    def run(command: list[str], log: Path, *_: Any) -> int:
        calls.append((command, log.name))
        (tmp_path / "backends").mkdir()
        table = {"median_us": {"conv_act 1x3x8x8": {"cuda": 1.0, "triton": None}}}
        (tmp_path / "backends" / "nvidia-h200.json").write_text(json.dumps(table))
        return 0

    monkeypatch.setattr(tools, "run_logged", run)
    data = tune(tmp_path, tmp_path, 100.0, model="fassd_net", backends=True, **PLACE)
    assert data["tables"] == {"backends/nvidia-h200.json": 1}
    ((command, log),) = calls
    assert command[-1] == "--backends" and log == "choices.log"


@pytest.mark.parametrize(("code", "message"), [(3, "code 3:\ncompiling"), (0, "no table")])
def test_tuning_that_fails_says_how_its_log_ends(tmp_path, monkeypatch, code, message):
    monkeypatch.setattr(tools, "run_logged", run_like(code, None, []))
    with pytest.raises(RuntimeError, match=message) as caught:
        tune(tmp_path, tmp_path, 100.0, model="fassd_net", **PLACE)
    assert "the last line" in str(caught.value)


# --- targets --------------------------------------------------------------------------------------


def form(name: str, ms: float, match: bool = True) -> dict[str, Any]:
    timing = {"ms": ms, "q1_ms": ms, "q3_ms": ms, "n": 15, "method": "graph"}
    return {"name": name, "status": "done", "timing": timing, "plain": timing,
            "rel_error": 1e-4, "match": match}  # fmt: skip


def item(part: str, subject: str, group: str, *forms: dict[str, Any]) -> dict[str, Any]:
    case = {"part": part, "subject": subject, **PLACE}
    return {
        "name": f"{part}/{subject}/{group}",
        "part": part,
        "case": {**case, "group": group},
        "status": "done",
        "data": {**case, "arithmetic": "float16", "candidates": list(forms)},
    }


def report_of(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": "NVIDIA H200",
        "mode": "full",
        "commit": "abc",
        "date": "2026-01-01T00:00:00+00:00",
        "budget_s": 540.0,
        "elapsed_s": 500.0,
        "items": list(items),
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return report_of(
        item("modules", "DAPF(224)", "ours", form("eager", 0.4), form("triton", 0.02)),
        # The clock has slowed down since: eager takes twice as long.
        item("modules", "DAPF(224)", "compile", form("eager", 0.8), form("compile", 0.1)),
        item("networks", "fassd_net", "ours", form("eager", 8.0), form("triton", 1.25)),
    )


def test_a_target_is_measured_in_multiples_of_eager(report):
    over_compile = Target("modules", "DAPF(224)", "compile", 2.0, "triton")
    assert over_compile.figure(report) == pytest.approx(20 / 8)
    assert over_compile.is_met(2.5) and not over_compile.is_met(1.9)
    within = Target("networks", "fassd_net", None, 1.0, "triton")
    assert within.figure(report) == 1.25 and not within.is_met(1.25) and within.is_met(0.9)


def test_a_target_without_its_figures_is_open(report):
    assert Target("networks", "fassd_net", "max-autotune", 1.3, "triton").figure(report) is None
    wrong = item("networks", "fassd_net", "ours", form("eager", 8.0), form("triton", 0.5, False))
    assert Target("networks", "fassd_net", None, 1.0, "triton").figure(report_of(wrong)) is None
    elsewhere = item("networks", "fassd_net", "ours", form("eager", 8.0), form("triton", 0.5))
    elsewhere["case"]["batch"] = 8
    assert Target("networks", "fassd_net", None, 1.0, "triton").figure(report_of(elsewhere)) is None


def test_a_batch_is_held_to_single_pictures(report):
    target = Throughput("networks", "fassd_net", None, 1.3)
    single = item("networks", "fassd_net", "native", form("eager", 8.0), form("native", 0.5))
    assert target.figure(report_of(single)) is None
    crowd = item("networks", "fassd_net", "native", form("eager", 60.0), form("native", 2.5))
    crowd["case"]["batch"] = 8
    figure = target.figure(report_of(single, crowd))
    assert figure == pytest.approx((8 / 2.5) / (1 / 0.5))
    assert target.is_met(figure) and not target.is_met(1.2)
    crowd["data"]["candidates"][1]["match"] = False
    assert target.figure(report_of(single, crowd)) is None


def test_the_page_lists_every_target(report):
    report["predicted"] = [
        {"network": "fassd_net", "unit": "ms", "figure": 0.463},
        {"network": "fassd_net", "unit": "x", "figure": 1.633},
    ]
    report["items"].append(item("networks", "fassd_net", "native", form("native", 0.4)))
    page = render(report)
    assert page.index("## Targets") < page.index("## Environment")
    section = page.split("## Targets")[1].split("## ")[0]
    assert section.count("\n| ") == 1 + len(TARGETS)  # and the header
    triton, cuda = "ours, Triton", "ours, C++/CUDA"
    compiled = "at least 2x over torch.compile"
    for row in (
        f"DAPF(224) | {triton} | {compiled} | 2.50x | yes | not known",
        f"fassd_net | {triton} | at most 1 ms | 1.250 ms | **no** | not known",
        f"MDA(63, 2) | {cuda} | {compiled} | - | - | not known",
        f"fassd_net | {cuda} | at most 0.5 ms | 0.400 ms | yes | 0.463 ms",
        f"fassd_net | {cuda} | at batch 8 at least 1.3x the frames/s of batch 1 | - | - | 1.63x",
    ):
        assert f"| {row} |" in section


def prediction(network: str, batch: int, seconds: float, **more: Any) -> Any:
    known = {**PLACE, "batch": batch, "network": network, "output": "labels", **more}
    device = SimpleNamespace(name=known.pop("gpu", "NVIDIA H200"))
    rate = batch / seconds
    return SimpleNamespace(device=device, predicted=seconds, frames_per_second=rate, **known)


def test_goals_are_for_the_h200_at_their_size():
    single = prediction("fassd_net", 1, 0.4e-3)
    (goal,) = goals_of([single])
    assert (goal["limit"], goal["unit"], goal["is_met"]) == (0.5, "ms", True)
    assert goal["figure"] == pytest.approx(0.4) and goal["described"] == "0.400 ms"
    assert not goals_of([prediction("fassd_net_l2", 1, 0.3e-3)])[0]["is_met"]
    assert goals_of([prediction("fassd_net", 1, 0.4e-3, gpu="NVIDIA L4")]) == []
    assert goals_of([prediction("fassd_net", 1, 0.4e-3, dtype="float32")]) == []
    assert goals_of([prediction("fassd_net", 1, 0.4e-3, output="logits")]) == []
    assert goals_of([prediction("baseline", 1, 0.4e-3)]) == []
    assert goals_of([prediction("fassd_net", 1, 0.4e-3, width=1024)]) == []


def test_goal_of_a_batch():
    """Eight frames in twice the time of one are four times the frames per second."""
    batch = prediction("fassd_net", 8, 0.8e-3)
    assert goals_of([batch]) == []
    _, goal = goals_of([prediction("fassd_net", 1, 0.4e-3), batch])
    assert goal["figure"] == pytest.approx(4) and goal["limit"] == 1.3 and goal["is_met"]
    assert (goal["unit"], goal["described"]) == ("x", "4.00x")


# --- launches and tuning on the page --------------------------------------------------------------


def test_launches_that_are_not_ours_are_a_problem(report):
    data = {"network": "fassd_net", "backend": "triton", "dtype": "float16"}
    data = {**data, "planned": 71, "seen": 71, "foreign": {}}
    profile = {"name": "profile", "part": "profile", "status": "done", "data": data}
    report["items"].append(profile)
    assert problems(report) == []
    assert "is 71 launches, 71 of our kernels were planned; others: none" in render(report)
    profile["data"] = {**data, "seen": 72, "foreign": {"CatArrayBatchedCopy": 1}}
    (problem,) = problems(report)
    assert problem.endswith("others: 1 of CatArrayBatchedCopy")


def test_tables_are_listed(report):
    data = {"command": "fassd_kernels.tune --batch 1", "tables": {"nvidia-h200.json": 68}}
    report["items"].append({"name": "tune/a", "part": "tune", "status": "done", "data": data})
    assert "| `fassd_kernels.tune --batch 1` | nvidia-h200.json | 68 |" in render(report)


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_is_drawn_where_there_is_a_figure(report, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.png"
    assert draw(path, report) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw(tmp_path / "empty.png", report_of()) is None
    assert not (tmp_path / "empty.png").exists()
