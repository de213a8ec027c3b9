"""What a report's record holds: figures, and the rows of its tables; pure functions only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import (
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    EAGER,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    OURS,
    TRITON,
)

Record = Mapping[str, Any]

FORMS = (EAGER, FOLDED, CUDNN_RELU, COMPILE, MAX_AUTOTUNE, *OURS)

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
