"""Sections of the page on our kernels themselves, and what in them is a problem."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cells import NONE, escape, number, share, table
from benchmarks.peers import CHOSEN, NATIVE, TRITON
from benchmarks.rows import Record, data_of_part

MOST_LAUNCHES = 12
"""Of a network, the page lists so many that take longest; ``report.json`` has all."""

MOST_SHAPES = 20
"""Likewise of convolutions whose fastest variant is not the planned one."""

NOISE = 0.02
"""Backends whose medians differ by less are equal: NOISE in `fassd_kernels.choices`."""

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
        return number(1e6 * row[f"{name}_s"])

    header = ["launch", "channels", "size", "tile", "x", "floor us", "predicted us", "measured us"]
    cells = [
        [
            escape(row["label"]),
            escape(row["channels"]),
            f"{row['height']}x{row['width']}",
            row["tile"] or NONE,
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

    header = ["launch", "kernel", "us", "SM", "DRAM", "L2", "occupancy", "top stall", "of stalls",
              "registers", "blocks"]  # fmt: skip
    cells = [
        [
            str(one["index"]),
            escape(one["kernel"]),
            number(one["us"]),
            *(percent(one[name]) for name in ("sm", "dram", "l2", "occupancy")),
            one["stall"] or NONE,
            NONE if one["stall_share"] is None else f"{one['stall_share']:.0%}",
            whole(one["registers"]),
            whole(one["blocks"]),
        ]
        for one in data["slowest"]
    ]
    text = (
        f"The slowest of {data['launches']} launches of {data['network']}, which take "
        f"{number(data['us'])} us in all, each alone.\n"
    )
    return "\n".join([text, table(header, cells)])


# --- variants -------------------------------------------------------------------------------------


def figures_of(shape: Record) -> tuple[float, float] | None:
    """Milliseconds of what the plan takes, and of the fastest variant that is right; None where
    one of them was not timed.
    """
    times = {one["variant"]: one["timing"]["ms"] for one in shape["variants"] if "timing" in one}
    if shape["planned"] not in times or shape["best"] not in times:
        return None
    return times[shape["planned"]], times[shape["best"]]


def variants_section(report: Record) -> str:
    parts = [variants_text(data) for data in data_of_part(report, "variants")]
    return "\n".join(["## Variants of the convolution kernel\n", *parts]) if parts else ""


def variants_text(data: Record) -> str:
    """Where most is to be won comes first; warps, m_tiles, n_tiles, sliding."""
    rows, total, possible = [], 0.0, 0.0
    for shape in data["shapes"]:
        figures = figures_of(shape)
        if figures is None:
            continue
        planned, best = figures
        total += shape["count"] * planned
        possible += shape["count"] * (planned - best)
        if best < planned:
            cells = [
                shape["shape"],
                str(shape["count"]),
                shape["planned"],
                number(1e3 * planned),
                shape["best"],
                number(1e3 * best),
                share(best, planned),
            ]
            rows.append((shape["count"] * (planned - best), cells))
    rows = sorted(rows, key=lambda row: -row[0])[:MOST_SHAPES]
    header = ["convolution", "x", "planned", "us", "fastest", "us", "of planned"]
    left = f", {data['left']} shapes were left for want of time" if data["left"] else ""
    text = (
        f"{data['network']}, {data['dtype']}: {len(data['shapes'])} shapes, whose launches take "
        f"{number(1e3 * total)} us as planned and {number(1e3 * (total - possible))} us with the "
        f"fastest variants{left}.\n"
    )
    return "\n".join([text, table(header, [cells for _, cells in rows])]) if rows else text


def wrong_variants(data: Record) -> list[str]:
    """In words, those that gave wrong results."""
    return [
        f"variant {variant['variant']} is wrong on {shape['shape']}"
        + (f": {variant['reason']}" if "reason" in variant else "")
        for shape in data.get("shapes", ())
        for variant in shape["variants"]
        if not variant["match"]
    ]


# --- the choice of a backend ----------------------------------------------------------------------


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
