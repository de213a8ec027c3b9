"""The GPU report's page, problems, targets and picture, from records made by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmarks.predicted import BATCH, TARGETS, Target, measured_figure, predicted_figure
from benchmarks.report import draw, problems, render
from benchmarks.rows import choice_result, floor_ms, launch_floors_ms, number, speedup

PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
# 4 MB at 4 TB/s: 1 microsecond. 1.6 GFLOP at 800 TFLOP/s: 2 microseconds.
WORK = {
    "activation_bytes": 3_000_000,
    "weight_bytes": 1_000_000,
    "operations": 1_600_000_000,
    "arithmetic": "float16",
}
# 4 MB in 1 microsecond, and 0.8 GFLOP in 1 microsecond.
LAUNCHES = {"bytes": [4_000_000, 1_000], "operations": [1_000, 800_000_000]}


def timing(ms: float, off: float = 0.01) -> dict[str, Any]:
    return {"ms": ms, "q1_ms": (1 - off) * ms, "q3_ms": (1 + off) * ms, "n": 15, "method": "graph"}


CEILINGS = {
    "copy": {"bytes_per_s": 4e12, "buffer_bytes": 2 << 30, "timing": timing(1.0, 0.005)},
    "matrix": {"float16": {"operations_per_s": 8e14, "side": 8192, "timing": timing(1.4, 0.0025)}},
}


def form(name: str, ms: float, match: bool = True, **more: Any) -> dict[str, Any]:
    error = 4e-4 if match else None
    found = {"timing": timing(ms), "plain": timing(3 * ms), "rel_error": error, "match": match}
    return {"name": name, "status": "done", **found, **more}


def case_item(group: str, *forms: Any, part: str = "modules", **place: Any) -> dict[str, Any]:
    subject = {"modules": "DAPF(224)", "networks": "fassd_net", "operators": "normalize"}[part]
    case = {"part": part, "subject": subject, **PLACE, **place}
    item = {"name": f"{part}/{group}", "part": part, "case": {**case, "group": group}}
    if not forms:
        return {**item, "status": "not run", "reason": "out of time"}
    return {**item, "status": "done", "data": {**case, **WORK, "candidates": list(forms)}}


def done(name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "part": name.partition("/")[0], "status": "done", "data": data}


def report_of(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "device": "NVIDIA H200",
        "mode": "full",
        "commit": "abc",
        "date": "2026-01-01T00:00:00+00:00",
        "budget_s": 540.0,
        "elapsed_s": 500.0,
        "items": list(items),
        **more,
    }


OURS = form("triton", 0.004, launches=LAUNCHES)
SUITE = {
    "suite": "tests/conformance",
    "options": ["--device=cuda"],
    "counts": {"passed": 98, "failed": 2},
    "finished": True,
    "failures": [{"test": "test_mda.py::test[a|b]", "message": "off by\none"}],
}


@pytest.fixture
def report() -> dict[str, Any]:
    missing = {"name": "triton", "status": "unavailable", "reason": "not implemented yet: no dapf"}
    return report_of(
        done("ceilings", CEILINGS),
        done("conformance/triton", SUITE),
        case_item("library", form("eager", 0.020), form("channels_last", 0.010)),
        case_item("ours", {"name": "eager", "status": "done"}, missing),
        case_item("compile", form("eager", 0.021), form("compile", 0.005, match=False)),
        case_item("max-autotune"),
        case_item("library", form("eager", 2.0), form("channels_last", 1.0), part="networks"),
        case_item("ours", form("eager", 0.02), OURS, part="operators"),
    )


# --- the page -------------------------------------------------------------------------------------


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(text: str, *start: str) -> list[str]:
    """The cells of the table row that begins with `start`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(start)} |")]
    assert len(lines) == 1, lines
    return lines[0].strip("| ").split(" | ")


HERE = ("1x1024x2048", "float16")
FOLDED = "channels_last, BN folded, cudnn.benchmark"


def test_rows_say_what_was_measured(report):
    page = render(report)
    folded = cells(section(page, "Modules"), *HERE, FOLDED)
    # ms, IQR, n, plain calls, speed-up, floor, of floor
    expected = ["0.01000", "2.0%", "15", "0.03000", "2.00x", "0.002000", "20%"]
    # launches, of launch floors, error, match, method
    assert folded[3:] == [*expected, "-", "-", "4.0e-04", "yes", "graph"]
    network = cells(section(page, "Networks"), *HERE, FOLDED)
    assert network[3:8] == ["1.000", "1,000", "2.0%", "15", "3.000"]
    ours = cells(section(page, "Operators"), *HERE, "ours, Triton")
    assert ours[7:12] == ["5.00x", "0.002000", "50%", "2", "50%"]


def test_a_mismatch_has_no_speedup(report):
    row = cells(render(report), *HERE, "torch.compile")
    assert row[7] == "-"
    assert row[12:14] == ["not finite", "**NO**"]


def test_what_has_no_figure_says_why(report):
    page = render(report)
    modules = section(page, "Modules")
    assert cells(modules, *HERE, "ours, Triton")[3] == "not implemented yet: no dapf"
    assert cells(modules, *HERE, "torch.compile max-autotune")[3] == "not run: out of time"
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
    suite = "conformance/triton: 2 tests failed"
    assert problems(report) == [suite]  # a peer's mismatch is not ours
    smoke = {"name": "smoke", "part": "smoke", "status": "failed", "reason": "wrong result"}
    wrong = case_item("ours", form("eager", 1.0), form("triton", 1.0, match=False))
    report["items"] += [smoke, wrong]
    ours = "modules/ours: the result does not match the reference"
    assert problems(report) == [suite, "smoke: wrong result", ours]
    assert ours in section(render(report), "Problems")


def test_the_headline_names_every_commit(report):
    assert "commit abc." in render(report)
    report["items"][0]["commit"] = "older"
    assert "commit abc, other items at older." in render(report)


def test_render_leaves_the_record_alone(report):
    before = copy.deepcopy(report)
    render(report)
    assert report == before


def test_launches_that_are_not_ours_are_a_problem():
    data = {"network": "fassd_net", "backend": "triton", "dtype": "float16", "rows": []}
    profile = done("profile/a", {**data, "planned": 71, "seen": 71, "foreign": {}})
    assert problems(report_of(profile)) == []
    text = "is 71 launches, 71 of our kernels were planned; others: none"
    assert text in render(report_of(profile))
    profile["data"] |= {"seen": 72, "foreign": {"CatArrayBatchedCopy": 1}}
    (problem,) = problems(report_of(profile))
    assert problem.endswith("others: 1 of CatArrayBatchedCopy")


def test_tables_are_listed():
    data = {"command": "fassd_kernels.tune --batch 1", "tables": {"nvidia-h200.json": 68}}
    page = render(report_of(done("tune/a", data)))
    assert "| `fassd_kernels.tune --batch 1` | nvidia-h200.json | 68 |" in page


@pytest.mark.parametrize(
    ("forms", "slower"),
    [
        ((form("native", 0.5), form("triton", 0.6), form("auto", 0.49)), False),
        ((form("native", 0.5), form("triton", 0.6), form("auto", 0.505)), False),
        ((form("native", 0.5), form("triton", 0.6), form("auto", 0.55)), True),
        ((form("native", 0.5), form("triton", 0.4, match=False), form("auto", 0.5)), False),
        ((form("native", 0.5), form("auto", 0.9, match=False)), False),
    ],
)
def test_a_choice_that_loses_to_a_single_backend_is_a_problem(forms, slower):
    item = case_item("choice", *forms, part="networks")
    result = choice_result(item["data"])
    assert bool(result and result[1]) is slower

    def lost(mode: str) -> list[str]:
        return [text for text in problems(report_of(item, mode=mode)) if "for each call" in text]

    assert len(lost("full")) == slower
    assert lost("quick") == []  # figures of a rehearsal mean nothing
    timed = forms[-1]["match"]
    assert ("for each call" in render(report_of(item))) == timed


# --- figures --------------------------------------------------------------------------------------


def test_floor_is_the_larger_of_bytes_and_operations():
    assert floor_ms(WORK, CEILINGS) == pytest.approx(0.002)
    assert floor_ms({**WORK, "operations": 0}, CEILINGS) == pytest.approx(0.001)
    assert floor_ms(WORK, None) is None


def test_the_floor_of_launches_is_the_sum_of_theirs():
    assert launch_floors_ms(OURS, WORK, CEILINGS) == pytest.approx(0.002)
    assert launch_floors_ms(form("eager", 1.0), WORK, CEILINGS) is None
    assert launch_floors_ms(OURS, WORK, None) is None


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


# --- targets --------------------------------------------------------------------------------------


@pytest.fixture
def measured() -> dict[str, Any]:
    return report_of(
        case_item("ours", form("eager", 0.4), form("triton", 0.02)),
        # The clock has slowed down since: eager takes twice as long.
        case_item("compile", form("eager", 0.8), form("compile", 0.1)),
        case_item("ours", form("eager", 8.0), form("triton", 1.25), part="networks"),
    )


def test_a_target_is_measured_in_multiples_of_eager(measured):
    over_compile = Target("DAPF(224)", 2.0, "compile", "triton")
    assert measured_figure(over_compile, measured) == pytest.approx(20 / 8)
    assert over_compile.is_met(2.5) and not over_compile.is_met(1.9)
    within = Target("fassd_net", 1.0, form="triton")
    assert measured_figure(within, measured) == 1.25
    assert not within.is_met(1.25) and within.is_met(0.9)


def test_a_target_without_its_figures_is_open(measured):
    assert measured_figure(Target("fassd_net", 1.3, "max-autotune", "triton"), measured) is None
    target, eager = Target("fassd_net", 1.0, form="triton"), form("eager", 8.0)
    wrong = case_item("ours", eager, form("triton", 0.5, False), part="networks")
    elsewhere = case_item("ours", eager, form("triton", 0.5), part="networks", batch=8)
    for item in (wrong, elsewhere):
        assert measured_figure(target, report_of(item)) is None


def test_a_batch_is_held_to_single_pictures():
    target = Target("fassd_net", 1.3, BATCH)
    eager = form("eager", 8.0)
    single = case_item("native", eager, form("native", 0.5), part="networks")
    crowd = case_item("native", eager, form("native", 2.5), part="networks", batch=8)
    assert measured_figure(target, report_of(single)) is None
    figure = measured_figure(target, report_of(single, crowd))
    assert figure == pytest.approx((8 / 2.5) / (1 / 0.5))
    assert target.is_met(figure) and not target.is_met(1.2)
    crowd["data"]["candidates"][1]["match"] = False
    assert measured_figure(target, report_of(single, crowd)) is None


def prediction(network: str, batch: int, seconds: float, **more: Any) -> dict[str, Any]:
    known = {"gpu": "NVIDIA H200", "dtype": "float16", "output": "labels", "size": [1024, 2048]}
    return {"network": network, "batch": batch, "predicted_s": seconds, **known, **more}


def test_predictions_are_for_the_h200_at_their_size():
    target = Target("fassd_net", 0.5)
    assert predicted_figure(target, [prediction("fassd_net", 1, 0.4e-3)]) == pytest.approx(0.4)
    for other in (
        prediction("fassd_net", 1, 0.4e-3, gpu="NVIDIA L4"),
        prediction("fassd_net", 1, 0.4e-3, dtype="float32"),
        prediction("fassd_net", 1, 0.4e-3, output="logits"),
        prediction("fassd_net", 1, 0.4e-3, size=[1024, 1024]),
        prediction("baseline", 1, 0.4e-3),
    ):
        assert predicted_figure(target, [other]) is None
    of_triton = Target("fassd_net", 1.0, form="triton")
    assert predicted_figure(of_triton, [prediction("fassd_net", 1, 0.4e-3)]) is None


def test_prediction_of_a_batch():
    """Eight frames in twice the time of one are four times the frames per second."""
    target, batch = Target("fassd_net", 1.3, BATCH), prediction("fassd_net", 8, 0.8e-3)
    assert predicted_figure(target, [batch]) is None
    figure = predicted_figure(target, [prediction("fassd_net", 1, 0.4e-3), batch])
    assert figure == pytest.approx(4) and target.is_met(figure)
    assert target.describe(figure) == "4.00x"


def test_the_page_lists_every_target(measured):
    measured["predicted"] = [
        prediction("fassd_net", 1, 0.463e-3),
        prediction("fassd_net", 8, 2.268e-3),
    ]
    measured["items"].append(case_item("native", form("native", 0.4), part="networks"))
    targets = section(render(measured), "Targets")
    assert targets.count("\n| ") == 1 + len(TARGETS)  # and the header
    triton, cuda = "ours, Triton", "ours, C++/CUDA"
    compiled = "at least 2x over torch.compile"
    for row in (
        f"DAPF(224) | {triton} | {compiled} | 2.50x | yes | not known",
        f"fassd_net | {triton} | at most 1 ms | 1.250 ms | **no** | not known",
        f"MDA(63, 2) | {cuda} | {compiled} | - | - | not known",
        f"fassd_net | {cuda} | at most 0.5 ms | 0.400 ms | yes | 0.463 ms",
        f"fassd_net | {cuda} | at batch 8 at least 1.3x the frames/s of batch 1 | - | - | 1.63x",
    ):
        assert f"| {row} |" in targets


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_is_drawn_where_there_is_a_figure(measured, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.png"
    assert draw(path, measured) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw(tmp_path / "empty.png", report_of()) is None
    assert not (tmp_path / "empty.png").exists()
