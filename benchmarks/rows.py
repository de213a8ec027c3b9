"""What a report's record holds: figures, the rows of its tables, their cells, and its picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fassd.bench.candidates import (
    CARVEOUT,
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    EAGER,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    OUR_FORMS,
    TITLES,
    TRITON,
    TRITON_GRAPH,
)
from fassd.bench.markdown import markdown_table
from fassd.bench.report import charts
from fassd.bench.report.charts import BarRow, Bars, bar_rows, png
from fassd.io.files import replacing

Record = Mapping[str, Any]

FORMS = (EAGER, FOLDED, CUDNN_RELU, COMPILE, MAX_AUTOTUNE, *OUR_FORMS)

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
    moved = case["activation_bytes"] + case["weight_bytes"]
    return work_ms(moved, case["operations"], case["arithmetic"], ceilings)


def launch_floors_ms(form: Record, case: Record, ceilings: Record | None) -> float | None:
    """The sum of the floors of a form's launches; None where they are not known."""
    if not ceilings or "launches" not in form:
        return None
    launches = zip(form["launches"]["bytes"], form["launches"]["operations"], strict=True)
    return sum(work_ms(*work, case["arithmetic"], ceilings) for work in launches)


def work_ms(moved: int, operations: int, arithmetic: str, ceilings: Record) -> float:
    """Milliseconds for so many bytes or for so many operations, whichever take longer."""
    rate = ceilings["matrix"].get(arithmetic)
    computing = operations / rate["operations_per_s"] if rate else 0.0
    return 1e3 * max(moved / ceilings["copy"]["bytes_per_s"], computing)


def part_data(report: Record, name: str) -> Record | None:
    """What the item of this name found out, where it did."""
    return next((i.get("data") for i in report["items"] if i["name"] == name), None)


def data_of_part(report: Record, part: str) -> list[Record]:
    """What the items of a part found out, where they did."""
    return [i["data"] for i in report["items"] if i["part"] == part and i.get("data")]


# --- rows of a table -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One form of one case.

    Attributes:
        case: subject, batch, height, width, dtype.
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
        """Batch x height x width."""
        return "x".join(str(self.case[side]) for side in ("batch", "height", "width"))


def rows_by_subject(report: Record, part: str) -> dict[str, list[Row]]:
    """The rows of each subject of which something was timed, case by case in the report's order."""
    grouped: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for item in report["items"]:
        if item["part"] == part:
            case = item["case"]
            place = ("batch", "height", "width", "dtype")
            key = (case["subject"], *(case[name] for name in place))
            grouped[key].append(item)
    table: dict[str, list[Row]] = defaultdict(list)
    for (subject, *_), items in grouped.items():
        rows = list(case_rows(items))
        if any("timing" in row.form for row in rows):
            table[subject].extend(rows)
    return table


def case_rows(items: Sequence[Record]) -> Iterator[Row]:
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
    return (found[name] for name in FORMS if name in found)


FORM_OF_GROUP = {
    "native": NATIVE,
    "dependent": DEPENDENT,
    "carve-out": CARVEOUT,
    "choice": CHOSEN,
    "library": FOLDED,
    "ours": TRITON,
    "compile": COMPILE,
    "max-autotune": MAX_AUTOTUNE,
}
"""What a group measures beside eager, before all else."""


def why(item: Record) -> dict[str, str]:
    """The reason of an item without data, on one line."""
    reason = (item.get("reason") or "").strip().splitlines()
    return {"reason": ": ".join([item["status"], *reason[:1]])}


# --- cells ----------------------------------------------------------------------------------------

NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown_table(header, rows))


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


# --- the choice of a backend ----------------------------------------------------------------------

NOISE = 0.02
"""Backends whose medians differ by less are equal: NOISE in `fassd_kernels.choices`."""


def contest_of(data: Record) -> tuple[Record, Record] | None:
    """What the choice took and what the best single backend took; None where it was not timed."""
    forms = {
        form["name"]: form
        for form in data.get("candidates", ())
        if form.get("match") and "timing" in form
    }
    single = [forms[name] for name in (NATIVE, TRITON) if name in forms]
    if CHOSEN not in forms or not single:
        return None
    return forms[CHOSEN], min(single, key=lambda form: form["timing"]["ms"])


def is_slower_choice(data: Record) -> bool:
    """Whether the choice lost to a single backend, by more than noise."""
    contest = contest_of(data)
    if contest is None:
        return False
    choice, best = (form["timing"] for form in contest)
    return choice["ms"] > (1 + NOISE) * best["ms"] and choice["q1_ms"] > best["q3_ms"]


def choice_text(data: Record) -> str:
    """Empty where there is nothing to say."""
    contest = contest_of(data)
    if contest is None:
        return ""
    choice, best = contest
    return (
        f"{data['subject']}: {number(choice['timing']['ms'])} ms with the backend that the table "
        f"names for each call, {number(best['timing']['ms'])} ms with {best['name']} alone"
    )


# --- the picture ----------------------------------------------------------------------------------

COLOURS = {
    FOLDED: charts.COLOURS["grey"],
    CUDNN_RELU: charts.COLOURS["yellow"],
    COMPILE: charts.COLOURS["sky"],
    MAX_AUTOTUNE: charts.COLOURS["green"],
    TRITON: charts.COLOURS["orange"],
    TRITON_GRAPH: charts.COLOURS["purple"],
    NATIVE: charts.COLOURS["vermilion"],
    DEPENDENT: charts.COLOURS["blue"],
    CARVEOUT: charts.COLOURS["silver"],
    CHOSEN: charts.BLACK,
}
PARTS = ("networks", "modules", "operators")


def draw(path: Path, report: Mapping[str, Any]) -> Path | None:
    """Draw, as PNG, the speed-ups at the place that the report measured first.

    Args:
        path: the file; it is replaced only when the new one is complete.
        report: what ``report.json`` holds.

    Returns:
        `path`, or None if there is nothing to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = [bar_row(part, subjects) for part in PARTS if (subjects := subjects_of(report, part))]
    if not rows:
        return None
    title = f"Speed-up over eager PyTorch\n{report['device']}, {report['date'][:10]}"
    with replacing(path) as file:
        file.write(png(bar_rows(rows, title=title)))
    return path


def subjects_of(report: Mapping[str, Any], part: str) -> dict[str, list[Row]]:
    """The rows of each subject of a part, at the first place where any was timed."""
    table = rows_by_subject(report, part)
    places = [place_of(row) for rows in table.values() for row in rows if figure_of(row)]
    if not places:
        return {}
    here = {
        name: [row for row in rows if place_of(row) == places[0]] for name, rows in table.items()
    }
    return {name: rows for name, rows in here.items() if any(map(figure_of, rows))}


def place_of(row: Row) -> tuple[str, str]:
    return row.picture, row.case["dtype"]


def figure_of(row: Row) -> float | None:
    """The speed-up; None where it is not known."""
    return speedup(row.form, row.eager) if "timing" in row.form else None


def bar_row(part: str, subjects: Mapping[str, Sequence[Row]]) -> BarRow:
    """A group of bars for each subject, a bar for each form that has a figure anywhere."""
    figures = {
        form: [
            next((figure_of(row) for row in rows if row.form["name"] == form), None)
            for rows in subjects.values()
        ]
        for form in COLOURS
    }
    series = [
        Bars(TITLES[form], heights, COLOURS[form])
        for form, heights in figures.items()
        if any(heights)
    ]
    first = next(iter(subjects.values()))[0]
    # "HarDBlock base.4" in two lines, "MDA(63, 2)" in one.
    names = [name.replace(" ", "" if "(" in name else "\n") for name in subjects]
    return f"{part}, {first.picture} {first.case['dtype']}", names, series
