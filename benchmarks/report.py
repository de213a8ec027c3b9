"""The GPU report's kinds of items, and its page, from its record, a plain dictionary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import NONE, Columns, Record, escape, facts, matches, number, probes, table, tools
from benchmarks.tools import Visit
from fassd.bench.candidates import EAGER, OUR_FORMS, TITLES
from fassd.bench.cases import measure_case
from fassd.bench.subjects import Case

# --- timed forms ----------------------------------------------------------------------------------


def case(visit: Visit, group: str, **subject: Any) -> dict[str, Any]:
    return measure_case(Case(**subject), group, visit.bench)


@dataclass(frozen=True)
class Row:
    """One timed form of a case.

    Attributes:
        case: record of the item that measured it.
        form: record of the candidate.
        ceilings: ceilings of the device, if the report measured them.
    """

    case: Record
    form: Record
    ceilings: Record | None = None

    @property
    def ms(self) -> float:
        return 1e3 * self.form["timing"]["median_s"]

    @property
    def speedup(self) -> float | None:
        """Over eager, measured in turns with it; None if one of the two does not match."""
        eager = next(form for form in self.case["candidates"] if form["name"] == EAGER)
        if not (self.form.get("match") and eager.get("match")):
            return None
        return 1e3 * eager["timing"]["median_s"] / self.ms

    @property
    def floor_ms(self) -> float | None:
        """The time that the measured ceilings allow: for bytes or for operations, the longer."""
        if self.ceilings is None:
            return None
        moved = self.case["activation_bytes"] + self.case["weight_bytes"]
        rate = self.ceilings["operations_per_s"][self.case["arithmetic"]]
        seconds = moved / self.ceilings["bytes_per_s"], self.case["operations"] / rate
        return 1e3 * max(seconds)


def error(row: Row) -> str:
    value = row.form.get("rel_error")
    return "not finite" if value is None else f"{value:.1e}"


CASE_COLUMNS: Columns = {
    "subject": lambda row: row.case["subject"],
    "pictures": lambda row: "{batch}x{height}x{width}".format(**row.case),
    "dtype": lambda row: row.case["dtype"],
    "form": lambda row: TITLES[row.form["name"]],
    "ms": lambda row: number(row.ms),
    "pictures/s": lambda row: f"{1e3 * row.case['batch'] / row.ms:,.0f}",
    "±": lambda row: f"{1e3 * row.form['timing']['spread_s'] / row.ms:.1%}",
    "n": lambda row: str(row.form["timing"]["n"]),
    "speed-up": lambda row: NONE if row.speedup is None else f"{row.speedup:.2f}x",
    "floor, ms": lambda row: number(row.floor_ms),
    "error": error,
    "match": lambda row: matches(row.form.get("match")),
    "method": lambda row: row.form["timing"]["method"],
}


def cases_section(ceilings: Record | None, runs: Sequence[Record]) -> str:
    """Every timed form, with eager once for each group; and why others were not timed."""
    forms = [(data, form) for data in runs for form in data["candidates"]]
    rows = [Row(data, form, ceilings) for data, form in forms if "timing" in form]
    reasons: dict[str, list[str]] = defaultdict(list)
    for data, form in forms:
        if "reason" in form:
            reasons[f"{TITLES[form['name']]}: {form['reason']}"].append(data["subject"])
    lines = [f"* {escape(why)} ({', '.join(dict.fromkeys(of))})\n" for why, of in reasons.items()]
    return "\n".join([table(CASE_COLUMNS, rows), "".join(lines)])


def case_faults(data: Record) -> list[str]:
    """Failures and wrong results of our forms, in words."""
    return [
        form.get("reason") or "the result does not match the reference"
        for form in data["candidates"]
        if form["name"] in OUR_FORMS and (form["status"] == "failed" or form.get("match") is False)
    ]


# --- kinds of items -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportPart:
    """A kind of item.

    Attributes:
        measure: function from the `Visit` and an item's arguments to its data, ready for JSON.
        title: heading of the page's section.
        section: function from the data of all its items to the section's text.
        faults: function from data to its faults, in words.
    """

    measure: Callable[..., dict[str, Any]]
    title: str = ""
    section: Callable[[Sequence[Record]], str] = lambda runs: ""
    faults: Callable[[Record], Iterable[str]] = lambda data: ()


PARTS = {
    "build": ReportPart(tools.build),
    "environment": ReportPart(facts.describe_environment, "Environment", facts.environment_section),
    "smoke": ReportPart(facts.smoke, "First checks", facts.smoke_section),
    "networks": ReportPart(case, "Networks", faults=case_faults),
    "profile": ReportPart(
        probes.profile_network, "Launches", probes.profile_section, probes.profile_faults
    ),
    "counters": ReportPart(probes.count_launches, "Counters", probes.counters_section),
    "conformance": ReportPart(
        tools.conformance, "Conformance", tools.conformance_section, tools.failing_tests
    ),
    "runner": ReportPart(
        facts.measure_runner,
        "From camera to labels",
        partial(table, facts.RUNNER_COLUMNS),
        facts.runner_faults,
    ),
    "ceilings": ReportPart(facts.measure_ceilings, "Ceilings", facts.ceilings_section),
    "memcheck": ReportPart(
        tools.memcheck, "Memory check", tools.memcheck_section, tools.memcheck_faults
    ),
    "modules": ReportPart(case, "Modules", faults=case_faults),
    "tune": ReportPart(tools.tune, "Tuning", tools.tuning_section),
    "choices": ReportPart(
        partial(tools.tune, backends=True), "Choice of backends", tools.tuning_section
    ),
}
"""By the first part of an item's name."""

# --- the page -------------------------------------------------------------------------------------

MOST_NAMES = 24
"""That the page lists of what is not measured for one reason; ``report.json`` has all."""

METHOD = """\
* **pictures** is batch x height x width of the network's input, also where a module is measured at
  its place in the network.
* **ms** is the median of n samples per call, *±* half their interquartile range as a share of it.
  Method `graph`: replays of a CUDA graph that holds one call per input set; inputs and outputs of
  all sets together exceed the L2 cache 1.5 times (weights stay cached). `events`: plain calls
  between two events, where capture failed. `clock`: plain calls on a CPU. Warm-up is not counted.
* **speed-up** is against eager PyTorch (NCHW) measured in turns in the same process; it is not
  given where one of the two results does not match.
* **error** is ||out - reference|| / ||reference||, the larger of the first and last input set, on
  outputs poisoned with NaN before the replay. The reference is eager PyTorch in float64, for
  networks in float32 without tf32. Networks give labels: their error is that of the scores of the
  labelled classes, in the reference's scores, against the highest ones. **match**: within the
  tolerance in the JSON file.
* **floor** is the larger of bytes (input + output + weights, once) over the measured copy
  bandwidth, and 2 x multiply-accumulates (taps in the padding included) over the measured matrix
  rate of the arithmetic; for float32 that is tf32 where cuDNN may use it (PyTorch's default).
* `torch.compile` gets the channels_last model with folded batch norms and `dynamic=False`.
  max-autotune runs with Inductor's own CUDA graphs off and is captured like everything else, which
  spares it the copy into Inductor's graph.
* **From camera to labels** is a stream of pictures in memory, of which the next is sent while one
  is labelled.
* **Counters** are read with the caches flushed before each launch, at the card's own clocks;
  percentages are of the peak.
"""


def render(report: Record) -> str:
    """The Markdown page of a report."""
    sections = {
        f"# {report['device']}": headline(report),
        "## Problems": "".join(f"* {escape(problem)}\n" for problem in problems(report)),
        **{f"## {part.title}": text for part, text in parts_of(report)},
        "## Not measured": missing(report),
        "## How it was measured": METHOD,
    }
    return "\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text.strip())


def parts_of(report: Record) -> Iterator[tuple[ReportPart, str]]:
    """The kinds of items that have data, and their sections."""
    found: dict[str, list[Record]] = defaultdict(list)
    for item in report["items"]:
        if item.get("data"):
            found[item["part"]].append(item["data"])
    ceilings = next(iter(found.get("ceilings", ())), None)
    for name, part in PARTS.items():
        if name in found:
            section = partial(cases_section, ceilings) if part.measure is case else part.section
            yield part, section(found[name])


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


def problems(report: Record) -> list[str]:
    """Reasons why a run failed: a part that crashed, failed tests, wrong or failing kernels."""
    found = []
    for item in report["items"]:
        texts = [item["reason"]] if item["status"] == "failed" else []
        if item.get("data"):
            texts += PARTS[item["part"]].faults(item["data"])
        found += [f"{item['name']}: {text}" for text in texts]
    return found


def missing(report: Record) -> str:
    """Items without a figure, and the reasons; the first names for each reason are grouped."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in report["items"]:
        if item["status"] != "done":
            first_line = (item.get("reason") or "").strip().partition("\n")[0]
            reasons[f"{item['status']}: {first_line}"].append(f"`{item['name']}`")
    lines = []
    for reason, names in reasons.items():
        rest = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES])
        lines.append(f"* {escape(reason)} ({len(names)}): {shown}{rest}\n")
    return "".join(lines)
