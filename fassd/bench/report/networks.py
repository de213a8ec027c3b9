"""The sections on whole networks: the headline, the ablation, speed against accuracy, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from fassd.bench.costs.counts import analyze
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
    agrees,
    bars_by_way,
    counted,
    frames,
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
from fassd.bench.results import OTHER
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


def machine_text(comparison: Figure) -> str:
    facts = comparison.source.environment
    return (
        f"{facts['device']}, {facts['threads']} threads, {facts.get('instruction_set', '')}, "
        f"torch {facts['torch']}, {facts['date'][:10]}"
    )


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


def headline_table(results: Collection, models: Sequence[str] = HEADLINE) -> Table | None:
    """Milliseconds per picture of every network on every runtime."""
    found = full_size(results, models)
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


def speedup_plot(results: Collection, models: Sequence[str] | None = None) -> Plot | None:
    """Bars: how many times as fast as plain PyTorch each runtime is."""
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
    """The authors' ablation with counts and times of this project, and the plot of the talk."""
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
    """Scores on the synthetic set by network: those of equal training first."""
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
    """The plot in the talk's form: published figures, and those measured here."""
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


def scaling(results: Collection, model: str = "fassd_net") -> Section:
    """Time over size, batch and threads, of one network."""
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
    """Chart and table of jobs that differ in one thing.

    Args:
        heading: heading of the table's first column.
        chart: without its lines, one for each way that was measured, and agrees, in every job.
        x: place on the horizontal axis, with its label.
        y: what the chart shows for a time in seconds.
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
    """Peak memory of a call, of each network and runtime."""
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


def other_networks(results: Collection) -> Section:
    """Networks of others that do the same job, where they were measured."""
    title = "Other networks with the same job"
    compared: Jobs = {}
    for comparison in results.every_comparison():
        kinds = [result.get("kind") for result in comparison.value["results"]]
        if OTHER in kinds:
            compared.setdefault(job_of(comparison), comparison)
    if not compared:
        return missing(title, "networks of others", "fassd bench peers --others")
    rows = [row for comparison in compared.values() for row in rows_with_others(comparison)]
    table = Table(
        ("network", "input", "GMACs", "M parameters", "ms", "frames/s"),
        rows,
        "Published architectures as other packages carry them, 19 classes, random weights, same "
        f"size and precision, interleaved; {machine_text(next(iter(compared.values())))}.",
        names=2,
    )
    note = "These are other networks: their labels differ, so only size and speed can be compared."
    return Section(title, (note,), (table,))


def rows_with_others(comparison: Figure) -> Iterator[tuple[Cell, ...]]:
    """Ours, the same network in PyTorch, then those of others."""
    job = comparison.value["job"]

    def row(
        name: str, macs: float, params: float, result: Figure, strong: bool, *where: Figure
    ) -> tuple[Cell, ...]:
        return (
            Cell(name),
            Cell(job_of(comparison).shape),
            counted(f"{macs / 1e9:.2f}", *where[:1]),
            counted(f"{params / 1e6:.2f}", *where[1:]),
            milliseconds(result, strong),
            frames(result, job["batch"], strong),
        )

    cost = analyze(create_model(job["model"], job["classes"], job["alpha"]), tuple(job["size"]))
    title = get_variant(job["model"]).title
    for name, way in ((f"{title}, ours", OURS_LOGITS), (f"{title}, PyTorch", EAGER)):
        own = way.of(comparison)
        if own is not None:
            yield row(name, cost.conv_macs, cost.params, own, way is OURS_LOGITS)
    for result in comparison.at("results").entries():
        if result.get("kind") == OTHER:
            macs, params = result.at("macs"), result.at("params")
            name = str(result.value["name"])
            yield row(name, macs.value, params.value, result, False, macs, params)
