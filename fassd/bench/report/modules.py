"""The sections on parts: factorisation, dead taps, layers, operators, GPUs, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from fassd.bench.costs.counts import Complexity, analyze
from fassd.bench.plotting import layer_figure
from fassd.bench.report.networks import (
    COUNTED,
    counted,
    in_milliseconds,
    milliseconds,
    missing,
    ratio,
)
from fassd.bench.report.page import Cell, Picture, Plot, Section, Table, blank
from fassd.bench.report.plots import Panel, Series, line_figure
from fassd.bench.report.results import Collection, Figure, Origin
from fassd.models import VARIANTS, create_model

__all__ = ["benchmarks", "dead_taps", "factorisation", "gpus", "layers", "panel"]

TALK = Origin("the authors' talk on FASSD-Net: half the operations at alpha 2")
MEASURE = "fassd report -o DIR --measure"


# ----------------------------------------------------------------------------------- factorisation


def factorisation(results: Collection) -> Section:
    """DAPF against ASPP and against itself with 3x3s; MDA likewise."""
    title = "What factorising buys"
    source = results.first("modules")
    if source is None:
        return missing(title, "the modules", MEASURE)
    entries = [source.at("modules", index) for index in range(len(source.content["modules"]))]
    context = [e for e in entries if e.value["group"] == "context"]
    aspp = next(e for e in context if e.value["name"] == "ASPP")
    decoder = [e for e in entries if e.value["group"] != "context"]
    size = "x".join(map(str, source.content["size"]))
    branch = "(1 + 1/alpha) / 3"
    paragraphs = (
        "A dilated 3x3 from C to w channels takes 9 C w multiply-accumulates per pixel, a 3x1 and "
        f"a 1x3 take 3 C w + 3 w². With w = C / alpha that is {branch} of it: one half at alpha 2, "
        "which is the saving that the authors' talk gives. Whole modules save less, since their "
        "1x1 convolutions stay; against ASPP (five branches of 256 channels, a reconstruction) "
        "they save more. Time need not follow operations: two passes over a map cost more than "
        "one.",
    )
    return Section(
        title,
        paragraphs,
        (
            factorisation_plot(context, aspp, size),
            module_table(
                context, aspp, f"Context modules on 224 channels, picture {size}.", "ASPP"
            ),
            module_table(decoder, None, f"MDA at its three places, picture {size}.", "plain 3x3"),
        ),
    )


def module_table(
    entries: Sequence[Figure], base: Figure | None, caption: str, base_name: str
) -> Table:
    """Operations, parameters and time; ratios over `base`, or over the group's `base_name`."""
    rows = []
    for entry in entries:
        value = entry.value
        over = base or next(
            e
            for e in entries
            if e.value["group"] == value["group"] and e.value["name"] == base_name
        )
        alpha = f", alpha {value['alpha']}" if value["alpha"] else ""
        place = "" if value["group"] == "context" else f"{value['group']}: "
        fused = entry.at("fused") if value["fused"] else None
        where = (entry.at("macs"), over.at("macs"))
        rows.append(
            (
                Cell(f"{place}{value['name']}{alpha}"),
                Cell(f"{value['macs'] / 1e9:.3f}", (entry.at("macs"),), "counted"),
                Cell(f"{100 * value['macs'] / over.value['macs']:.0f}%", where, "counted"),
                Cell(f"{value['params']:,}", (entry.at("params"),), "counted"),
                milliseconds(entry.at("eager")),
                milliseconds(fused, strong=True),
                ratio(fused, entry.at("eager")),
            )
        )
    headings = (
        "module",
        "GMACs",
        f"of {base_name}",
        "parameters",
        "PyTorch, ms",
        "ours, ms",
        "speed-up",
    )
    counts = {entry.value["eager"]["n"] for entry in entries}
    note = (
        f"{caption} PyTorch in channels_last, float32, medians of {min(counts)} interleaved rounds "
        "± half the interquartile range."
    )
    return Table(headings, tuple(rows), note)


def factorisation_plot(context: Sequence[Figure], aspp: Figure, size: str) -> Plot:
    def of(name: str) -> list[Figure]:
        found = [entry for entry in context if entry.value["name"] == name]
        return sorted(found, key=lambda entry: entry.value["alpha"])

    dapf, square = of("DAPF"), of("DAPF with 3x3")
    alphas = [entry.value["alpha"] for entry in dapf]
    ticks = [(float(alpha), str(alpha)) for alpha in alphas]

    def times(
        entries: Sequence[Figure], form: str, label: str, colour: str, marker: str, dashed: bool
    ) -> Series:
        values = [entry.value[form] for entry in entries]
        middle = [1e3 * value["median_s"] for value in values]
        spread = [1e3 * value["spread_s"] for value in values]
        return Series(label, alphas, middle, colour, marker, dashed, spread)

    operations = Panel(
        "operations",
        "alpha",
        "GMACs",
        [
            Series("DAPF", alphas, [e.value["macs"] / 1e9 for e in dapf], "sky"),
            Series(
                "DAPF with 3x3", alphas, [e.value["macs"] / 1e9 for e in square], "grey", "s", True
            ),
        ],
        ticks=ticks,
        lines=[("ASPP", aspp.value["macs"] / 1e9, "green")],
    )
    series = [
        times(dapf, "eager", "DAPF", "sky", "o", False),
        times(square, "eager", "DAPF with 3x3", "grey", "s", True),
    ]
    lines = [("ASPP", 1e3 * aspp.value["eager"]["median_s"], "green")]
    if all(entry.value["fused"] for entry in dapf):
        series.append(times(dapf, "fused", "DAPF, ours", "vermilion", "D", False))
    if aspp.value["fused"]:
        lines.append(("ASPP, ours", 1e3 * aspp.value["fused"]["median_s"], "orange"))
    time = Panel("time", "alpha", "ms", series, ticks=ticks, lines=lines)
    return Plot(
        "factorisation",
        partial(line_figure, [operations, time]),
        "Operations and time of DAPF by alpha, with ASPP as a line",
        f"DAPF by alpha at picture size {size}: operations counted, time measured (PyTorch in "
        f"channels_last unless ours; n = {aspp.value['eager']['n']}, bars: half the interquartile "
        "range). Dotted: ASPP.",
        (aspp.source.at("modules"), TALK),
    )


# --------------------------------------------------------------------------------------- dead taps

HEIGHTS = (256, 320, 384, 416, 512, 640, 720, 768, 1024, 1280, 1536, 2048, 2560)
TABLE_HEIGHTS = (256, 512, 1024, 2048)
WITH_DAPF = ("fassd_net", "fassd_net_l1", "fassd_net_l2")


def dead_taps(results: Collection) -> Section:
    """Where DAPF's dilated taps read only padding, by input size."""
    costs = {
        name: [analyze(create_model(name), (height, 2 * height)) for height in HEIGHTS]
        for name in WITH_DAPF
    }
    lines = [
        Series(
            VARIANTS[name].title,
            HEIGHTS,
            [100 * wasted(cost)[0] / wasted(cost)[1] for cost in costs[name]],
            colour,
            marker,
        )
        for name, colour, marker in zip(
            WITH_DAPF, ("vermilion", "blue", "green"), ("o", "s", "^"), strict=True
        )
    ]
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
    rows = []
    for name in WITH_DAPF:
        for height in TABLE_HEIGHTS:
            cost = costs[name][HEIGHTS.index(height)]
            dead, total = wasted(cost)
            dilations = {tap.dilation for tap in cost.dead_taps if "DAPF" in tap.name}
            rows.append(
                (
                    Cell(VARIANTS[name].title),
                    Cell(f"{height}x{2 * height}"),
                    counted("x".join(map(str, map_size(cost)))),
                    counted(inert(cost, axis=0)),
                    counted(inert(cost, axis=1)),
                    counted(f"{dead / 1e6:.1f}"),
                    counted(f"{100 * dead / total:.0f}%" if dilations or dead == 0 else ""),
                )
            )
    table = Table(
        (
            "network",
            "picture",
            "DAPF's map",
            "3x1 inert at dilation",
            "1x3 inert at dilation",
            "saved, MMACs",
            "of DAPF",
        ),
        tuple(rows),
        "An inert convolution has only its middle tap left: it is a 1x1.",
        names=2,
    )
    return Section(
        "Dead dilation taps",
        (
            "Where a dilation is not smaller than the map's side, the outer taps of that "
            "convolution read nothing but padding. The fused kernels skip them; PyTorch "
            "multiplies by zero. Scores on small pictures say nothing about DAPF.",
        ),
        (plot, table),
    )


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

RATIO_FORM = "{:.2f}x"


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
    rows = []
    shared = shared_words(list(groups))
    for group, members in groups.items():
        eager = members.get("eager")
        cells = []
        for candidate in titles:
            entry = members.get(candidate)
            cells.append(benchmark_cell(entry))
        ours = members.get("native")
        own = group.removesuffix(", " + shared) if shared else group
        rows.append((Cell(own), *cells, benchmark_ratio(ours, eager)))
    table = Table(
        ("group", *titles.values(), "speed-up"),
        tuple(rows),
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


def benchmark_cell(entry: Figure | None) -> Cell:
    if entry is None:
        return blank()
    stats = entry.value["stats"]
    text = in_milliseconds(stats["median"], stats["iqr"] / 2)
    return Cell(text, (entry.at("stats", "median"),), "measured")


def benchmark_ratio(entry: Figure | None, over: Figure | None) -> Cell:
    if entry is None or over is None:
        return blank()
    where = (entry.at("stats", "median"), over.at("stats", "median"))
    value = over.value["stats"]["median"] / entry.value["stats"]["median"]
    return Cell(RATIO_FORM.format(value), where, "measured", strong=True)


# -------------------------------------------------------------------------------------------- GPUs


def gpus(results: Collection) -> Section:
    """What was measured on GPUs; else what the time model predicts."""
    title = "GPUs"
    measured = list(results.of("items"))
    predicted = next(results.of("predictions"), None)
    blocks: list[Table] = []
    paragraphs = []
    for source in measured:
        blocks.append(gpu_table(source.at("items"), source.content))
    if not measured:
        paragraphs.append(
            "Nothing was measured on a GPU yet. What follows is a prediction of a model of bytes, "
            "operations and launches that no measurement has calibrated; `make gpu-report` "
            "measures."
        )
    if predicted is not None:
        blocks.append(prediction_table(predicted.at("predictions")))
    if not blocks:
        return missing(title, "a GPU", "make gpu-report")
    return Section(title, tuple(paragraphs), tuple(blocks))


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
    return Table(("network", "input", "form", "ms"), tuple(rows), caption, names=3)


def prediction_table(predictions: Figure) -> Table:
    rows = []
    for index, value in enumerate(predictions.value):
        at = partial(predictions.at, index)
        frames = value["predicted_frames_per_second"]
        rows.append(
            (
                Cell(f"`{value['network']}`"),
                Cell(f"{value['batch']}x3x{value['size'][0]}x{value['size'][1]} {value['dtype']}"),
                Cell(str(value["launches"]), (at("launches"),), "counted"),
                Cell(f"{1e3 * value['floor_s']:.3f}", (at("floor_s"),), "counted"),
                Cell(f"{1e3 * value['predicted_s']:.3f}", (at("predicted_s"),), "predicted"),
                Cell(f"{frames:.0f}", (at("predicted_frames_per_second"),), "predicted"),
            )
        )
    gpu = predictions.value[0]["gpu"]
    return Table(
        ("network", "input", "launches", "floor, ms", "predicted, ms", "predicted frames/s"),
        tuple(rows),
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
