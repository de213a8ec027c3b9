"""Reports of `fassd bench`: their output in a terminal, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fassd.bench.jobs import Job
from fassd.bench.stopwatch import CallTimes

Row = TypeVar("Row")


class BenchReport:
    """Base of the dataclasses for the results of the commands of `fassd bench`."""

    def to_json(self) -> dict[str, Any]:
        """All fields, ready for `json.dump`; times in seconds."""
        return {name: _as_json(value) for name, value in vars(self).items()}

    def parts(self, width: int) -> Iterable[RenderableType]:
        """The printed parts, from top to bottom; a plain str is a note, printed dim.

        Args:
            width: width of the terminal, in characters.
        """
        raise NotImplementedError

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self.parts(options.max_width):
            yield Text(part, style="dim") if isinstance(part, str) else part


def _as_json(value: Any) -> Any:
    """A value of a report with lists, dicts and numbers instead of tuples and dataclasses.

    JSON has no infinite numbers or NaN: they become None.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {field.name: _as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    return value


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        heading: title of the column.
        cell: function from a row to its text, in rich's markup.
        total: text below all rows.
        words: True aligns the column left, for words; numbers are aligned right.
        wraps: True lets a long text be broken into lines.
    """

    heading: str
    cell: Callable[[Row], str]
    total: str = ""
    words: bool = False
    wraps: bool = False


def report_table(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> Table:
    """A rich table without lines, with a footer if a column has a total."""
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_footer=any(column.total for column in columns),
        footer_style="bold",
    )
    for column in columns:
        table.add_column(
            column.heading,
            column.total,
            justify="left" if column.words else "right",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def heading(job: Job, environment: Mapping[str, Any]) -> Text:
    """Two lines above a table: the job, and the machine (`machine.environment`)."""
    cuda = f" (CUDA {environment['cuda']})" if environment["device_type"] == "cuda" else ""
    text = Text(f"{job.model}", style="bold")
    rounds = f"{job.repeats} interleaved round{'' if job.repeats == 1 else 's'}"
    threads = f"{environment['threads']} thread{'' if environment['threads'] == 1 else 's'}"
    text.append(
        f" at {job.batch} x {job.size[0]}x{job.size[1]}, {rounds}\n"
        f"{environment['device']}, {threads}, "
        f"torch {environment['torch']}{cuda}, fassd {environment['fassd']}",
        style="not bold",
    )
    return text


def milliseconds(timing: CallTimes) -> str:
    """Median and half the interquartile range."""
    return f"{1000 * timing.median:.1f} ±{1000 * timing.spread:.1f}"


def or_dash(value: float | None, form: str) -> str:
    """A value in a format; a dash for None."""
    return "-" if value is None else format(value, form)


def mebibytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 2**20:.0f}"
