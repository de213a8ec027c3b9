"""Tables of the GPU report: cells, and the rows, columns and faults of the timed cases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fassd.bench.candidates import CHOSEN, EAGER, NATIVE, OUR_FORMS, TITLES, TRITON
from fassd.bench.cases import GROUPS
from fassd.bench.markdown import markdown_table

Record = Mapping[str, Any]

# --- cells ----------------------------------------------------------------------------------------

NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown_table(header, rows))


def table_of(columns: Sequence[tuple[str, Callable[[Any], str]]], rows: Iterable[Any]) -> str:
    """A table whose `columns` are titles, and functions that make a row's cell."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return table([title for title, _ in columns], cells)


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


def share(part: float | None, whole: float) -> str:
    return NONE if part is None else f"{part / whole:.0%}"


def matches(match: Any) -> str:
    return "yes" if match else "**NO**"


# --- figures --------------------------------------------------------------------------------------


def data_of_part(report: Record, part: str) -> list[Record]:
    """The data of the items of a part, if they have any."""
    return [i["data"] for i in report["items"] if i["part"] == part and i.get("data")]


def speedup(form: Record, eager: Record | None) -> float | None:
    """Speed-up over eager; None if one is not measured or does not match."""
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
    """The sum of the floors of a form's launches; None if they are not known."""
    if not ceilings or "launches" not in form:
        return None
    launches = zip(form["launches"]["bytes"], form["launches"]["operations"], strict=True)
    return sum(work_ms(*work, case["arithmetic"], ceilings) for work in launches)


def work_ms(moved: int, operations: int, arithmetic: str, ceilings: Record) -> float:
    """Milliseconds for moving these bytes or for these operations, whichever take longer."""
    rate = ceilings["matrix"].get(arithmetic)
    computing = operations / rate["operations_per_s"] if rate else 0.0
    return 1e3 * max(moved / ceilings["copy"]["bytes_per_s"], computing)


# --- rows of a table of cases ---------------------------------------------------------------------

FORM_OF_GROUP = {**{group: names[1] for group, names in GROUPS.items()}, "choice": CHOSEN}
"""Candidate that a group measures besides eager, before all others."""


@dataclass(frozen=True)
class Row:
    """One form of one case.

    Attributes:
        case: subject, batch, height, width, dtype.
        form: record of the candidate, or ``{"name": ..., "reason": ...}`` if there is none.
        data: record of the item that measured it; empty if there is none.
        ceilings: ceilings of the device, if the report measured them.
    """

    case: Record
    form: Record
    data: Record
    ceilings: Record | None = None

    @property
    def timing(self) -> Record:
        return self.form["timing"]

    @property
    def ms(self) -> float:
        return self.timing["ms"]

    @property
    def floor_ms(self) -> float | None:
        return floor_ms(self.data, self.ceilings)

    @property
    def speedup(self) -> float | None:
        """Over eager, measured in turns with it; None if it is not known."""
        if "timing" not in self.form:
            return None
        eager = next((f for f in self.data["candidates"] if f["name"] == EAGER), None)
        return speedup(self.form, eager)

    @property
    def picture(self) -> str:
        """Batch x height x width."""
        return "{batch}x{height}x{width}".format(**self.case)


def rows_by_subject(report: Record, part: str) -> dict[str, list[Row]]:
    """The rows of each subject with a timed case, case by case in the report's order."""
    ceilings = next(iter(data_of_part(report, "ceilings")), None)
    grouped: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for item in report["items"]:
        if item["part"] == part:
            case = item["case"]
            grouped[tuple(case[n] for n in case if n != "group")].append(item)
    found: dict[str, list[Row]] = defaultdict(list)
    for items in grouped.values():
        rows = list(case_rows(items, ceilings))
        if any("timing" in row.form for row in rows):
            found[rows[0].case["subject"]].extend(rows)
    return found


def case_rows(items: Sequence[Record], ceilings: Record | None) -> Iterator[Row]:
    """One row per form that was measured or planned; eager from the first item that measured it."""
    found: dict[str, Row] = {}
    for item in items:
        data = item.get("data") or {}
        for form in data.get("candidates", ()):
            row = Row(item["case"], form, data, ceilings)
            if form["name"] not in found or "timing" not in found[form["name"]].form:
                found[form["name"]] = row
        if not data:
            name = FORM_OF_GROUP[item["case"]["group"]]
            found.setdefault(name, Row(item["case"], {"name": name, "reason": why(item)}, data))
    peers = [name for name in TITLES if name not in OUR_FORMS]
    return (found[name] for name in (*peers, *OUR_FORMS) if name in found)


def why(item: Record) -> str:
    """The reason of an item without data, on one line."""
    reason = (item.get("reason") or "").strip().splitlines()
    return ": ".join([item["status"], *reason[:1]])


# --- their columns --------------------------------------------------------------------------------


def launch_floors(row: Row) -> str:
    return share(launch_floors_ms(row.form, row.data, row.ceilings), row.ms)


def launch_count(row: Row) -> str:
    return str(len(row.form["launches"]["bytes"])) if "launches" in row.form else NONE


def error(row: Row) -> str:
    value = row.form.get("rel_error")
    return "not finite" if value is None else f"{value:.1e}"


def method(row: Row) -> str:
    return row.timing["method"] + ("" if row.data.get("interleaved", True) else ", alone")


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("pictures", lambda row: row.picture),
    ("dtype", lambda row: row.case["dtype"]),
    ("form", lambda row: TITLES[row.form["name"]]),
    ("ms", lambda row: number(row.ms)),
    ("frames/s", lambda row: f"{1e3 * row.case['batch'] / row.ms:,.0f}"),
    ("IQR", lambda row: spread(row.timing)),
    ("n", lambda row: str(row.timing["n"])),
    ("plain calls, ms", lambda row: number(row.form["plain"]["ms"])),
    ("speed-up", lambda row: NONE if row.speedup is None else f"{row.speedup:.2f}x"),
    ("floor, ms", lambda row: number(row.floor_ms)),
    ("of floor", lambda row: share(row.floor_ms, row.ms)),
    ("launches", launch_count),
    ("of launch floors", launch_floors),
    ("error", error),
    ("match", lambda row: matches(row.form.get("match"))),
    ("method", method),
)
"""Columns after the third need a time; frames are only given for networks."""


def cases_section(report: Record, part: str) -> str:
    """A table for each subject, and the result of choosing backends."""
    columns = [one for one in COLUMNS if one[0] != "frames/s" or part == "networks"]
    texts = []
    for subject, rows in rows_by_subject(report, part).items():
        lines = []
        for row in rows:
            timed = "timing" in row.form
            cells = [cell(row) for _, cell in (columns if timed else columns[:3])]
            if not timed:
                cells += [escape(row.form.get("reason", "")), *[NONE] * (len(columns) - 4)]
            lines.append(cells)
        texts += [f"### {subject}\n", table([title for title, _ in columns], lines)]
    for data in data_of_part(report, part):
        if result := choice_result(data):
            texts.append(f"* {escape(result[0])}.\n")
    return "\n".join(texts)


def case_faults(data: Record) -> list[str]:
    """Failures and wrong results of our forms, in words."""
    return [
        form.get("reason") or "the result does not match the reference"
        for form in data["candidates"]
        if form["name"] in OUR_FORMS and (form["status"] == "failed" or form.get("match") is False)
    ]


# --- the choice of a backend ----------------------------------------------------------------------

NOISE = 0.02
"""Backends whose medians differ by less are equal: NOISE in `fassd_kernels.choices`."""


def choice_result(data: Record) -> tuple[str, bool] | None:
    """The times of the chosen backends and of the best single one, in words, and True if the choice
    lost by more than noise; None if it was not timed.
    """
    forms = {
        form["name"]: form["timing"]
        for form in data.get("candidates", ())
        if form.get("match") and "timing" in form
    }
    single = [name for name in (NATIVE, TRITON) if name in forms]
    if CHOSEN not in forms or not single:
        return None
    name = min(single, key=lambda name: forms[name]["ms"])
    choice, best = forms[CHOSEN], forms[name]
    text = (
        f"{data['subject']}: {number(choice['ms'])} ms with the backend that the table names for "
        f"each call, {number(best['ms'])} ms with {name} alone"
    )
    return text, choice["ms"] > (1 + NOISE) * best["ms"] and choice["q1_ms"] > best["q3_ms"]
