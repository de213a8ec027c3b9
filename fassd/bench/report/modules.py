"""The sections on parts: factorisation, dead taps, layers, operators, GPUs, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from fassd.bench.costs.counts import Complexity, analyze
from fassd.bench.report.charts import Panel, Series, layer_figure, line_figure
from fassd.bench.report.figures import (
    COUNTED,
    MEASURE,
    counted,
    in_milliseconds,
    milliseconds,
    missing,
    ratio,
)
from fassd.bench.report.page import Cell, Picture, Plot, Section, Table
from fassd.bench.report.results import Collection, Figure, Origin
from fassd.models import VARIANTS, create_model

__all__ = ["benchmarks", "dead_taps", "factorisation", "gpus", "layers", "panel"]

TALK = Origin("the authors' talk on FASSD-Net: half the operations at alpha 2")


# ----------------------------------------------------------------------------------- factorisation


def factorisation(results: Collection) -> Section:
    """DAPF against ASPP and against itself with 3x3s; MDA likewise."""
    title = "What factorising buys"
    source = results.first("modules")
    if source is None:
        return missing(title, "the modules", MEASURE)
    entries = [source.at("modules", index) for index in range(len(source.content["modules"]))]
    context = [e for e in entries if e.value["group"] == "context"]
    decoder = [e for e in entries if e.value["group"] != "context"]
    size = "x".join(map(str, source.content["size"]))
    paragraph = (
        "A dilated 3x3 from C to w channels takes 9 C w multiply-accumulates per pixel, a 3x1 and "
        "a 1x3 take 3 C w + 3 w². With w = C / alpha that is (1 + 1/alpha) / 3 of it: one half at "
        "alpha 2, which is the saving that the authors' talk gives. Whole modules save less, since "
        "their 1x1 convolutions stay; against ASPP (five branches of 256 channels, a "
        "reconstruction) they save more. Time need not follow operations: two passes over a map "
        "cost more than one."
    )
    blocks = (
        factorisation_plot(context, size),
        module_table(context, "ASPP", f"Context modules on 224 channels, picture {size}."),
        module_table(decoder, "plain 3x3", f"MDA at its three places, picture {size}."),
    )
    return Section(title, (paragraph,), blocks)


def module_table(entries: Sequence[Figure], base: str, caption: str) -> Table:
    """Operations, their ratio over the group's module `base`, parameters and time."""
    bases = {e.value["group"]: e for e in entries if e.value["name"] == base}
    rows = []
    for entry in entries:
        value, over = entry.value, bases[entry.value["group"]]
        alpha = f", alpha {value['alpha']}" if value["alpha"] else ""
        place = "" if value["group"] == "context" else f"{value['group']}: "
        fused = entry.at("fused") if value["fused"] else None
        macs = entry.at("macs")
        share = f"{100 * value['macs'] / over.value['macs']:.0f}%"
        rows.append(
            (
                Cell(f"{place}{value['name']}{alpha}"),
                counted(f"{value['macs'] / 1e9:.3f}", macs),
                counted(share, macs, over.at("macs")),
                counted(f"{value['params']:,}", entry.at("params")),
                milliseconds(entry.at("eager")),
                milliseconds(fused, strong=True),
                ratio(fused, entry.at("eager")),
            )
        )
    counts = {entry.value["eager"]["n"] for entry in entries}
    return Table(
        ("module", "GMACs", f"of {base}", "parameters", "PyTorch, ms", "ours, ms", "speed-up"),
        rows,
        f"{caption} PyTorch in channels_last, float32, medians of {min(counts)} interleaved rounds "
        "± half the interquartile range.",
    )


def factorisation_plot(context: Sequence[Figure], size: str) -> Plot:
    def of(name: str) -> list[Mapping[str, Any]]:
        found = [entry.value for entry in context if entry.value["name"] == name]
        return sorted(found, key=lambda value: value["alpha"] or 0)

    dapf, square, (aspp, *_) = of("DAPF"), of("DAPF with 3x3"), of("ASPP")
    alphas = [value["alpha"] for value in dapf]
    whole = partial(Series, "DAPF", alphas, colour="sky")
    unfactorised = partial(Series, "DAPF with 3x3", alphas, colour="grey", marker="s", dashed=True)
    ours = partial(Series, "DAPF, ours", alphas, colour="vermilion", marker="D")

    def macs(values: list[Mapping[str, Any]]) -> list[float]:
        return [value["macs"] / 1e9 for value in values]

    def times(values: list[Mapping[str, Any]], form: str) -> dict[str, Any]:
        timings = [value[form] for value in values]
        return {
            "y": [1e3 * timing["median_s"] for timing in timings],
            "spread": [1e3 * timing["spread_s"] for timing in timings],
        }

    series = [whole(**times(dapf, "eager")), unfactorised(**times(square, "eager"))]
    lines = [("ASPP", 1e3 * aspp["eager"]["median_s"], "green")]
    if all(value["fused"] for value in dapf):
        series.append(ours(**times(dapf, "fused")))
    if aspp["fused"]:
        lines.append(("ASPP, ours", 1e3 * aspp["fused"]["median_s"], "orange"))
    ticks = [(float(alpha), str(alpha)) for alpha in alphas]
    panels = [
        Panel(
            "operations",
            "alpha",
            "GMACs",
            [whole(macs(dapf)), unfactorised(macs(square))],
            ticks=ticks,
            lines=[("ASPP", aspp["macs"] / 1e9, "green")],
        ),
        Panel("time", "alpha", "ms", series, ticks=ticks, lines=lines),
    ]
    return Plot(
        "factorisation",
        partial(line_figure, panels),
        "Operations and time of DAPF by alpha, with ASPP as a line",
        f"DAPF by alpha at picture size {size}: operations counted, time measured (PyTorch in "
        f"channels_last unless ours; n = {aspp['eager']['n']}, bars: half the interquartile "
        "range). Dotted: ASPP.",
        (context[0].source.at("modules"), TALK),
    )


# --------------------------------------------------------------------------------------- dead taps

HEIGHTS = (256, 320, 384, 416, 512, 640, 720, 768, 1024, 1280, 1536, 2048, 2560)
TABLE_HEIGHTS = (256, 512, 1024, 2048)
STYLES = {
    "fassd_net": ("vermilion", "o"),
    "fassd_net_l1": ("blue", "s"),
    "fassd_net_l2": ("green", "^"),
}
"""Colour and marker of the networks that have DAPF."""


def dead_taps(results: Collection) -> Section:
    """Where DAPF's dilated taps read only padding, by input size."""
    lines, rows = [], []
    for name, style in STYLES.items():
        network = create_model(name)
        costs = {height: analyze(network, (height, 2 * height)) for height in HEIGHTS}
        shares = [100 * dead / total for dead, total in map(wasted, costs.values())]
        lines.append(Series(VARIANTS[name].title, HEIGHTS, shares, *style))
        for height in TABLE_HEIGHTS:
            cost = costs[height]
            dead, total = wasted(cost)
            rows.append(
                (
                    Cell(VARIANTS[name].title),
                    Cell(f"{height}x{2 * height}"),
                    counted("x".join(map(str, map_size(cost)))),
                    counted(inert(cost, axis=0)),
                    counted(inert(cost, axis=1)),
                    counted(f"{dead / 1e6:.1f}"),
                    counted(f"{100 * dead / total:.0f}%"),
                )
            )
    panel = Panel(
        "taps that read only padding",
        "picture height (width is twice that), pixels",
        "share of DAPF's multiply-accumulates, %",
        lines,
        log=True,
        ticks=[(float(h), str(h)) for h in (256, 416, 640, 1024, 1536, 2560)],
    )
    plot = Plot(
        "dead-taps",
        partial(line_figure, [panel]),
        "Lines: share of DAPF's operations that are dead, by picture height, three networks",
        "Counted, not measured: every tap of a dilated convolution that lies in the padding for "
        "every pixel of the map. At 100% less the share, DAPF is what is left.",
        (COUNTED,),
    )
    headings = (
        "network",
        "picture",
        "DAPF's map",
        "3x1 inert at dilation",
        "1x3 inert at dilation",
        "saved, MMACs",
        "of DAPF",
    )
    caption = "An inert convolution has only its middle tap left: it is a 1x1."
    paragraph = (
        "Where a dilation is not smaller than the map's side, the outer taps of that "
        "convolution read nothing but padding. The fused kernels skip them; PyTorch "
        "multiplies by zero. Scores on small pictures say nothing about DAPF."
    )
    table = Table(headings, rows, caption, names=2)
    return Section("Dead dilation taps", (paragraph,), (plot, table))


def wasted(cost: Complexity) -> tuple[int, int]:
    """Multiply-accumulates of DAPF that dead taps stand for, and all of it."""
    dead = sum(tap.wasted_macs for tap in cost.dead_taps if tap.name.startswith("DAPF"))
    total = sum(part.conv_macs for part in cost.parts if part.name.startswith("DAPF"))
    return dead, total


def map_size(cost: Complexity) -> tuple[int, int]:
    shape = next(part.output_shape for part in cost.parts if part.name.startswith("DAPF"))
    return shape[2], shape[3]


def inert(cost: Complexity, axis: int) -> str:
    """Dilations at which the convolution along an axis is a 1x1: "24, 36", or "none"."""
    found = sorted(
        tap.dilation[axis]
        for tap in cost.dead_taps
        if tap.name.startswith("DAPF") and tap.kernel_size[axis] == 3 and tap.dead == 2
    )
    return ", ".join(map(str, found)) or "none"


# ------------------------------------------------------------------------------------------ layers


def layers(results: Collection) -> Section:
    """Time of each fused call beside its floor."""
    title = "Time per layer, against the floor"
    source = results.first("layers")
    if source is None:
        return missing(title, "the layers", "fassd bench layers --json DIR/results/layers.json")
    content = source.content
    machine, network = content["machine"], content["network"]
    floor = sum(layer["arithmetic_floor_s"] for layer in content["layers"])
    paragraph = (
        f"The roof was measured by a probe: {2e-9 * machine['macs_per_s']:.0f} GFLOP/s in matrix "
        f"products, {1e-9 * machine['bytes_per_s']:.0f} GB/s copied. The network takes "
        f"{1e3 * network['median_s']:.1f} ms, the arithmetic alone would take "
        f"{1e3 * floor:.1f} ms at that rate (3x3s in Winograd's form)."
    )
    plot = Plot(
        "layers",
        partial(layer_figure, content),
        "Bars: milliseconds of every fused call, with prediction and floor marked",
        f"Every fused call of {content['job']['model']}; n = {network['n']} forwards; bars at the "
        "ends: half the interquartile range.",
        (source.at("layers"),),
    )
    return Section(title, (paragraph,), (plot,))


# --------------------------------------------------------------------------------------- operators


def benchmarks(results: Collection) -> Section:
    """What `pytest benchmarks/` measured, one row for each group."""
    title = "Operators and modules"
    source = results.first("benchmarks")
    command = "pytest benchmarks/ --benchmark-json DIR/results/pytest.json"
    if source is None:
        return missing(title, "single operators", command)
    groups: dict[str, dict[str, Figure]] = {}
    titles: dict[str, str] = {}
    for index, entry in enumerate(source.content["benchmarks"]):
        facts = entry.get("extra_info", {})
        if "candidate" not in facts:
            continue
        titles.setdefault(facts["candidate"], facts["title"])
        groups.setdefault(entry["group"], {})[facts["candidate"]] = source.at("benchmarks", index)
    shared = shared_words(list(groups))
    rows = []
    for group, members in groups.items():
        timed = {name: entry.at("stats") for name, entry in members.items()}
        cells = [benchmark_cell(timed.get(candidate)) for candidate in titles]
        name = group.removesuffix(", " + shared) if shared else group
        speedup = ratio(timed.get("native"), timed.get("eager"), strong=True, median="median")
        rows.append((Cell(name), *cells, speedup))
    table = Table(
        ("group", *titles.values(), "speed-up"),
        rows,
        f"{shared + ': m' if shared else 'M'}illiseconds, medians ± half the interquartile range; "
        "each was compared with the float64 reference before it was timed. Speed-up: of ours over "
        "eager.",
    )
    return Section(title, (f"From `{command}`.",), (table,))


def shared_words(groups: Sequence[str]) -> str:
    """What all names of groups, lists with commas, end in."""
    endings = [group.split(", ")[:0:-1] for group in groups]
    shared = takewhile(lambda words: len(set(words)) == 1, zip(*endings, strict=False))
    return ", ".join(reversed([words[0] for words in shared]))


def benchmark_cell(stats: Figure | None) -> Cell:
    if stats is None:
        return Cell()
    text = in_milliseconds(stats.value["median"], stats.value["iqr"] / 2)
    return Cell(text, (stats.at("median"),), "measured")


# -------------------------------------------------------------------------------------------- GPUs


def gpus(results: Collection) -> Section:
    """What was measured on GPUs, and what the time model predicts where there is such a file."""
    blocks = [gpu_table(source.at("items"), source.content) for source in results.of("items")]
    paragraphs = []
    if not blocks:
        paragraphs.append(
            "Nothing was measured on a GPU yet. What follows is a prediction of a model of bytes, "
            "operations and launches that no measurement has calibrated; `make gpu-report` "
            "measures."
        )
    predicted = next(results.of("predictions"), None)
    if predicted is not None:
        blocks.append(prediction_table(predicted.at("predictions")))
    if not blocks:
        return missing("GPUs", "a GPU", "make gpu-report")
    return Section("GPUs", paragraphs, blocks)


def gpu_table(items: Figure, report: Mapping[str, Any]) -> Table:
    """Networks of a GPU's report: every form's time."""
    rows = []
    for index, item in enumerate(items.value):
        if item["part"] != "networks":
            continue
        case = item["case"]
        for number, form in enumerate((item.get("data") or {}).get("candidates", ())):
            if "timing" not in form:
                continue
            where = (items.at(index, "data", "candidates", number, "timing", "ms"),)
            text = f"{form['timing']['ms']:.3f}" if form.get("match") else "disagrees"
            rows.append(
                (
                    Cell(f"`{case['subject']}`"),
                    Cell(f"{case['batch']}x3x{case['height']}x{case['width']} {case['dtype']}"),
                    Cell(form["name"]),
                    Cell(text, where, "measured"),
                )
            )
    caption = f"Measured on {report.get('device', '')}, {str(report.get('date', ''))[:10]}."
    return Table(("network", "input", "form", "ms"), rows, caption, names=3)


def prediction_table(predictions: Figure) -> Table:
    rows = []
    for index, value in enumerate(predictions.value):
        at = partial(predictions.at, index)
        frames = value["predicted_frames_per_second"]
        rows.append(
            (
                Cell(f"`{value['network']}`"),
                Cell(f"{value['batch']}x3x{value['size'][0]}x{value['size'][1]} {value['dtype']}"),
                counted(str(value["launches"]), at("launches")),
                counted(f"{1e3 * value['floor_s']:.3f}", at("floor_s")),
                Cell(f"{1e3 * value['predicted_s']:.3f}", (at("predicted_s"),), "predicted"),
                Cell(f"{frames:.0f}", (at("predicted_frames_per_second"),), "predicted"),
            )
        )
    gpu = predictions.value[0]["gpu"]
    return Table(
        ("network", "input", "launches", "floor, ms", "predicted, ms", "predicted frames/s"),
        rows,
        f"Predicted for {gpu}, labels out; floor: every byte once at full bandwidth, or every "
        "operation at the full rate.",
        names=2,
    )


# ------------------------------------------------------------------------------------------- panel


def panel(results: Collection) -> Section:
    """Input, ground truth and what networks make of it."""
    title = "To see"
    for source in results.of("accuracy"):
        name = source.content.get("panel")
        path = source.path.parent / name if name else None
        if path is not None and path.is_file():
            picture = Picture(
                "panel",
                path.read_bytes(),
                "Input, ground truth and the labels of four networks, side by side",
                str(source.content["note"]),
                (source.at("panel"),),
            )
            return Section(title, (), (picture,))
    return missing(title, "a panel of predictions", "python -m benchmarks.ablation")
