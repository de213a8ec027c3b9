"""The sections on parts: factorisation, dead taps, layers, operators, GPUs, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fassd.bench.costs.counts import Complexity, analyze
from fassd.bench.report.charts import Chart, Series, layer_figure, line_figure
from fassd.bench.report.figures import (
    COUNTED,
    MEASURE,
    counted,
    in_milliseconds,
    machine_text,
    measured,
    milliseconds,
    missing,
    ratio,
)
from fassd.bench.report.page import Cell, PagePicture, Plot, Section, Table
from fassd.bench.report.results import Collection, Figure, ResultsFile, origin
from fassd.models import VARIANTS, create_model

TALK = origin("the authors' talk on FASSD-Net: half the operations at alpha 2")


# ----------------------------------------------------------------------------------- factorisation


def factorisation(results: Collection) -> Section:
    """DAPF against ASPP and against itself with 3x3s; MDA likewise."""
    title = "What factorising buys"
    source = results.first("modules")
    if source is None:
        return missing(title, "the modules", MEASURE)
    entries = source.at("modules").entries()
    context = [e for e in entries if e.value["group"] == "context"]
    decoder = [e for e in entries if e.value["group"] != "context"]
    size = dimensions(*source.content["size"])
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
    bases = {e.value["group"]: e.at("macs") for e in entries if e.value["name"] == base}

    def name(entry: Figure) -> str:
        value = entry.value
        place = "" if value["group"] == "context" else f"{value['group']}: "
        return f"{place}{value['name']}" + (f", alpha {value['alpha']}" if value["alpha"] else "")

    def share(entry: Figure) -> Cell:
        macs, over = entry.at("macs"), bases[entry.value["group"]]
        return counted(f"{100 * macs.value / over.value:.0f}%", macs, over)

    def fused(entry: Figure) -> Figure | None:
        return entry.at("fused") if entry.value["fused"] else None

    columns: dict[str, Callable[[Figure], Cell | str]] = {
        "module": name,
        "GMACs": lambda e: counted(f"{e.value['macs'] / 1e9:.3f}", e.at("macs")),
        f"of {base}": share,
        "parameters": lambda e: counted(f"{e.value['params']:,}", e.at("params")),
        "PyTorch, ms": lambda e: milliseconds(e.at("eager")),
        "ours, ms": lambda e: milliseconds(fused(e), strong=True),
        "speed-up": lambda e: ratio(fused(e), e.at("eager")),
    }
    n = min(entry.value["eager"]["n"] for entry in entries)
    return Table.of(
        entries,
        columns,
        f"{caption} PyTorch in channels_last, float32, medians of {n} interleaved rounds "
        "± half the interquartile range.",
    )


def factorisation_plot(context: Sequence[Figure], size: str) -> Plot:
    def of(name: str) -> list[Mapping[str, Any]]:
        found = [entry.value for entry in context if entry.value["name"] == name]
        return sorted(found, key=lambda value: value["alpha"] or 0)

    dapf, square, (aspp, *_) = of("DAPF"), of("DAPF with 3x3"), of("ASPP")
    alphas = [value["alpha"] for value in dapf]
    styles = {
        "DAPF": ("sky", "o", False),
        "DAPF with 3x3": ("grey", "s", True),
        "DAPF, ours": ("vermilion", "D", False),
    }

    def macs(label: str, values: list[Mapping[str, Any]]) -> Series:
        return Series(label, alphas, [value["macs"] / 1e9 for value in values], *styles[label])

    def time(label: str, values: list[Mapping[str, Any]], form: str) -> Series:
        medians = [1e3 * value[form]["median_s"] for value in values]
        spreads = [1e3 * value[form]["spread_s"] for value in values]
        return Series(label, alphas, medians, *styles[label], spreads)

    series = [time("DAPF", dapf, "eager"), time("DAPF with 3x3", square, "eager")]
    lines = [("ASPP", 1e3 * aspp["eager"]["median_s"], "green")]
    if all(value["fused"] for value in dapf):
        series.append(time("DAPF, ours", dapf, "fused"))
    if aspp["fused"]:
        lines.append(("ASPP, ours", 1e3 * aspp["fused"]["median_s"], "orange"))
    counts = [macs("DAPF", dapf), macs("DAPF with 3x3", square)]
    asked = [("ASPP", aspp["macs"] / 1e9, "green")]
    ticks = [(float(alpha), str(alpha)) for alpha in alphas]
    charts = [
        Chart("operations", "alpha", "GMACs", counts, ticks=ticks, lines=asked),
        Chart("time", "alpha", "ms", series, ticks=ticks, lines=lines),
    ]
    return Plot(
        "factorisation",
        partial(line_figure, charts),
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
    """Input sizes at which DAPF's dilated taps only read padding."""
    costs = {
        name: [analyze(network, (h, 2 * h), name=VARIANTS[name].title) for h in HEIGHTS]
        for name, network in ((name, create_model(name)) for name in STYLES)
    }
    lines = [
        Series(VARIANTS[name].title, HEIGHTS, list(map(dead_share, costs[name])), *style)
        for name, style in STYLES.items()
    ]
    chart = Chart(
        "taps that read only padding",
        "picture height (width is twice that), pixels",
        "share of DAPF's multiply-accumulates, %",
        lines,
        log=True,
        ticks=[(float(h), str(h)) for h in (256, 416, 640, 1024, 1536, 2560)],
    )
    plot = Plot(
        "dead-taps",
        partial(line_figure, [chart]),
        "Lines: share of DAPF's operations that are dead, by picture height, three networks",
        "Counted, not measured: every tap of a dilated convolution that lies in the padding for "
        "every pixel of the map. At 100% less the share, DAPF is what is left.",
        (COUNTED,),
    )
    columns: dict[str, Callable[[Complexity], Cell | str]] = {
        "network": lambda cost: cost.model,
        "picture": lambda cost: dimensions(*cost.input_shape[2:]),
        "DAPF's map": lambda cost: counted(dimensions(*map_size(cost))),
        "3x1 inert at dilation": lambda cost: counted(inert(cost, axis=0)),
        "1x3 inert at dilation": lambda cost: counted(inert(cost, axis=1)),
        "saved, MMACs": lambda cost: counted(f"{wasted(cost)[0] / 1e6:.1f}"),
        "of DAPF": lambda cost: counted(f"{dead_share(cost):.0f}%"),
    }
    shown = [c for each in costs.values() for c in each if c.input_shape[2] in TABLE_HEIGHTS]
    caption = "An inert convolution has only its middle tap left: it is a 1x1."
    paragraph = (
        "Where a dilation is not smaller than the map's side, the outer taps of that "
        "convolution read nothing but padding. The fused kernels skip them; PyTorch "
        "multiplies by zero. Scores on small pictures say nothing about DAPF."
    )
    table = Table.of(shown, columns, caption, names=2)
    return Section("Dead dilation taps", (paragraph,), (plot, table))


def wasted(cost: Complexity) -> tuple[int, int]:
    """Multiply-accumulates of DAPF's dead taps, and of all its taps."""
    dead = sum(tap.wasted_macs for tap in cost.dead_taps if tap.name.startswith("DAPF"))
    total = sum(part.conv_macs for part in cost.parts if part.name.startswith("DAPF"))
    return dead, total


def dead_share(cost: Complexity) -> float:
    """Share of DAPF's multiply-accumulates in per cent."""
    dead, total = wasted(cost)
    return 100 * dead / total


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
    """Time of each fused call compared with its floor."""
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
    """Measurements of `pytest benchmarks/`: the modules that FASSD-Net is named for."""
    title = "Operators and modules"
    source = results.first("benchmarks")
    command = "pytest benchmarks/ --benchmark-json DIR/results/pytest.json"
    table = None if source is None else namesakes_table(source)
    if table is None:
        return missing(title, "single modules", command)
    return Section(title, (f"From `{command}`.",), (table,))


NAMESAKES = {
    "DAPF(224)": "DAPF",
    "MDA(192, 8)": "MDA at 1/16",
    "MDA(119, 4)": "MDA at 1/8",
    "MDA(63, 2)": "MDA at 1/4",
    "asymmetric_conv DAPF.pyBranch2": "3x1 and 1x3 of DAPF",
    "asymmetric_conv mda.2": "3x1 and 1x3 of the last MDA",
}
"""Subject of `pytest benchmarks/` -> its name in a table: what FASSD-Net is named for."""

SHOWN = {"eager": "PyTorch", "compile": "torch.compile", "native": "ours", "triton": "ours, Triton"}


def namesakes_table(source: ResultsFile) -> Table | None:
    """The modules that the network is named for, in float32, at each size that was measured."""
    found: dict[tuple[str, str, str], Figure] = {}
    for entry in source.at("benchmarks").entries():
        facts = entry.get("extra_info", {})
        if facts.get("subject") in NAMESAKES and facts["dtype"] == "float32":
            size = f"{facts['height']}x{facts['width']}"
            found[facts["subject"], size, facts["candidate"]] = entry.at("stats")
    if not found:
        return None
    sizes = sorted({size for _, size, _ in found}, key=lambda size: int(size.partition("x")[0]))

    def cell(size: str, key: str, name: str) -> Cell:
        time = benchmark_cell(found.get((name, size, key)))
        return replace(time, strong=key in ("native", "triton"))

    columns: dict[str, Callable[[str], Cell | str]] = {"module": NAMESAKES.__getitem__}
    for size in sizes:
        for key, title in SHOWN.items():
            if any((name, size, key) in found for name in NAMESAKES):
                columns[f"{size}: {title}"] = partial(cell, size, key)
    caption = (
        f"Milliseconds in float32 at the module's place in a picture of {' and '.join(sizes)}, "
        f"medians ± half the interquartile range. {machine_text(source.at())}."
    )
    return Table.of(list(NAMESAKES), columns, caption)


def benchmark_cell(stats: Figure | None) -> Cell:
    if stats is None:
        return Cell()
    text = in_milliseconds(stats.value["median"], stats.value["iqr"] / 2)
    return measured(text, stats.at("median"))


# -------------------------------------------------------------------------------------------- GPUs


def gpus(results: Collection) -> Section:
    """Measurements on GPUs."""
    blocks = [gpu_table(source.at("items"), source.content) for source in results.of("items")]
    if not blocks:
        return missing("GPUs", "a GPU", "make gpu-report")
    return Section("GPUs", (), blocks)


def gpu_table(items: Figure, report: Mapping[str, Any]) -> Table:
    """Networks in a GPU's report: the time of every form."""
    forms = [
        (item.value["data"], form)
        for item in items.entries()
        if item.value["part"] == "networks" and item.get("data")
        for form in item.at("data", "candidates").entries()
        if "timing" in form.value
    ]

    def milliseconds(form: Figure) -> Cell:
        median = form.at("timing", "median_s")
        text = f"{1e3 * median.value:.3f}" if form.get("match") else "disagrees"
        return measured(text, median)

    columns: dict[str, Callable[[tuple[Any, Figure]], Cell | str]] = {
        "network": lambda each: f"`{each[0]['subject']}`",
        "input": lambda each: "{batch}x3x{height}x{width} {dtype}".format(**each[0]),
        "form": lambda each: each[1].value["name"],
        "ms": lambda each: milliseconds(each[1]),
    }
    caption = f"Measured on {report.get('device', '')}, {str(report.get('date', ''))[:10]}."
    return Table.of(forms, columns, caption, names=3)


def dimensions(*sides: int) -> str:
    return "x".join(map(str, sides))


# ------------------------------------------------------------------------------------------- panel


def panel(results: Collection) -> Section:
    """Input, ground truth and the predictions of networks."""
    title = "To see"
    for source in results.of("accuracy"):
        name = source.content.get("panel")
        path = source.path.parent / name if name else None
        if path is not None and path.is_file():
            picture = PagePicture(
                "panel",
                path.read_bytes(),
                "Input, ground truth and the labels of four networks, side by side",
                str(source.content["note"]),
                (source.at("panel"),),
            )
            return Section(title, (), (picture,))
    return missing(title, "a panel of predictions", "python -m benchmarks.ablation")
