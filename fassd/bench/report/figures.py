"""Cells of the page's tables from positions in results files, and the ways to run a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fassd.bench.candidates import OURS, REFERENCE
from fassd.bench.report.charts import COLOURS, Bars, candidate_colour
from fassd.bench.report.page import Cell, Section, Table
from fassd.bench.report.results import Figure, origin

MEASURE = "fassd report -o DIR --measure"
COUNTED = origin("counted by `fassd info`, exact to the authors' figures (tests/golden)")


@dataclass(frozen=True)
class Way:
    """A way to run a network, as a column or a series.

    Attributes:
        label: heading of the column.
        key, dtype, output: attributes of the `fassd.bench.candidates.Candidate`.
    """

    label: str
    key: str
    dtype: str = "float32"
    output: str = "logits"

    @property
    def colour(self) -> str:
        """Its key of `COLOURS`."""
        return candidate_colour(self.key, self.dtype)

    @property
    def hatched(self) -> bool:
        """True if its bars are hatched, to distinguish it from another of the same colour."""
        return self.output == "labels" or (self.key != OURS and self.dtype != "float32")

    def of(self, comparison: Figure) -> Figure | None:
        """Its result in a comparison."""
        for result in comparison.at("results").entries():
            here = (result.value["key"], result.value["dtype"], result.value["output"])
            if here == (self.key, self.dtype, self.output):
                return result
        return None


EAGER = Way("PyTorch", REFERENCE)
CHANNELS_LAST = Way("PyTorch channels last", "channels_last")
INDUCTOR = Way("Inductor, freezing", "inductor")
OURS_LOGITS = Way("ours", OURS)
OURS_LABELS = Way("ours, labels", OURS, output="labels")
OURS_HALF = Way("ours float16, labels", OURS, "float16", "labels")
WAYS = (
    EAGER,
    CHANNELS_LAST,
    INDUCTOR,
    Way("ONNX Runtime", "onnxruntime"),
    Way("OpenVINO", "openvino"),
    Way("OpenVINO bfloat16", "openvino_bf16", "bfloat16"),
    OURS_LOGITS,
    OURS_LABELS,
    OURS_HALF,
    Way("ours bfloat16, labels", OURS, "bfloat16", "labels"),
)


def missing(title: str, what: str, command: str) -> Section:
    """A section about missing results and the command that makes them."""
    return Section(title, (f"Not measured here: {what}. `{command}` does.",))


def agrees(result: Figure) -> bool:
    return result.get("match") is not False


def measured(text: str, *where: Figure, strong: bool = False) -> Cell:
    return Cell(text, where, "measured", strong)


def counted(text: str, *where: Figure) -> Cell:
    """A count, by `fassd info` if no position is given."""
    return Cell(text, where or (COUNTED,), "counted")


def quoted(value: Any, origin: Figure) -> Cell:
    return Cell() if value is None else Cell(str(value), (origin,), "quoted")


def milliseconds(result: Figure | None, strong: bool = False) -> Cell:
    """Median and half the interquartile range; "disagrees" for a result that does."""
    if result is None:
        return Cell()
    if not agrees(result):
        return measured("disagrees", result.at("match"))
    text = in_milliseconds(result.value["median_s"], result.value["spread_s"])
    return measured(text, result.at("median_s"), strong=strong)


def in_milliseconds(median: float, spread: float) -> str:
    """Seconds with their spread as text, to about three digits."""
    places = next((n for n, least in enumerate((0.1, 0.01, 0.001)) if median >= least), 3)
    return f"{1e3 * median:.{places}f} ±{1e3 * spread:.{places}f}"


def frames(result: Figure | None, batch: int = 1, strong: bool = False) -> Cell:
    """Pictures per second."""
    if result is None or not agrees(result):
        return milliseconds(result)
    rate = batch / result.value["median_s"]
    return measured(f"{rate:.1f}", result.at("median_s"), strong=strong)


def ratio(result: Figure | None, over: Figure | None, strong: bool = False) -> Cell:
    """Speed-up of `result` over `over`; "-" if either disagrees."""
    value = speedup(result, over)
    if value is None or result is None or over is None:
        return Cell("-" if result is not None else "")
    return measured(f"{value:.2f}x", result.at("median_s"), over.at("median_s"), strong=strong)


def speedup(result: Figure | None, over: Figure | None) -> float | None:
    """Speed-up of `result` over `over`; None if it cannot be determined."""
    if result is None or over is None or not (agrees(result) and agrees(over)):
        return None
    return over.value["median_s"] / result.value["median_s"]


def machine_text(result: Figure) -> str:
    """Machine, threads, PyTorch and date of a result."""
    facts = result.source.environment
    return (
        f"{facts['device']}, {facts['threads']} threads, {facts.get('instruction_set', '')}, "
        f"torch {facts['torch']}, {facts['date'][:10]}"
    )


def rounds(comparisons: Iterable[Figure]) -> str:
    """Number of measurements of each call: "7" or "5 to 7"."""
    counts = sorted({r["n"] for c in comparisons for r in c.value["results"] if r["n"]})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"


def table_by_way(
    heading: str,
    entries: Sequence[tuple[str, Figure]],
    ways: Sequence[Way],
    cell: Callable[[Figure | None, bool], Cell],
    caption: str,
) -> Table:
    """A row for each comparison, a column for each way with a figure in any of them."""
    columns = {
        way.label: [cell(way.of(comparison), way.key == OURS) for _, comparison in entries]
        for way in ways
    }
    columns = {label: cells for label, cells in columns.items() if any(c.text for c in cells)}
    rows = zip((Cell(name) for name, _ in entries), *columns.values(), strict=True)
    return Table((heading, *columns), tuple(rows), caption)


def bars_by_way(
    comparisons: Sequence[Figure],
    ways: Sequence[Way],
    height: Callable[[Way, Figure], float | None] = lambda way, c: speedup(way.of(c), EAGER.of(c)),
) -> list[Bars]:
    """Bars for each way; speed-ups over plain PyTorch unless `height` is given."""
    return [
        Bars(way.label, [height(way, c) for c in comparisons], COLOURS[way.colour], way.hatched)
        for way in ways
    ]
