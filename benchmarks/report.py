"""From the record of a report, a plain dictionary, to its Markdown page; pure functions only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from benchmarks.rows import (
    NONE,
    Record,
    Row,
    choice_text,
    data_of_part,
    error,
    escape,
    floor_ms,
    is_slower_choice,
    launch_floors_ms,
    number,
    part_data,
    rows_by_subject,
    share,
    speedup,
    spread,
    table,
    times,
    why,
)
from benchmarks.targets import PLACE, TARGETS, Target
from benchmarks.variants import variants_section, wrong_variants
from fassd.bench.candidates import OUR_FORMS, TITLES

MOST_LAUNCHES = 12
"""Of a network, the page lists so many that take longest; ``report.json`` has all."""

MOST_NAMES = 24
"""That the page lists of what is not measured for one reason; ``report.json`` has all."""

METHOD = """\
* **pictures** is batch x height x width of the network's input, also where a module or an operator
  is measured at its place in the network.
* **ms** is the median of n samples per call, *IQR* their interquartile range as a share of it.
  Method `graph`: replays of a CUDA graph that holds one call per input set; inputs and outputs of
  all sets together exceed the L2 cache 1.5 times (weights stay cached). `runner`: calls of a
  `GraphRunner`, which copies each input set into a graph of its own and the output out of it.
  `events`: plain calls between two events, where capture failed. `clock`: plain calls on a CPU.
  `alone`: not in turns with eager, for want of memory. Warm-up is not counted.
* **plain calls** is the same code called in a loop from Python, without a graph: what one gets
  without further effort, often the host's time and not the device's.
* **speed-up** is against eager PyTorch (NCHW) measured in turns in the same process; it is not
  given where one of the two results does not match.
* **error** is ||out - reference|| / ||reference||, the larger of the first and last input set, on
  outputs poisoned with NaN before the replay. The reference is eager PyTorch in float64, for
  networks in float32 without tf32. Networks give labels: their error is that of the scores of the
  labelled classes, in the reference's scores, against the highest ones. Of an operator's labels it
  is the share that differs. **match**: within the tolerance in the JSON file.
* **floor** is the larger of bytes (input + output + weights, once) over the measured copy
  bandwidth, and 2 x multiply-accumulates (taps in the padding included) over the measured matrix
  rate of the arithmetic; for float32 that is tf32 where cuDNN may use it (PyTorch's default).
* **launches** are those that our Triton kernels need. Each has a floor of the same kind, for what
  it reads, writes and computes itself; **of launch floors** is their sum as a share of the time.
* `torch.compile` gets the channels_last model with folded batch norms and `dynamic=False`.
  max-autotune runs with Inductor's own CUDA graphs off and is captured like everything else, which
  spares it the copy into Inductor's graph.
* A **target** compares two forms by how many times faster than eager each is, since eager was
  measured in turns with both, and they were not with each other.
* Several pictures in flight and end-to-end copies are part of no figure but those of **From
  camera to labels**: a stream of pictures in memory, of which the next is sent while one is
  labelled.
* **Variants** are timed on random images of each shape, one launch per input set, by the same
  method; a variant's tile, chunk and stages are those that the plan gives it.
* **Counters** are read with the caches flushed before each launch, at the card's own clocks;
  percentages are of the peak.
"""


def render(report: Record) -> str:
    """The Markdown page of a report."""
    ceilings = part_data(report, "ceilings")
    sections = [
        f"# {report['device']}\n",
        headline(report),
        targets_section(report),
        problems_section(report),
        environment_section(part_data(report, "environment")),
        ceilings_section(ceilings),
        conformance_section(report),
        sanitizer_section(report),
        camera_section(report),
        launches_section(report),
        counters_section(report),
        variants_section(report),
        tuning_section(report),
        cases_section("Operators", report, "operators", columns(ceilings)),
        cases_section("Modules", report, "modules", columns(ceilings)),
        cases_section("Networks", report, "networks", network_columns(ceilings)),
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
        if item["part"] == "profile" and data and not only_ours(data):
            found.append(f"{item['name']}: {launches_text(data)}")
        if data.get("findings"):
            found.append(f"{item['name']}: {data['findings']} findings")
        if item["part"] == "variants":
            found += [f"{item['name']}: {text}" for text in wrong_variants(data)]
        if item["part"] == "runner" and data.get("match") is False:
            found.append(f"{item['name']}: the labels do not match the reference")
        if report.get("mode") != "quick" and is_slower_choice(data):
            found.append(f"{item['name']}: {choice_text(data)}")
        for form in data.get("candidates", ()):
            if form["name"] in OUR_FORMS and (
                form["status"] == "failed" or form.get("match") is False
            ):
                reason = form.get("reason") or "the result does not match the reference"
                found.append(f"{item['name']}: {reason}")
    return found


# --- tables of cases ------------------------------------------------------------------------------


Column = tuple[str, Callable[[Row], str]]


def form_columns() -> list[Column]:
    """The columns that every table of cases has."""
    return [
        ("pictures", lambda row: row.picture),
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


def columns(ceilings: Record | None) -> list[Column]:
    """The columns of operators and modules."""

    def floor(row: Row) -> float | None:
        return floor_ms(row.data, ceilings)

    def launch_floors(row: Row) -> str:
        floors = launch_floors_ms(row.form, row.data, ceilings)
        return share(floors, row.form["timing"]["ms"])

    return [
        *form_columns(),
        ("floor, ms", lambda row: number(floor(row))),
        ("of floor", lambda row: share(floor(row), row.form["timing"]["ms"])),
        ("launches", launch_count),
        ("of launch floors", launch_floors),
        *check_columns(),
    ]


def launch_count(row: Row) -> str:
    return str(len(row.form["launches"]["bytes"])) if "launches" in row.form else NONE


def network_columns(ceilings: Record | None) -> list[Column]:
    def frames_per_second(row: Row) -> str:
        return f"{1e3 * row.case['batch'] / row.form['timing']['ms']:,.0f}"

    every = columns(ceilings)
    every.insert(4, ("frames/s", frames_per_second))
    return every


def cases_section(title: str, report: Record, part: str, columns: Sequence[Column]) -> str:
    subjects = rows_by_subject(report, part)
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


def targets_section(report: Record) -> str:
    """The targets, how far they are reached, and what was expected."""
    rows = []
    for target in TARGETS:
        figure, expected = target.figure(report), target.predicted(report)
        cells = [target.subject, TITLES[target.form], target.text]
        cells += [NONE, NONE] if figure is None else [target.describe(figure), met(target, figure)]
        cells.append("not known" if expected is None else target.describe(expected))
        rows.append(cells)
    place = "{batch}x{height}x{width}, {dtype}".format(**PLACE)
    title = f"## Targets\n\nAt {place}, labels out, set and predicted for an H200.\n"
    header = ["subject", "form", "target", "measured", "met", "predicted"]
    return "\n".join([title, table(header, rows)])


def met(target: Target, figure: float) -> str:
    return "yes" if target.is_met(figure) else "**no**"


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
    checks = [
        [c["check"], c["rel_error"], "yes" if c["match"] else "**NO**"]
        for data in data_of_part(report, "smoke")
        for c in data["checks"]
    ]
    lines = ["## Conformance\n"]
    if checks:
        lines.append(table(["check", "error", "match"], checks))
    runs = data_of_part(report, "conformance")
    lines += map(suite_text, runs) if runs else ["The suite was not run.\n"]
    return "\n".join(lines)


def suite_text(data: Record) -> str:
    """One run of the conformance suite."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(data["counts"].items()))
    cut = "" if data["finished"] else " **Stopped before the end.**"
    command = " ".join([data["suite"], *data["options"]])
    text = f"`pytest {command}`: {counts or 'none ran'}.{cut}\n"
    failures = [[escape(f["test"]), escape(f["message"])] for f in data["failures"]]
    return "\n".join([text, table(["failed", "message"], failures)]) if failures else text


def tuning_section(report: Record) -> str:
    rows = [
        [f"`{data['command']}`", name, str(count)]
        for data in data_of_part(report, "tune")
        for name, count in data["tables"].items()
    ]
    choices = [f"* {escape(choice_text(data))}.\n" for data in data_of_part(report, "networks")
               if choice_text(data)]  # fmt: skip
    if not (rows or choices):
        return ""
    tables = table(["command", "table in `configs/`", "rows"], rows) if rows else ""
    return "\n".join(["## Tuning\n", tables, "".join(choices)])


def missing_section(report: Record) -> str:
    """What has no figure, and why; the first names of one reason together."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in report["items"]:
        if item["status"] != "done":
            reasons[why(item)["reason"]].append(f"`{item['name']}`")
    if not reasons:
        return ""
    lines = []
    for reason, names in reasons.items():
        rest = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES])
        lines.append(f"* {escape(reason)} ({len(names)}): {shown}{rest}\n")
    return "## Not measured\n\n" + "".join(lines)


# --- launches -------------------------------------------------------------------------------------


def only_ours(data: Record) -> bool:
    """Whether a profile holds the launches that were planned, and no others."""
    return not data["foreign"] and data["seen"] == data["planned"]


def launches_text(data: Record) -> str:
    others = ", ".join(f"{count} of {name}" for name, count in data["foreign"].items())
    return (
        f"{data['network']} in {data['dtype']} through {data['backend']} is {data['seen']} "
        f"launches, {data['planned']} of our kernels were planned; others: {others or 'none'}"
    )


def launches_section(report: Record) -> str:
    parts = []
    for data in data_of_part(report, "profile"):
        parts.append(f"{escape(launches_text(data))}.\n")
        if "mismatch" in data:
            parts.append(f"{escape(data['mismatch'])}.\n")
        if "rows" in data:
            parts.append(launch_table(data["rows"]))
    return "\n".join(["## Launches\n", *parts]) if parts else ""


def launch_table(rows: Sequence[Record]) -> str:
    """Those that take longest, equal ones together."""

    def micro(row: Record, name: str) -> str:
        seconds = row.get(f"{name}_s")
        return number(None if seconds is None else 1e6 * seconds)

    header = ["launch", "channels", "size", "tile", "x", "floor us", "predicted us", "measured us"]
    cells = [
        [
            escape(row["label"]),
            escape(row.get("channels", NONE)),
            f"{row['height']}x{row['width']}" if "height" in row else NONE,
            row.get("tile") or NONE,
            str(row["count"]),
            *(micro(row, name) for name in ("floor", "predicted", "measured")),
        ]
        for row in sorted(rows, key=lambda row: -row["measured_s"])[:MOST_LAUNCHES]
    ]
    return table(header, cells)


# --- counters -------------------------------------------------------------------------------------


def counters_section(report: Record) -> str:
    parts = [counters_text(data) for data in data_of_part(report, "counters")]
    return "\n".join(["## Counters\n", *parts]) if parts else ""


def counters_text(data: Record) -> str:
    def percent(value: float | None) -> str:
        return NONE if value is None else f"{value:.0f}%"

    def whole(value: float | None) -> str:
        return NONE if value is None else f"{value:.0f}"

    header = ["launch", "kernel", "us", "SM", "DRAM", "L2", "occupancy", "issue slots",
              "instructions", "top stall", "of stalls", "no instruction", "registers",
              "blocks"]  # fmt: skip
    cells = [
        [
            str(one["index"]),
            escape(one["kernel"]),
            number(one["us"]),
            *(percent(one[n]) for n in ("sm", "dram", "l2", "occupancy", "issue_slots_busy")),
            whole(one["instructions"]),
            one["stall"] or NONE,
            share(one["stall_share"], 1.0),
            share(one["no_instruction_share"], 1.0),
            whole(one["registers"]),
            whole(one["blocks"]),
        ]
        for one in sorted(data["rows"], key=lambda one: -one["us"])[:MOST_LAUNCHES]
    ]
    text = (
        f"The slowest of {data['launches']} launches of {data['network']}, which take "
        f"{number(data['us'])} us in all, each alone.\n"
    )
    return "\n".join([text, table(header, cells)])


# --- the other sections ---------------------------------------------------------------------------


def camera_section(report: Record) -> str:
    rows = [
        [
            data["network"],
            data["backend"],
            f"{data['batch']}x{data['height']}x{data['width']}",
            data["dtype"],
            f"{data['fps']:,.0f}",
            number(data["latency_ms"]),
            "yes" if data["match"] else "**NO**",
        ]
        for data in data_of_part(report, "runner")
    ]
    header = ["network", "backend", "pictures", "dtype", "frames/s", "one call, ms", "match"]
    return "## From camera to labels\n\n" + table(header, rows) if rows else ""


def sanitizer_section(report: Record) -> str:
    runs = data_of_part(report, "sanitizer")
    if not runs:
        return ""
    rows = [
        [
            data["tool"],
            str(sum(data["counts"].values())),
            str(data["counts"].get("failed", 0) + data["counts"].get("error", 0)),
            str(data["findings"]),
        ]
        for data in runs
    ]
    quotes = [f"{data['tool']}:\n\n```\n{text}\n```\n" for data in runs for text in data["quoted"]]
    head = table(["tool of compute-sanitizer", "tests", "failed", "findings"], rows)
    return "\n".join(["## Sanitizers\n", head, *quotes])
