"""The sections on whole networks: the headline, the ablation, speed against accuracy, scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fassd.bench.candidates import OURS, REFERENCE
from fassd.bench.costs.counts import analyze
from fassd.bench.others import OTHERS
from fassd.bench.report.charts import Chart, Point, Series, bar_figure, line_figure, scatter_figure
from fassd.bench.report.figures import (
    CHANNELS_LAST,
    EAGER,
    INDUCTOR,
    MEASURE,
    OURS_HALF,
    OURS_LABELS,
    OURS_LOGITS,
    WAYS,
    Way,
    agrees,
    bars_by_way,
    counted,
    frames,
    machine_text,
    measured,
    milliseconds,
    missing,
    quoted,
    ratio,
    rounds,
    table_by_way,
)
from fassd.bench.report.page import Cell, Plot, Section, Table
from fassd.bench.report.results import Collection, Figure, JobKey, job_of, origin
from fassd.evaluation.agreement import EQUAL_LIMIT
from fassd.models import VARIANTS, create_model, get_variant, list_models

FULL_SIZE = (1024, 2048)
AT_FULL_SIZE = f"at 1x3x{FULL_SIZE[0]}x{FULL_SIZE[1]}"
HEADLINE = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")

AUTHORS = origin(
    "L. Rosas-Arias, G. Benitez-Garcia, J. Portillo-Portillo, J. Olivares-Mercado, "
    "G. Sanchez-Perez, K. Yanai, FASSD-Net, IEEE T-ITS 2021, and the authors' talk: Cityscapes "
    "validation, 1024x2048, GTX 1080 Ti"
)
Jobs = dict[JobKey, Figure]

ICNET = origin(
    "H. Zhao et al., ICNet for Real-Time Semantic Segmentation on High-Resolution Images, ECCV "
    "2018, comparison with PSPNet: Cityscapes test, 1024x2048, Titan X (Maxwell)"
)
PSPNET = Point("PSPNet (test set, Titan X)", 0.78, 81.2, "green", hollow=True)


def full_size(results: Collection, models: Sequence[str]) -> dict[str, Figure]:
    """Comparisons by network at full size, one picture at a time."""
    found = {model: results.comparison(model, FULL_SIZE) for model in models}
    return {model: comparison for model, comparison in found.items() if comparison is not None}


def sources_of(comparisons: Sequence[Figure]) -> tuple[Figure, ...]:
    return tuple(dict.fromkeys(c.source.at("comparisons") for c in comparisons))


def group_name(model: str) -> str:
    """A network's name under a group of bars."""
    return model.replace("baseline_", "baseline\n").replace("_", " ")


# ---------------------------------------------------------------------------------------- headline


def headline(results: Collection) -> Section:
    """Time and speed-up of every network on every runtime."""
    table, plot = headline_table(results), speedup_plot(results)
    if table is None or plot is None:
        return missing("How fast", "networks at full size", MEASURE)
    return Section("How fast", (), (table, plot))


def headline_table(results: Collection) -> Table | None:
    """Milliseconds per picture of every network on every runtime."""
    found = full_size(results, HEADLINE)
    if not found:
        return None
    comparisons = list(found.values())
    caption = (
        f"Milliseconds per picture {AT_FULL_SIZE}, medians of {rounds(comparisons)} interleaved "
        f"rounds ± half the interquartile range. {machine_text(comparisons[0])}; float32 unless "
        "said."
    )
    entries = [(f"`{model}`", comparison) for model, comparison in found.items()]
    return table_by_way("network", entries, WAYS, milliseconds, caption)


def speed_table(results: Collection) -> Table | None:
    """What a visitor asks first: PyTorch, the fastest other runtime, and ours, in float32."""
    found = full_size(results, HEADLINE)
    if not found:
        return None
    others = [way for way in WAYS if way.key != OURS and way.dtype == "float32"]

    def fastest(comparison: Figure) -> tuple[Way, Figure]:
        timed = [(way, way.of(comparison)) for way in others]
        return min(
            ((way, result) for way, result in timed if result is not None and agrees(result)),
            key=lambda pair: pair[1].value["median_s"],
        )

    def named(comparison: Figure) -> Cell:
        way, result = fastest(comparison)
        cell = milliseconds(result)
        return replace(cell, text=f"{cell.text} ({way.label})")

    columns: dict[str, Callable[[str], Cell | str]] = {
        "network": lambda name: f"`{name}`",
        "PyTorch": lambda name: milliseconds(EAGER.of(found[name])),
        "fastest other runtime": lambda name: named(found[name]),
        "ours": lambda name: milliseconds(OURS_LABELS.of(found[name]), strong=True),
        "times PyTorch": lambda name: ratio(OURS_LABELS.of(found[name]), EAGER.of(found[name])),
        "times the fastest other": lambda name: ratio(
            OURS_LABELS.of(found[name]), fastest(found[name])[1]
        ),
    }
    caption = (
        f"Milliseconds per picture {AT_FULL_SIZE} in float32, medians of "
        f"{rounds(list(found.values()))} interleaved rounds ± half the interquartile range; ours: "
        f"labels. {machine_text(next(iter(found.values())))}."
    )
    return Table.of(list(found), columns, caption)


def speedup_plot(results: Collection, models: Sequence[str] | None = None) -> Plot | None:
    """Bars of the speed-up of each runtime over plain PyTorch."""
    found = full_size(results, models or list_models())
    comparisons = list(found.values())
    ways = [w for w in WAYS if w is not EAGER and any(w.of(c) for c in comparisons)]
    if not ways:
        return None
    series = bars_by_way(comparisons, ways)
    best = max((h for bars in series for h in bars.heights if h), default=0)
    return Plot(
        "speedups",
        partial(bar_figure, list(map(group_name, found)), series, "times as fast as PyTorch"),
        f"Bars of speed-ups over plain PyTorch for {len(found)} networks, up to {best:.1f}",
        f"Speed-up over plain PyTorch (NCHW, float32) {AT_FULL_SIZE}; ratios of medians of "
        f"{rounds(comparisons)} interleaved rounds; {machine_text(comparisons[0])}. A bar is left "
        "out where labels differ from plain PyTorch's in more than 1% of the pixels (16 bits and "
        "random weights: rounding is amplified).",
        sources_of(comparisons),
    )


# ---------------------------------------------------------------------------------------- ablation

ORDER = (
    "baseline",
    "baseline_aspp",
    "baseline_dapf",
    "baseline_mda",
    "baseline_aspp_mda",
    "fassd_net",
    "fc_hardnet_70",
    "fassd_net_l1",
    "fassd_net_l2",
)
"""The talk's seven rows, then the light networks."""


def ablation(results: Collection) -> Section:
    """The authors' ablation with this project's counts and times, and the plot of the talk."""
    scores = accuracies(results)
    compared = full_size(results, ORDER)
    costs = {name: analyze(create_model(name), FULL_SIZE) for name in ORDER}
    eager = {name: EAGER.of(comparison) for name, comparison in compared.items()}
    ours = {name: OURS_LABELS.of(comparison) for name, comparison in compared.items()}

    def published(name: str, figure: str) -> Cell:
        return quoted(getattr(VARIANTS[name].published, figure, None), AUTHORS)

    columns: dict[str, Callable[[str], Cell | str]] = {
        "network": lambda name: VARIANTS[name].title,
        "GMACs": lambda name: counted(f"{costs[name].conv_macs / 1e9:.3f}"),
        "parameters": lambda name: counted(f"{costs[name].params:,}"),
        "PyTorch\nframes/s": lambda name: frames(eager.get(name)),
        "ours\nframes/s": lambda name: frames(ours.get(name), strong=True),
        "speed-up": lambda name: ratio(ours.get(name), eager.get(name)),
        "1080 Ti\nframes/s,\nauthors": lambda name: published(name, "fps_1080ti"),
        "mIoU %\nCityscapes,\nauthors": lambda name: published(name, "miou"),
        "mIoU %\nsynthetic,\nhere": lambda name: percent(scores.get(name)),
    }
    table = Table.of(ORDER, columns, f"{AT_FULL_SIZE.capitalize()}, 19 classes, float32.")
    paragraphs = [
        "Figures in italics are quoted from the authors; all others are counted or were "
        "measured by this project. The rows with ASPP are a reconstruction."
    ]
    paragraphs += [str(source.content["note"]) for source in results.of("accuracy")][:1]
    plot = speed_and_accuracy(scores, compared)
    return Section("The ablation, reproduced", paragraphs, (table, plot))


def accuracies(results: Collection) -> dict[str, Figure]:
    """Scores on the synthetic set by network: first those of equal training."""
    found: dict[str, Figure] = {}
    for source in results.of("accuracy"):
        for score in source.at("accuracy").entries():
            found.setdefault(score.value["model"], score)
    return found


def percent(score: Figure | None) -> Cell:
    if score is None:
        return Cell()
    return measured(f"{100 * score.value['miou']:.1f}", score.at("miou"))


def speed_and_accuracy(scores: dict[str, Figure], compared: dict[str, Figure]) -> Plot:
    """The plot in the talk's form: published figures, and figures measured here."""
    published = [PSPNET]
    points = []
    for name in ORDER:
        title, figures = VARIANTS[name].title, VARIANTS[name].published
        colour = {"fc_hardnet_70": "blue"}.get(name, "grey")
        colour = "vermilion" if name.startswith("fassd_net") else colour
        if figures:
            published.append(Point(title, figures.fps_1080ti, figures.miou, colour, hollow=True))
        comparison, score = compared.get(name), scores.get(name)
        ours = comparison and OURS_LABELS.of(comparison)
        eager = comparison and EAGER.of(comparison)
        if ours and eager and score and agrees(ours):
            frames_, before = 1 / ours.value["median_s"], 1 / eager.value["median_s"]
            miou = 100 * score.value["miou"]
            points.append(Point(title, frames_, miou, colour, before=before))
    title = "Published: Cityscapes, 1024x2048, GTX 1080 Ti"
    charts = [Chart(title, "frames per second", "mIoU, %", points=published)]
    wheres: tuple[Figure, ...] = (AUTHORS, ICNET)
    if points:
        source = next(iter(compared.values())).source
        device, threads = source.environment["device"], source.environment["threads"]
        title = f"Measured: synthetic set; {device}, {threads} threads"
        x, y = "frames per second (log)", "mIoU, % (synthetic)"
        charts.append(Chart(title, x, y, points=points, log=True))
        files = {score.name: score.source.at("accuracy") for score in scores.values()}
        wheres += (source.at("comparisons"), *files.values())
    return Plot(
        "speed-accuracy",
        partial(scatter_figure, charts),
        "Scatter of mIoU over frames per second: published figures, and those measured here",
        "Left, hollow: quoted. Right, filled: measured here, the arrow leads from plain PyTorch to "
        "ours (float32, labels); its accuracies are of the synthetic set and of short equal "
        "training, and do not compare with the left.",
        wheres,
    )


# ----------------------------------------------------------------------------------------- scaling

SCALED = (EAGER, CHANNELS_LAST, INDUCTOR, OURS_LOGITS, OURS_HALF)
MARKERS = {EAGER: "s", CHANNELS_LAST: "^", INDUCTOR: "v", OURS_HALF: "D"}


def scaling(results: Collection) -> Section:
    """Time over size, batch and threads, of one network."""
    model = "fassd_net"
    title = "Scaling with size, batch and threads"
    jobs = {job_of(c): c for c in results.comparisons() if job_of(c).model == model}
    own = results.machine[1] if results.machine else 0
    batched = next((j.size for j in jobs if j.batch > 1 and j.threads == own), "")
    threaded = next((j.size for j in jobs if j.batch == 1 and j.threads != own), "")
    rate = "pictures per second"
    sweeps = (
        (
            "size",
            Chart("one picture", "size, megapixels", "ms per picture", log=True),
            {j: c for j, c in jobs.items() if (j.batch, j.threads) == (1, own)},
            lambda j: (j.height * j.width / 1e6, j.size),
            lambda j, seconds: 1e3 * seconds,
        ),
        (
            f"batch of {batched}",
            Chart(f"batches of {batched}", "pictures per call", rate, log=True),
            {j: c for j, c in jobs.items() if (j.size, j.threads) == (batched, own)},
            lambda j: (j.batch, str(j.batch)),
            lambda j, seconds: j.batch / seconds,
        ),
        (
            f"threads, {threaded}",
            Chart(f"threads, one {threaded}", "threads", rate),
            {j: c for j, c in jobs.items() if (j.size, j.batch) == (threaded, 1)},
            lambda j: (j.threads, str(j.threads)),
            lambda j, seconds: 1 / seconds,
        ),
    )
    swept = [sweep(*each) for each in sweeps if len(each[2]) > 1]
    if not swept:
        return missing(title, "other sizes, batches and threads", MEASURE)
    used = [comparison for each in sweeps if len(each[2]) > 1 for comparison in each[2].values()]
    plot = Plot(
        "scaling",
        partial(line_figure, [chart for chart, _ in swept]),
        "Lines of time over size, and of pictures per second over batch and threads",
        f"{model}: medians of {rounds(used)} interleaved rounds; bars: half the interquartile "
        "range.",
        sources_of(used),
    )
    return Section(title, (), (plot, *(table for _, table in swept)))


def sweep(
    heading: str,
    chart: Chart,
    jobs: Jobs,
    x: Callable[[JobKey], tuple[float, str]],
    y: Callable[[JobKey, float], float],
) -> tuple[Chart, Table]:
    """Chart and table of jobs that differ in one property.

    Args:
        heading: heading of the table's first column.
        chart: chart without its lines, one for each way that was measured and agrees in every job.
        x: position on the horizontal axis, with its label.
        y: function from a time in seconds to the chart's value.
    """
    order = sorted(jobs, key=x)
    ticks = [x(job) for job in order]
    lines = []
    for way in SCALED:
        results = [way.of(jobs[job]) for job in order]
        timed = [(j, r.value) for j, r in zip(order, results, strict=True) if r and agrees(r)]
        if len(timed) == len(order):
            middle = [y(j, t["median_s"]) for j, t in timed]
            edges = [y(j, t["median_s"] + t["spread_s"]) for j, t in timed]
            spread = [abs(edge - m) for edge, m in zip(edges, middle, strict=True)]
            xs, marker = [place for place, _ in ticks], MARKERS.get(way, "o")
            lines.append(Series(way.label, xs, middle, way.colour, marker, way.hatched, spread))
    entries = [(name, jobs[job]) for job, (_, name) in zip(order, ticks, strict=True)]
    caption = f"Milliseconds per call, by {heading}; speed-up of ours in float32 over PyTorch."
    table = table_by_way(heading, entries, SCALED, milliseconds, caption)
    ratios = [ratio(OURS_LABELS.of(c) or OURS_LOGITS.of(c), EAGER.of(c)) for _, c in entries]
    rows = [(*row, cell) for row, cell in zip(table.rows, ratios, strict=True)]
    table = replace(table, headings=(*table.headings, "speed-up"), rows=rows)
    return chart._replace(series=lines, ticks=ticks), table


# ----------------------------------------------------------------------------------------- memory


def memory(results: Collection) -> Section:
    """Peak memory of a call, for each network and runtime."""
    found = {
        model: comparison
        for model, comparison in full_size(results, list_models()).items()
        if any(r.get("peak_memory_bytes") for r in comparison.value["results"])
    }
    if not found:
        return missing("Memory", "peak memory", f"{MEASURE} --full")
    caption = (
        f"Peak MiB that a second call adds to the loaded model {AT_FULL_SIZE}, each in a process "
        "of its own."
    )
    comparisons = list(found.values())
    entries = [(f"`{model}`", comparison) for model, comparison in found.items()]
    table = table_by_way("network", entries, WAYS, mebibytes, caption)
    ways = [way for way in WAYS if way.label in table.headings]
    series = bars_by_way(comparisons, ways, lambda way, c: peak(way.of(c)))
    groups = list(map(group_name, found))
    plot = Plot(
        "memory",
        partial(bar_figure, groups, series, "MiB", form="{:.0f}", line=None),
        "Bars of peak memory of each network on each runtime",
        f"Peak memory of a call {AT_FULL_SIZE}; {machine_text(comparisons[0])}; n = 1.",
        sources_of(comparisons),
    )
    return Section("Memory", (), (plot, table))


def peak(result: Figure | None) -> float | None:
    """Peak memory in MiB."""
    size = None if result is None else result.get("peak_memory_bytes")
    return None if size is None else size / 2**20


def mebibytes(result: Figure | None, strong: bool = False) -> Cell:
    size = peak(result)
    if result is None or size is None:
        return Cell()
    return measured(f"{size:.0f}", result.at("peak_memory_bytes"), strong=strong)


# ------------------------------------------------------------------------------ networks of others

PEERS = tuple(way for way in WAYS if way.dtype == "float32" and way.key not in (REFERENCE, OURS))


def other_networks(results: Collection) -> Section:
    """Networks of other projects, and FASSD-Net on their encoders, if they were measured."""
    title = "Other networks"
    table = others_table(results)
    if table is None:
        return missing(title, "networks of others", "fassd bench peers --others")
    return Section(title, (), (table,))


def others_table(results: Collection) -> Table | None:
    """Milliseconds of other projects' networks by every way to run them, and published figures."""
    found = [c for c in results.comparisons() if c.value["job"]["model"] not in VARIANTS]
    if not found:
        return None
    ways = [way for way in (EAGER, *PEERS, OURS_LOGITS) if any(map(way.of, found))]
    columns: dict[str, Callable[[Figure], Cell | str]] = {
        "network": lambda c: title_of(c.value["job"]["model"]),
        "input": lambda c: job_of(c).shape.replace("1x3x", ""),
    }
    for way in ways:
        columns[way.label] = partial(time_by, way)
    columns |= {
        "x fastest other": over_others,
        "difference: PyTorch, ours": lambda c: pair(c, "max_relative_difference", "{:.0e}"),
        "MiB: PyTorch, ours": lambda c: pair(c, "peak_memory_bytes", "{:.0f}", 2**-20),
        "ours frames/s": lambda c: frames(OURS_LOGITS.of(c), c.value["job"]["batch"]),
        "published frames/s": published_rates,
    }
    caption = (
        f"Milliseconds per picture, medians of {rounds(found)} interleaved rounds ± half the "
        f"interquartile range; {machine_text(found[0])}; float32. x fastest other: how many times "
        "as fast as the fastest column that is not ours. Difference: the largest one of an output "
        "from the network's in float64, over the largest value. MiB: peak of a call beyond the "
        "loaded model."
    )
    return Table.of(found, columns, caption, names=2)


def time_by(way: Way, comparison: Figure) -> Cell:
    return milliseconds(way.of(comparison), way is OURS_LOGITS)


def title_of(model: str) -> str:
    """A network's name for readers."""
    others = {network.model: network.title for network in OTHERS}
    name, _, encoder = model.partition("@")
    if name in VARIANTS and encoder:
        return f"{get_variant(name).title}, {encoder}"
    return others.get(model, model.rpartition(":")[2])


def over_others(comparison: Figure) -> Cell:
    """Speed-up over the fastest other way; "differs" beyond float32's rounding."""
    ours, eager = OURS_LOGITS.of(comparison), EAGER.of(comparison)
    peers = [p for p in (way.of(comparison) for way in (EAGER, *PEERS)) if p and agrees(p)]
    if ours is None or eager is None:
        return Cell()
    fastest = min(peers, key=lambda result: result.value["median_s"])
    found, rounding = (r.value["max_relative_difference"] for r in (ours, eager))
    if not found <= max(EQUAL_LIMIT, 2 * rounding):
        return measured("differs", ours.at("max_relative_difference"))
    return ratio(ours, fastest, strong=True)


def pair(comparison: Figure, key: str, form: str, unit: float = 1) -> Cell:
    """A figure for plain PyTorch and for ours."""
    results = [way.of(comparison) for way in (EAGER, OURS_LOGITS)]
    places = [result.at(key) for result in results if result and result.get(key) is not None]
    text = ", ".join(form.format(unit * place.value) for place in places)
    return measured(text, *places) if len(places) == 2 else Cell()


def published_rates(comparison: Figure) -> Cell:
    """Published figures, with the device."""
    model = comparison.value["job"]["model"]
    found = [each for network in OTHERS if network.model == model for each in network.reports]
    text = "; ".join(f"{each.fps:g} ({each.data}, {each.device})" for each in found)
    return Cell(text, tuple(origin(each.source) for each in found), "quoted" if found else "")
