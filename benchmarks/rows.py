"""Tables of the GPU report: cells of any, and the rows, columns and faults of the timed cases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fassd.bench.forms import CHOSEN, EAGER, NATIVE, OURS, TITLES, TRITON
from fassd.bench.markdown import markdown_table
from fassd.bench.subjects import GROUPS

Record = Mapping[str, Any]

# --- cells ----------------------------------------------------------------------------------------

NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown_table(header, rows))


def table_of(columns: Sequence[tuple[str, Callable[[Any], str]]], rows: Iterable[Any]) -> str:
    """A table whose `columns` are titles, and what makes a cell of a row."""
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
    """What the items of a part found out, where they did."""
    return [i["data"] for i in report["items"] if i["part"] == part and i.get("data")]


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


# --- rows of a table of cases ---------------------------------------------------------------------

FORM_OF_GROUP = {**{group: names[1] for group, names in GROUPS.items()}, "choice": CHOSEN}
"""What a group measures beside eager, before all else."""


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
    def ms(self) -> float:
        return self.form["timing"]["ms"]

    @property
    def speedup(self) -> float | None:
        """Over eager, measured in turns with it; None where it is not known."""
        if "timing" not in self.form:
            return None
        eager = next((f for f in self.data["candidates"] if f["name"] == EAGER), None)
        return speedup(self.form, eager)

    @property
    def picture(self) -> str:
        """Batch x height x width."""
        return "{batch}x{height}x{width}".format(**self.case)


def rows_by_subject(report: Record, part: str) -> dict[str, list[Row]]:
    """The rows of each subject of which something was timed, case by case in the report's order."""
    grouped: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for item in report["items"]:
        if item["part"] == part:
            case = item["case"]
            grouped[tuple(case[n] for n in case if n != "group")].append(item)
    found: dict[str, list[Row]] = defaultdict(list)
    for items in grouped.values():
        rows = list(case_rows(items))
        if any("timing" in row.form for row in rows):
            found[rows[0].case["subject"]].extend(rows)
    return found


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
            found.setdefault(name, Row(item["case"], {"name": name, "reason": why(item)}, data))
    peers = [name for name in TITLES if name not in OURS]
    return (found[name] for name in (*peers, *OURS) if name in found)


def why(item: Record) -> str:
    """The reason of an item without data, on one line."""
    reason = (item.get("reason") or "").strip().splitlines()
    return ": ".join([item["status"], *reason[:1]])


# --- their columns --------------------------------------------------------------------------------

Column = tuple[str, Callable[[Row], str]]


def columns(part: str, ceilings: Record | None) -> list[Column]:
    """The table's columns; those after the third need a time."""

    def timing(row: Row) -> Record:
        return row.form["timing"]

    def floor(row: Row) -> float | None:
        return floor_ms(row.data, ceilings)

    def launch_count(row: Row) -> str:
        return str(len(row.form["launches"]["bytes"])) if "launches" in row.form else NONE

    def error(row: Row) -> str:
        value = row.form.get("rel_error")
        return "not finite" if value is None else f"{value:.1e}"

    def method(row: Row) -> str:
        alone = "" if row.data.get("interleaved", True) else ", alone"
        return f"{timing(row)['method']}{alone}"

    def frames(row: Row) -> str:
        return f"{1e3 * row.case['batch'] / row.ms:,.0f}"

    return [
        ("pictures", lambda row: row.picture),
        ("dtype", lambda row: row.case["dtype"]),
        ("form", lambda row: TITLES[row.form["name"]]),
        ("ms", lambda row: number(row.ms)),
        *([("frames/s", frames)] if part == "networks" else []),
        ("IQR", lambda row: spread(timing(row))),
        ("n", lambda row: str(timing(row)["n"])),
        ("plain calls, ms", lambda row: number(row.form["plain"]["ms"])),
        ("speed-up", lambda row: NONE if row.speedup is None else f"{row.speedup:.2f}x"),
        ("floor, ms", lambda row: number(floor(row))),
        ("of floor", lambda row: share(floor(row), row.ms)),
        ("launches", launch_count),
        (
            "of launch floors",
            lambda row: share(launch_floors_ms(row.form, row.data, ceilings), row.ms),
        ),
        ("error", error),
        ("match", lambda row: matches(row.form.get("match"))),
        ("method", method),
    ]


def cases_section(report: Record, part: str) -> str:
    """A table for each subject, and what the choice of backends came to."""
    cells = columns(part, next(iter(data_of_part(report, "ceilings")), None))
    texts = []
    for subject, rows in rows_by_subject(report, part).items():
        lines = [case_cells(row, cells) for row in rows]
        texts += [f"### {subject}\n", table([name for name, _ in cells], lines)]
    choices = filter(None, map(choice_text, data_of_part(report, part)))
    return "\n".join([*texts, "".join(f"* {escape(text)}.\n" for text in choices)]).strip() + "\n"


def case_cells(row: Row, cells: Sequence[Column]) -> list[str]:
    """The cells of a row; where there is no time, the reason stands in the fourth."""
    if "timing" in row.form:
        return [cell(row) for _, cell in cells]
    known = [cell(row) for _, cell in cells[:3]]
    return [*known, escape(row.form.get("reason", "")), *[NONE] * (len(cells) - 4)]


def case_faults(data: Record) -> list[str]:
    """In words, what of ours failed or is wrong."""
    return [
        form.get("reason") or "the result does not match the reference"
        for form in data["candidates"]
        if form["name"] in OURS and (form["status"] == "failed" or form.get("match") is False)
    ]


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
