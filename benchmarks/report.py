"""The GPU report's page and picture, from its record, a plain dictionary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from benchmarks.plan import PARTS
from benchmarks.predicted import targets_section
from benchmarks.rows import (
    Record,
    Row,
    choice_result,
    escape,
    rows_by_subject,
    why,
)
from fassd.bench.candidates import (
    CARVEOUT,
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    THREADS,
    TITLES,
    TRITON,
    TRITON_GRAPH,
)
from fassd.bench.report import charts
from fassd.io.files import replacing

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
    known = {item["part"] for item in report["items"] if item.get("data")}
    sections = {
        f"# {report['device']}": headline(report),
        "## Targets": targets_section(report),
        "## Problems": "".join(f"* {escape(problem)}\n" for problem in problems(report)),
        **{
            f"## {part.title}": part.section(report, name)
            for name, part in PARTS.items()
            if name in known
        },
        "## Not measured": missing(report),
        "## How it was measured": METHOD,
    }
    return "\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text.strip())


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
        data = item.get("data")
        texts = [item["reason"]] if item["status"] == "failed" else []
        texts += PARTS[item["part"]].faults(data) if data else []
        # Figures of a rehearsal mean nothing.
        result = choice_result(data) if data and report["mode"] != "quick" else None
        if result and result[1]:
            texts.append(result[0])
        found += [f"{item['name']}: {text}" for text in texts]
    return found


def missing(report: Record) -> str:
    """Items without a figure, and the reasons; the first names for each reason are grouped."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in report["items"]:
        if item["status"] != "done":
            reasons[why(item)].append(f"`{item['name']}`")
    lines = []
    for reason, names in reasons.items():
        rest = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES])
        lines.append(f"* {escape(reason)} ({len(names)}): {shown}{rest}\n")
    return "".join(lines)


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
    THREADS: charts.COLOURS["brown"],
    CHOSEN: charts.BLACK,
}


def draw(path: Path, report: Record) -> Path | None:
    """Draw, as PNG, the speed-ups at the place that the report measured first.

    Args:
        path: path of the file; it is replaced only when the new one is complete.
        report: content of ``report.json``.

    Returns:
        `path`, or None if there is nothing to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    parts = {part: subjects_of(report, part) for part in ("networks", "modules", "operators")}
    rows = [bar_row(part, subjects) for part, subjects in parts.items() if subjects]
    if not rows:
        return None
    title = f"Speed-up over eager PyTorch\n{report['device']}, {report['date'][:10]}"
    with replacing(path) as file:
        file.write(charts.png(charts.bar_rows(rows, title=title)))
    return path


def subjects_of(report: Record, part: str) -> dict[str, dict[str, Row]]:
    """The rows with a speed-up at the first place that has one, by subject and form."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    place = None
    for subject, rows in rows_by_subject(report, part).items():
        for row in rows:
            here = row.picture, row.case["dtype"]
            if row.speedup is not None and here == (place or here):
                place = here
                found[subject][row.form["name"]] = row
    return found


def bar_row(part: str, subjects: Mapping[str, Mapping[str, Row]]) -> charts.BarRow:
    """A group of bars for each subject, a bar for each form that has a figure anywhere."""
    series = []
    for form, colour in COLOURS.items():
        rows = [forms.get(form) for forms in subjects.values()]
        if any(rows):
            heights = [row and row.speedup for row in rows]
            series.append(charts.Bars(TITLES[form], heights, colour))
    first = next(iter(next(iter(subjects.values())).values()))
    # "HarDBlock base.4" in two lines, "MDA(63, 2)" in one.
    names = [name.replace(" ", "" if "(" in name else "\n") for name in subjects]
    return f"{part}, {first.picture} {first.case['dtype']}", names, series
