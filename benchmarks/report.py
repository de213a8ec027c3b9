"""From the record of a report, a plain dictionary, to its Markdown page; pure functions only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import COMPILE, EAGER, FOLDED, MAX_AUTOTUNE, OURS, TITLES

Record = Mapping[str, Any]

FORMS = (EAGER, FOLDED, COMPILE, MAX_AUTOTUNE, OURS)
OPERATOR_FORMS = (EAGER, COMPILE, OURS)
NONE = "-"

METHOD = """\
* **ms** is the median of n samples per call, batch 1, *IQR* their interquartile range as a share of
  it. Method `graph`: replays of a CUDA graph that holds one call per input set; inputs and outputs
  of all sets together exceed the L2 cache 1.5 times (weights stay cached). `events`: plain calls
  between two events, where capture failed. `clock`: plain calls on a CPU. `alone`: not in turns
  with eager, for want of memory. Warm-up is not counted.
* **plain calls** is the same code called in a loop from Python, without a graph: what one gets
  without further effort, often the host's time and not the device's.
* **speed-up** is against eager PyTorch (NCHW) measured in turns in the same process; it is not
  given where one of the two results does not match.
* **error** is ||out - reference|| / ||reference||, the larger of the first and last input set, on
  outputs poisoned with NaN before the replay. The reference is eager PyTorch in float64, for
  networks in float32 without tf32. **match**: within the tolerance in the JSON file.
* **floor** is the larger of bytes (input + output + weights, once) over the measured copy
  bandwidth, and 2 x multiply-accumulates (taps in the padding included) over the measured matrix
  rate of the arithmetic; for float32 that is tf32 where cuDNN may use it (PyTorch's default).
* `torch.compile` gets the channels_last model with folded batch norms and `dynamic=False`.
  max-autotune runs with Inductor's own CUDA graphs off and is captured like everything else, which
  spares it the copy into Inductor's graph.
* Several pictures in flight, end-to-end copies and post-processing are not part of these figures.
"""


def render(report: Record) -> str:
    """The Markdown page of a report."""
    ceilings = part_data(report, "ceilings")
    sections = [
        f"# {report['device']}\n",
        headline(report),
        problems_section(report),
        environment_section(part_data(report, "environment")),
        ceilings_section(ceilings),
        conformance_section(report),
        cases_section("Operators", report, "operators", OPERATOR_FORMS, operator_columns(ceilings)),
        cases_section("Modules", report, "modules", FORMS, module_columns(ceilings)),
        cases_section("Networks", report, "networks", FORMS, network_columns()),
        missing_section(report),
        f"## How it was measured\n\n{METHOD}",
    ]
    return "\n".join(section for section in sections if section)


def problems(report: Record) -> list[str]:
    """What makes a run a failure: a part that crashed, failed tests, wrong or failing kernels."""
    found = []
    for item in report["items"]:
        if item["status"] == "failed":
            found.append(f"{item['name']}: {item['reason']}")
        data = item.get("data") or {}
        counts = data.get("counts", {})
        failing = counts.get("failed", 0) + counts.get("error", 0)
        if failing:
            found.append(f"{item['name']}: {failing} tests failed")
        for form in data.get("candidates", ()):
            if form["name"] == OURS and (form["status"] == "failed" or form.get("match") is False):
                reason = form.get("reason") or "the result does not match the reference"
                found.append(f"{item['name']}: {reason}")
    return found


# --- figures --------------------------------------------------------------------------------------


def speedup(form: Record, eager: Record | None) -> float | None:
    """How many times faster than eager; None where one is not measured or does not match."""
    if eager is None or not (form.get("match") and eager.get("match")):
        return None
    return eager["timing"]["ms"] / form["timing"]["ms"]


def floor_ms(case: Record, ceilings: Record | None) -> float | None:
    """The time that the measured ceilings allow, in milliseconds."""
    if not ceilings or "operations" not in case:
        return None
    moving = (case["activation_bytes"] + case["weight_bytes"]) / ceilings["copy"]["bytes_per_s"]
    rate = ceilings["matrix"].get(case["arithmetic"])
    computing = case["operations"] / rate["operations_per_s"] if rate else 0.0
    return 1e3 * max(moving, computing)


def part_data(report: Record, name: str) -> Record | None:
    return next((i.get("data") for i in report["items"] if i["name"] == name), None)


# --- tables of cases ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One form of one case.

    Attributes:
        case: subject, height, width, dtype.
        form: the candidate's record, or ``{"name": ..., "reason": ...}`` where there is none.
        data: the record of the item that measured it; empty where there is none.
    """

    case: Record
    form: Record
    data: Record

    @property
    def eager(self) -> Record | None:
        return next((f for f in self.data["candidates"] if f["name"] == EAGER), None)

    @property
    def picture(self) -> str:
        return f"{self.case['height']}x{self.case['width']}"


Column = tuple[str, Callable[[Row], str]]


def rows_by_subject(report: Record, part: str, forms: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each subject of which something was timed, case by case in the report's order."""
    grouped: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for item in report["items"]:
        if item["part"] == part:
            case = item["case"]
            key = (case["subject"], case["height"], case["width"], case["dtype"])
            grouped[key].append(item)
    table: dict[str, list[Row]] = defaultdict(list)
    for (subject, *_), items in grouped.items():
        rows = list(case_rows(items, forms))
        if any("timing" in row.form for row in rows):
            table[subject].extend(rows)
    return table


def case_rows(items: Sequence[Record], forms: Sequence[str]) -> Iterator[Row]:
    """One row per form that was measured or meant to be; eager from the first that measured it."""
    found: dict[str, Row] = {}
    for item in items:
        data = item.get("data") or {}
        for form in data.get("candidates", ()):
            row = Row(item["case"], form, data)
            if form["name"] not in found or "timing" not in found[form["name"]].form:
                found[form["name"]] = row
        if not data:
            name = FORM_OF_GROUP[item["case"]["group"]]
            found.setdefault(name, Row(item["case"], {"name": name, **why(item)}, data))
    return (found[name] for name in forms if name in found)


FORM_OF_GROUP = {"library": FOLDED, "ours": OURS, "compile": COMPILE, "max-autotune": MAX_AUTOTUNE}
"""What a group measures beside eager."""


def why(item: Record) -> dict[str, str]:
    """The reason of an item without data, on one line."""
    reason = (item.get("reason") or "").strip().splitlines()
    return {"reason": ": ".join([item["status"], *reason[:1]])}


def form_columns() -> list[Column]:
    """The columns that every table of cases has."""
    return [
        ("picture", lambda row: row.picture),
        ("dtype", lambda row: row.case["dtype"]),
        ("form", lambda row: TITLES[row.form["name"]]),
        ("ms", lambda row: number(row.form["timing"]["ms"])),
        ("IQR", lambda row: spread(row.form["timing"])),
        ("n", lambda row: str(row.form["timing"]["n"])),
        ("plain calls, ms", lambda row: number(row.form["plain"]["ms"])),
        ("speed-up", lambda row: times(speedup(row.form, row.eager))),
    ]


def check_columns() -> list[Column]:
    return [
        ("error", lambda row: error(row.form.get("rel_error"))),
        ("match", lambda row: "yes" if row.form.get("match") else "**NO**"),
        ("method", measured_how),
    ]


def measured_how(row: Row) -> str:
    method = row.form["timing"]["method"]
    return method if row.data.get("interleaved", True) else f"{method}, alone"


def module_columns(ceilings: Record | None) -> list[Column]:
    def floor(row: Row) -> float | None:
        return floor_ms(row.data, ceilings)

    return [
        *form_columns(),
        ("floor, ms", lambda row: number(floor(row))),
        ("of floor", lambda row: share(floor(row), row.form["timing"]["ms"])),
        *check_columns(),
    ]


def network_columns() -> list[Column]:
    columns = form_columns()
    columns.insert(4, ("frames/s", lambda row: f"{1e3 / row.form['timing']['ms']:,.0f}"))
    return [*columns, *check_columns()]


def operator_columns(ceilings: Record | None) -> list[Column]:
    def bandwidth(row: Row) -> float:
        return row.data["activation_bytes"] / (row.form["timing"]["ms"] * 1e-3)

    def of_copy(row: Row) -> str:
        return share(bandwidth(row), ceilings["copy"]["bytes_per_s"]) if ceilings else NONE

    return [
        *form_columns(),
        ("GB/s", lambda row: f"{bandwidth(row) / 1e9:,.0f}"),
        ("of copy", of_copy),
        *check_columns(),
    ]


def cases_section(
    title: str, report: Record, part: str, forms: Sequence[str], columns: Sequence[Column]
) -> str:
    subjects = rows_by_subject(report, part, forms)
    if not subjects:
        return f"## {title}\n\nNothing was measured.\n"
    sections = [f"## {title}\n"]
    for subject, rows in subjects.items():
        sections.append(f"### {subject}\n")
        cells = [case_cells(row, columns) for row in rows]
        sections.append(table([name for name, _ in columns], cells))
    return "\n".join(sections)


def case_cells(row: Row, columns: Sequence[Column]) -> list[str]:
    """The cells of a row; where there is no time, the reason stands in the fourth."""
    if "timing" in row.form:
        return [cell(row) for _, cell in columns]
    cells = [cell(row) for _, cell in columns[:3]]
    return [*cells, escape(row.form.get("reason", "")), *[NONE] * (len(columns) - 4)]


# --- the other sections ---------------------------------------------------------------------------


def headline(report: Record) -> str:
    statuses = [item["status"] for item in report["items"]]
    done = sum(status in ("done", "unavailable") for status in statuses)
    rehearsal = (
        "**A rehearsal in miniature: no figure here means anything.** "
        if report["mode"] == "quick"
        else ""
    )
    commits = {item.get("commit", report["commit"]) for item in report["items"]}
    others = "".join(f", other items at {name}" for name in sorted(commits - {report["commit"]}))
    return (
        f"{rehearsal}{done} of {len(statuses)} items done. Last run: {report['date']}, "
        f"{report['elapsed_s']:.0f} s of a budget of {report['budget_s']:.0f} s, "
        f"commit {report['commit']}{others}.\n"
    )


def problems_section(report: Record) -> str:
    found = problems(report)
    if not found:
        return ""
    return "## Problems\n\n" + "".join(f"* {escape(problem)}\n" for problem in found)


def environment_section(data: Record | None) -> str:
    if not data:
        return "## Environment\n\nNot recorded.\n"
    rows = [[name, escape(str(value))] for name, value in data["facts"].items()]
    backends = [
        [b["name"], "available" if b["available"] else escape(b["reason"])]
        for b in data["backends"]
    ]
    return "\n".join(
        [
            "## Environment\n",
            table(["what", "value"], rows),
            table(["backend", "state"], backends),
        ]
    )


def ceilings_section(data: Record | None) -> str:
    if not data:
        return "## Ceilings\n\nNot measured.\n"
    copy = data["copy"]
    rows = [
        [
            f"copy of {copy['buffer_bytes'] / 2**20:,.0f} MiB, read + written",
            f"{copy['bytes_per_s'] / 1e9:,.0f} GB/s",
            spread(copy["timing"]),
            str(copy["timing"]["n"]),
        ]
    ]
    for name, rate in data["matrix"].items():
        figure = f"{rate['operations_per_s'] / 1e12:,.3g} TFLOP/s"
        what = f"matrix product, {name}, side {rate['side']}"
        rows.append([what, figure, spread(rate["timing"]), str(rate["timing"]["n"])])
    return "## Ceilings\n\n" + table(["what", "measured", "IQR", "n"], rows)


def conformance_section(report: Record) -> str:
    lines = ["## Conformance\n"]
    smoke = part_data(report, "smoke")
    if smoke:
        checks = [
            [c["check"], c["rel_error"], "yes" if c["match"] else "**NO**"] for c in smoke["checks"]
        ]
        lines.append(table(["check", "error", "match"], checks))
    data = part_data(report, "conformance")
    if not data:
        return "\n".join([*lines, "The suite was not run.\n"])
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(data["counts"].items()))
    cut = (
        "" if data["finished"] else f" **Stopped before the end ({data['collected']} collected).**"
    )
    lines.append(
        f"`pytest {' '.join([data['suite'], *data['options']])}`: {counts or 'none ran'}.{cut}\n"
    )
    if data["failures"]:
        failures = [[escape(f["test"]), escape(f["message"])] for f in data["failures"]]
        lines.append(table(["failed", "message"], failures))
    return "\n".join(lines)


def missing_section(report: Record) -> str:
    """What has no figure, and why; the names of one reason together."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in report["items"]:
        if item["status"] != "done":
            reasons[why(item)["reason"]].append(item["name"])
    if not reasons:
        return ""
    lines = [
        f"* {escape(reason)} ({len(names)}): {', '.join(f'`{name}`' for name in names)}\n"
        for reason, names in reasons.items()
    ]
    return "## Not measured\n\n" + "".join(lines)


# --- cells ----------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape(text: str) -> str:
    """`text` for a table's cell: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def number(value: float | None) -> str:
    """Four significant digits, without an exponent."""
    if value is None:
        return NONE
    digits = max(0, 3 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def spread(timing: Record) -> str:
    return f"{(timing['q3_ms'] - timing['q1_ms']) / timing['ms']:.1%}"


def times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def share(part: float | None, whole: float) -> str:
    return NONE if part is None else f"{part / whole:.0%}"


def error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
