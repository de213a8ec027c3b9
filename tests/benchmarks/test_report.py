"""The GPU report's page and problems, from records made by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmarks import number
from benchmarks.report import Row, problems, render

PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
# 4 MB at 4 TB/s: 1 microsecond. 1.6 GFLOP at 800 TFLOP/s: 2 microseconds.
WORK = {
    "activation_bytes": 3_000_000,
    "weight_bytes": 1_000_000,
    "operations": 1_600_000_000,
    "arithmetic": "float16",
}


def timing(ms: float) -> dict[str, Any]:
    return {"median_s": 1e-3 * ms, "spread_s": 1e-5 * ms, "n": 15, "method": "graph"}


CEILINGS = {
    "copy_bytes": 2 << 30,
    "bytes_per_s": 4e12,
    "matrix_side": 8192,
    "operations_per_s": {"float16": 8e14},
}


def form(name: str, ms: float, match: bool = True, **more: Any) -> dict[str, Any]:
    error = 4e-4 if match else None
    found = {"timing": timing(ms), "rel_error": error, "match": match}
    return {"name": name, "status": "done", **found, **more}


def case_item(group: str, *forms: Any, part: str = "modules", **place: Any) -> dict[str, Any]:
    subject = {"modules": "DAPF(224)", "networks": "fassd_net"}[part]
    item = {"name": f"{part}/{group}", "part": part}
    if not forms:
        return {**item, "status": "not run", "reason": "out of time"}
    case = {"part": part, "subject": subject, **PLACE, **place}
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
    folded = cells(section(page, "Modules"), "DAPF(224)", *HERE, FOLDED)
    # ms, pictures/s, spread, n, speed-up, floor
    expected = ["0.01000", "100,000", "1.0%", "15", "2.00x", "0.002000"]
    # error, match, method
    assert folded[4:] == [*expected, "4.0e-04", "yes", "graph"]
    network = cells(section(page, "Networks"), "fassd_net", *HERE, FOLDED)
    assert network[4:8] == ["1.000", "1,000", "1.0%", "15"]


def test_a_mismatch_has_no_speedup(report):
    row = cells(render(report), "DAPF(224)", *HERE, "torch.compile")
    assert row[8] == "-"
    assert row[10:12] == ["not finite", "**NO**"]


def test_what_has_no_figure_says_why(report):
    page = render(report)
    modules = section(page, "Modules")
    assert "* ours, Triton: not implemented yet: no dapf (DAPF(224))" in modules
    assert "* not run: out of time (1): `modules/max-autotune`" in page


def test_ceilings_and_conformance_are_shown(report):
    page = render(report)
    assert cells(page, "copy of 2,048 MiB, read + written")[1:] == ["4,000 GB/s"]
    assert cells(page, "matrix product, float16, side 8192")[1:] == ["800 TFLOP/s"]
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


# --- figures --------------------------------------------------------------------------------------


def test_floor_is_the_larger_of_bytes_and_operations():
    assert Row(WORK, {}, CEILINGS).floor_ms == pytest.approx(0.002)
    assert Row({**WORK, "operations": 0}, {}, CEILINGS).floor_ms == pytest.approx(0.001)
    assert Row(WORK, {}).floor_ms is None


def test_speedup_needs_eager_and_a_match():
    ours, eager = form("native", 1.0), form("eager", 3.0)
    assert Row({"candidates": [eager, ours]}, ours).speedup == pytest.approx(3.0)
    wrong = form("eager", 3.0, match=False)
    assert Row({"candidates": [wrong, ours]}, ours).speedup is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0123456, "0.01235"), (1.5, "1.500"), (1234.5, "1234"), (0.0, "0")],
)
def test_number(value, text):
    assert number(value) == text
