"""The sections on whole networks: the headline, the ablation, speed against accuracy, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fassd.bench.candidates import OURS, REFERENCE
from fassd.bench.costs.counts import analyze
from fassd.bench.plotting import COLOURS, Bars
from fassd.bench.report.page import Cell, Picture, Plot, Section, Table, blank
from fassd.bench.report.plots import Panel, Point, Series, bar_figure, line_figure, scatter_figure
from fassd.bench.report.results import Collection, Figure, Origin, job_of
from fassd.bench.results import OTHER
from fassd.models import VARIANTS, create_model, list_models

__all__ = ["FULL_SIZE", "HEADLINE", "ablation", "headline", "headline_table", "speedup_plot"]

FULL_SIZE = (1024, 2048)
HEADLINE = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")

AUTHORS = Origin(
    "L. Rosas-Arias, G. Benitez-Garcia, J. Portillo-Portillo, J. Olivares-Mercado, "
    "G. Sanchez-Perez, K. Yanai, FASSD-Net, IEEE T-ITS 2021, and the authors' talk: Cityscapes "
    "validation, 1024x2048, GTX 1080 Ti"
)
ICNET = Origin(
    "H. Zhao et al., ICNet for Real-Time Semantic Segmentation on High-Resolution Images, ECCV "
    "2018, comparison with PSPNet: Cityscapes test, 1024x2048, Titan X (Maxwell)"
)
COUNTED = Origin("counted by `fassd info`, exact to the authors' figures (tests/golden)")

PSPNET_FPS, PSPNET_MIOU = 0.78, 81.2


@dataclass(frozen=True)
class Way:
    """A way to run a network, as a column or a series.

    Attributes:
        label: heading.
        key, dtype, output: of `fassd.bench.candidates.Candidate`.
        colour: a key of `COLOURS`.
        hatched: in bars.
    """

    label: str
    key: str
    dtype: str = "float32"
    output: str = "logits"
    colour: str = "grey"
    hatched: bool = False

    def of(self, comparison: Figure) -> Figure | None:
        """Its result in a comparison."""
        for index, result in enumerate(comparison.value["results"]):
            here = (result["key"], result["dtype"], result["output"])
            if here == (self.key, self.dtype, self.output):
                return comparison.at("results", index)
        return None


EAGER = Way("PyTorch", REFERENCE)
CHANNELS_LAST = Way("PyTorch channels last", "channels_last", colour="silver")
INDUCTOR = Way("Inductor, freezing", "inductor", colour="sky")
OURS_LOGITS = Way("ours", OURS, colour="vermilion")
OURS_LABELS = Way("ours, labels", OURS, output="labels", colour="vermilion", hatched=True)
OURS_HALF = Way("ours float16, labels", OURS, "float16", "labels", "purple", hatched=True)
WAYS = (
    EAGER,
    CHANNELS_LAST,
    INDUCTOR,
    Way("ONNX Runtime", "onnxruntime", colour="green"),
    Way("OpenVINO", "openvino", colour="orange"),
    Way("OpenVINO bfloat16", "openvino_bf16", "bfloat16", colour="orange", hatched=True),
    OURS_LOGITS,
    OURS_LABELS,
    OURS_HALF,
)


def agrees(result: Figure) -> bool:
    return result.get("match") is not False


def milliseconds(result: Figure | None, strong: bool = False) -> Cell:
    """Median and half the interquartile range; of a result that disagrees, the word."""
    if result is None:
        return blank()
    if not agrees(result):
        return Cell("disagrees", (result.at("match"),), "measured")
    text = in_milliseconds(result.value["median_s"], result.value["spread_s"])
    return Cell(text, (result.at("median_s"),), "measured", strong)


def in_milliseconds(median: float, spread: float) -> str:
    """Seconds with their spread as text, to about three digits."""
    places = next((n for n, least in enumerate((0.1, 0.01, 0.001)) if median >= least), 3)
    return f"{1e3 * median:.{places}f} ±{1e3 * spread:.{places}f}"


def frames(result: Figure | None, batch: int = 1, strong: bool = False) -> Cell:
    """Pictures per second."""
    if result is None or not agrees(result):
        return milliseconds(result)
    rate = batch / result.value["median_s"]
    return Cell(f"{rate:.1f}", (result.at("median_s"),), "measured", strong)


def ratio(result: Figure | None, over: Figure | None, strong: bool = False) -> Cell:
    """How many times as fast `result` is as `over`; nothing where either disagrees."""
    value = ratio_value(result, over)
    if value is None or result is None or over is None:
        return blank("-" if result is not None else "")
    where = (result.at("median_s"), over.at("median_s"))
    return Cell(f"{value:.2f}x", where, "measured", strong)


def ratio_value(result: Figure | None, over: Figure | None) -> float | None:
    if result is None or over is None or not (agrees(result) and agrees(over)):
        return None
    return over.value["median_s"] / result.value["median_s"]


def quoted(value: Any, origin: Origin = AUTHORS) -> Cell:
    return blank() if value is None else Cell(str(value), (origin,), "quoted")


def counted(text: str) -> Cell:
    return Cell(text, (COUNTED,), "counted")


def full_size(results: Collection, models: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Networks with their comparison at full size, one picture at a time."""
    for model in models:
        comparison = results.comparison(model, FULL_SIZE)
        if comparison is not None:
            yield model, comparison


def rounds(comparisons: Sequence[Figure]) -> str:
    """How often calls were measured: "7" or "5 to 7"."""
    counts = sorted({r["n"] for c in comparisons for r in c.value["results"] if r["n"]})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"


def machine_text(comparison: Figure) -> str:
    facts = comparison.source.environment
    return (
        f"{facts['device']}, {facts['threads']} threads, {facts.get('instruction_set', '')}, "
        f"torch {facts['torch']}, {facts['date'][:10]}"
    )


def missing(title: str, what: str, command: str) -> Section:
    """A section that says what is not there and how to get it."""
    return Section(title, (f"Not measured here: {what}. `{command}` does.",))


# ---------------------------------------------------------------------------------------- headline


def headline_table(results: Collection, models: Sequence[str] = HEADLINE) -> Table | None:
    """Milliseconds per picture of every network on every runtime."""
    found = list(full_size(results, models))
    if not found:
        return None
    ways = [way for way in WAYS if any(way.of(comparison) for _, comparison in found)]
    rows = []
    for model, comparison in found:
        cells = [milliseconds(way.of(comparison), way.key == OURS) for way in ways]
        rows.append((Cell(f"`{model}`"), *cells))
    comparisons = [comparison for _, comparison in found]
    caption = (
        f"Milliseconds per picture at 1x3x{FULL_SIZE[0]}x{FULL_SIZE[1]}, medians of "
        f"{rounds(comparisons)} interleaved rounds ± half the interquartile range. "
        f"{machine_text(comparisons[0])}; float32 unless said."
    )
    return Table(("network", *(way.label for way in ways)), tuple(rows), caption)


def speedup_plot(results: Collection, models: Sequence[str] | None = None) -> Plot | None:
    """Bars: how many times as fast as plain PyTorch each runtime is."""
    found = list(full_size(results, models or list_models()))
    ways = [w for w in WAYS if w is not EAGER and any(w.of(c) for _, c in found)]
    if not found or not ways:
        return None
    series = [
        Bars(
            way.label,
            [ratio_value(way.of(c), EAGER.of(c)) for _, c in found],
            COLOURS[way.colour],
            way.hatched,
        )
        for way in ways
    ]
    groups = [model.replace("baseline_", "baseline\n").replace("_", " ") for model, _ in found]
    draw = partial(bar_figure, groups, series, "times as fast as PyTorch")
    best = max((h for bars in series for h in bars.heights if h), default=0)
    comparisons = [comparison for _, comparison in found]
    return Plot(
        "speedups",
        draw,
        f"Bars of speed-ups over plain PyTorch for {len(found)} networks, up to {best:.1f}",
        "Speed-up over plain PyTorch (NCHW, float32) at "
        f"1x3x{FULL_SIZE[0]}x{FULL_SIZE[1]}; ratios of medians of "
        f"{rounds(comparisons)} interleaved rounds; {machine_text(comparisons[0])}. A bar is left "
        "out where labels differ from plain PyTorch's in more than 1% of the pixels (16 bits and "
        "random weights: rounding is amplified).",
        tuple(dict.fromkeys(c.source.at("comparisons") for c in comparisons)),
    )


def headline(results: Collection) -> Section:
    title = "How fast"
    table, plot = headline_table(results), speedup_plot(results)
    if table is None or plot is None:
        return missing(title, "networks at full size", "fassd report -o DIR --measure")
    return Section(title, (), (table, plot))


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


def accuracies(results: Collection) -> dict[str, Figure]:
    """Scores on the synthetic set by network: those of equal training first."""
    found: dict[str, Figure] = {}
    for source in results.of("accuracy"):
        for index, row in enumerate(source.content["accuracy"]):
            found.setdefault(row["model"], source.at("accuracy", index))
    return found


def ablation(results: Collection) -> Section:
    scores = accuracies(results)
    compared = dict(full_size(results, ORDER))
    rows = []
    for name in ORDER:
        variant, comparison, score = VARIANTS[name], compared.get(name), scores.get(name)
        cost = analyze(create_model(name), FULL_SIZE)
        published = variant.published
        eager = comparison and EAGER.of(comparison)
        ours = comparison and OURS_LABELS.of(comparison)
        rows.append(
            (
                Cell(variant.title),
                counted(f"{cost.conv_macs / 1e9:.3f}"),
                counted(f"{cost.params:,}"),
                frames(eager),
                frames(ours, strong=True),
                ratio(ours, eager),
                quoted(published and published.fps_1080ti),
                quoted(published and published.miou),
                blank()
                if score is None
                else Cell(f"{100 * score.value['miou']:.1f}", (score.at("miou"),), "measured"),
            )
        )
    headings = (
        "network",
        "GMACs",
        "parameters",
        "PyTorch\nframes/s",
        "ours\nframes/s",
        "speed-up",
        "1080 Ti\nframes/s,\nauthors",
        "mIoU %\nCityscapes,\nauthors",
        "mIoU %\nsynthetic,\nhere",
    )
    table = Table(headings, tuple(rows), "At 1x3x1024x2048, 19 classes, float32.")
    paragraphs = [
        "Figures in italics are quoted from the authors; all others are counted or were "
        "measured by this project. The rows with ASPP are a reconstruction."
    ]
    source = next(results.of("accuracy"), None)
    if source is not None:
        paragraphs.append(str(source.content["note"]))
    points = points_of(results, scores, compared)
    blocks: list[Table | Plot | Picture] = [table]
    return Section("The ablation, reproduced", tuple(paragraphs), (*blocks, *points))


def points_of(
    results: Collection, scores: dict[str, Figure], compared: dict[str, Figure]
) -> Iterator[Plot]:
    """The plot in the talk's form: published figures, and those measured here."""
    published = [Point("PSPNet (test set, Titan X)", PSPNET_FPS, PSPNET_MIOU, "green", hollow=True)]
    for name in ORDER:
        figures = VARIANTS[name].published
        if figures:
            point = Point(
                VARIANTS[name].title, figures.fps_1080ti, figures.miou, colour_of(name), hollow=True
            )
            published.append(point)
    panels = [
        Panel(
            "Published: Cityscapes, 1024x2048, GTX 1080 Ti",
            "frames per second",
            "mIoU, %",
            points=published,
        )
    ]
    measured = []
    for name, comparison in compared.items():
        ours, eager, score = OURS_LABELS.of(comparison), EAGER.of(comparison), scores.get(name)
        if ours is None or eager is None or score is None or not agrees(ours):
            continue
        measured.append(
            Point(
                VARIANTS[name].title,
                1 / ours.value["median_s"],
                100 * score.value["miou"],
                colour_of(name),
                before=1 / eager.value["median_s"],
            )
        )
    wheres: tuple[Figure | Origin, ...] = (AUTHORS, ICNET)
    if measured:
        first = next(iter(compared.values()))
        facts = first.source.environment
        panels.append(
            Panel(
                f"Measured: synthetic set; {facts['device']}, {facts['threads']} threads",
                "frames per second (log)",
                "mIoU, % (synthetic)",
                points=measured,
                log=True,
            )
        )
        wheres += (first.source.at("comparisons"),)
        wheres += tuple(
            {score.source.name: score.source.at("accuracy") for score in scores.values()}.values()
        )
    yield Plot(
        "speed-accuracy",
        partial(scatter_figure, panels),
        "Scatter of mIoU over frames per second: published figures, and those measured here",
        "Left, hollow: quoted. Right, filled: measured here, the arrow leads from plain PyTorch to "
        "ours (float32, labels); its accuracies are of the synthetic set and of short equal "
        "training, and do not compare with the left.",
        wheres,
    )


def colour_of(name: str) -> str:
    if name.startswith("fassd_net"):
        return "vermilion"
    return "blue" if name == "fc_hardnet_70" else "grey"


# ----------------------------------------------------------------------------------------- scaling


def scaling(results: Collection, model: str = "fassd_net") -> Section:
    """Time over size, batch and threads, of one network."""
    title = "Scaling with size, batch and threads"
    jobs = {key(c): c for c in results.comparisons() if c.value["job"]["model"] == model}
    machine = results.machine
    if machine is None:
        return missing(title, "other sizes", "fassd report -o DIR --measure")
    threads = machine[1]
    by_size = [c for (_, batch, t), c in jobs.items() if batch == 1 and t == threads]
    by_size.sort(key=pixels)
    batched = [size for size, batch, t in jobs if batch > 1 and t == threads]
    threaded = [size for size, batch, t in jobs if batch == 1 and t != threads]
    by_batch = [
        c for (size, _, t), c in jobs.items() if t == threads and batched and size == batched[0]
    ]
    by_batch.sort(key=lambda c: c.value["job"]["batch"])
    by_threads = [
        c for (size, b, _), c in jobs.items() if b == 1 and threaded and size == threaded[0]
    ]
    by_threads.sort(key=thread_count)
    panels = []
    tables = []
    if len(by_size) > 1:
        ticks = [(pixels(c) / 1e6, "x".join(map(str, c.value["job"]["size"]))) for c in by_size]
        per_picture = lines(by_size, [t for t, _ in ticks], lambda c, s: 1e3 * s)
        panels.append(
            Panel(
                "one picture",
                "size, megapixels",
                "ms per picture",
                per_picture,
                log=True,
                ticks=ticks,
            )
        )
        tables.append(scaling_table("size", [t for _, t in ticks], by_size))
    if len(by_batch) > 1:
        batches = [c.value["job"]["batch"] for c in by_batch]
        size = "x".join(map(str, batched[0]))
        rate = lines(by_batch, batches, lambda c, s: c.value["job"]["batch"] / s)
        places = [(float(b), str(b)) for b in batches]
        panels.append(
            Panel(
                f"batches of {size}",
                "pictures per call",
                "pictures per second",
                rate,
                log=True,
                ticks=places,
            )
        )
        tables.append(scaling_table(f"batch of {size}", list(map(str, batches)), by_batch))
    if len(by_threads) > 1:
        counts = [thread_count(c) for c in by_threads]
        size = "x".join(map(str, threaded[0]))
        rate = lines(by_threads, counts, lambda c, s: 1 / s)
        places = [(float(n), str(n)) for n in counts]
        panels.append(
            Panel(f"threads, one {size}", "threads", "pictures per second", rate, ticks=places)
        )
        tables.append(scaling_table(f"threads, {size}", list(map(str, counts)), by_threads))
    if not panels:
        return missing(title, "other sizes, batches and threads", "fassd report -o DIR --measure")
    used = [*by_size, *by_batch, *by_threads]
    sources = tuple(dict.fromkeys(c.source.at("comparisons") for c in used))
    plot = Plot(
        "scaling",
        partial(line_figure, panels),
        "Lines of time over size, and of pictures per second over batch and threads",
        f"{model}: medians of {rounds(used)} interleaved rounds; bars: half the interquartile "
        "range.",
        sources,
    )
    return Section(title, (), (plot, *tables))


SCALED = (EAGER, CHANNELS_LAST, INDUCTOR, OURS_LOGITS, OURS_HALF)
MARKERS = {EAGER.label: "s", CHANNELS_LAST.label: "^", INDUCTOR.label: "v", OURS_HALF.label: "D"}


def key(comparison: Figure) -> tuple[tuple[int, int], int, int]:
    job = comparison.value["job"]
    return (job["size"][0], job["size"][1]), job["batch"], thread_count(comparison)


def pixels(comparison: Figure) -> int:
    height, width = comparison.value["job"]["size"]
    return height * width


def thread_count(comparison: Figure) -> int:
    return comparison.value["job"]["threads"] or comparison.source.environment["threads"]


def lines(
    comparisons: Sequence[Figure], x: Sequence[float], y: Callable[[Figure, float], float]
) -> list[Series]:
    """A line for each way that was measured everywhere."""
    found = []
    for way in SCALED:
        results = [way.of(c) for c in comparisons]
        if any(result is None or not agrees(result) for result in results):
            continue
        values = [r.value for r in results if r is not None]
        middle = [y(c, v["median_s"]) for c, v in zip(comparisons, values, strict=True)]
        edges = [
            abs(y(c, v["median_s"] + v["spread_s"]) - m)
            for c, v, m in zip(comparisons, values, middle, strict=True)
        ]
        marker = MARKERS.get(way.label, "o")
        found.append(Series(way.label, x, middle, way.colour, marker, way.hatched, edges))
    return found


def scaling_table(heading: str, names: Sequence[str], comparisons: Sequence[Figure]) -> Table:
    ways = [way for way in SCALED if any(way.of(c) for c in comparisons)]
    rows = tuple(
        (
            Cell(name),
            *(milliseconds(way.of(c), way.key == OURS) for way in ways),
            ratio(OURS_LABELS.of(c) or OURS_LOGITS.of(c), EAGER.of(c)),
        )
        for name, c in zip(names, comparisons, strict=True)
    )
    caption = f"Milliseconds per call, by {heading}; speed-up of ours in float32 over PyTorch."
    return Table((heading, *(way.label for way in ways), "speed-up"), rows, caption)


# ----------------------------------------------------------------------------------------- memory


def memory(results: Collection) -> Section:
    """Peak memory of a call, of each network and runtime."""
    title = "Memory"
    found = [
        (model, comparison)
        for model, comparison in full_size(results, list_models())
        if any(r.get("peak_memory_bytes") for r in comparison.value["results"])
    ]
    if not found:
        return missing(title, "peak memory", "fassd report -o DIR --measure --full")
    ways = [w for w in WAYS if any(peak(w, c) is not None for _, c in found)]
    rows = []
    for model, comparison in found:
        cells = []
        for way in ways:
            result, bytes_ = way.of(comparison), peak(way, comparison)
            if result is None or bytes_ is None:
                cells.append(blank())
                continue
            where = (result.at("peak_memory_bytes"),)
            cells.append(Cell(f"{bytes_ / 2**20:.0f}", where, "measured", way.key == OURS))
        rows.append((Cell(f"`{model}`"), *cells))
    table = Table(
        ("network", *(way.label for way in ways)),
        tuple(rows),
        "Peak MiB that a second call adds to the loaded model at 1x3x1024x2048, each in a process "
        "of its own.",
    )
    series = [
        Bars(way.label, [to_mib(peak(way, c)) for _, c in found], COLOURS[way.colour], way.hatched)
        for way in ways
    ]
    groups = [model.replace("baseline_", "baseline\n").replace("_", " ") for model, _ in found]
    plot = Plot(
        "memory",
        partial(bar_figure, groups, series, "MiB", form="{:.0f}", line=None),
        "Bars of peak memory of each network on each runtime",
        f"Peak memory of a call at 1x3x1024x2048; {machine_text(found[0][1])}; n = 1.",
        tuple(dict.fromkeys(c.source.at("comparisons") for _, c in found)),
    )
    return Section(title, (), (plot, table))


def peak(way: Way, comparison: Figure) -> int | None:
    result = way.of(comparison)
    return None if result is None else result.get("peak_memory_bytes")


def to_mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def other_networks(results: Collection) -> Section:
    """Networks of others that do the same job, where they were measured."""
    title = "Other networks with the same job"
    rows = []
    captions = []
    seen = set()
    for comparison in results.every_comparison():
        others = [
            comparison.at("results", index)
            for index, result in enumerate(comparison.value["results"])
            if result.get("kind") == OTHER
        ]
        if not others or job_of(comparison) in seen:
            continue
        seen.add(job_of(comparison))
        job = comparison.value["job"]
        cost = analyze(create_model(job["model"], job["classes"], job["alpha"]), tuple(job["size"]))
        own = (counted(f"{cost.conv_macs / 1e9:.2f}"), counted(f"{cost.params / 1e6:.2f}"))
        name = f"{VARIANTS[job['model']].title}, ours"
        ours = OURS_LOGITS.of(comparison)
        entries = [(name, ours), (f"{VARIANTS[job['model']].title}, PyTorch", EAGER.of(comparison))]
        entries += [(str(other.value["name"]), other) for other in others]
        size = f"{job['batch']}x3x{job['size'][0]}x{job['size'][1]}"
        for text, result in entries:
            if result is None:
                continue
            counts = own
            if result.get("kind") == OTHER:
                counts = (number(result, "macs", 1e9), number(result, "params", 1e6))
            rows.append(
                (
                    Cell(text),
                    Cell(size),
                    *counts,
                    milliseconds(result, result is ours),
                    frames(result, job["batch"], result is ours),
                )
            )
        captions.append(machine_text(comparison))
    if not rows:
        return missing(title, "networks of others", "fassd bench peers --others")
    table = Table(
        ("network", "input", "GMACs", "M parameters", "ms", "frames/s"),
        tuple(rows),
        "Published architectures as other packages carry them, 19 classes, random weights, same "
        f"size and precision, interleaved; {captions[0]}.",
        names=2,
    )
    return Section(
        title,
        ("These are other networks: their labels differ, so only size and speed can be compared.",),
        (table,),
    )


def number(result: Figure, name: str, unit: float) -> Cell:
    return Cell(f"{result.get(name) / unit:.2f}", (result.at(name),), "counted")
