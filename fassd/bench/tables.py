"""Tables of the terminal, as all reports of `fassd bench` print them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fassd.bench.jobs import Job
from fassd.bench.stopwatch import Timing

__all__ = ["heading", "mebibytes", "milliseconds", "plain_table"]


def heading(job: Job, environment: Mapping[str, Any]) -> Text:
    """Two lines above a table: what was measured, and on what machine (`machine.environment`)."""
    cuda = f" (CUDA {environment['cuda']})" if environment["device_type"] == "cuda" else ""
    text = Text(f"{job.model}", style="bold")
    text.append(
        f" at {job.batch} x {job.size[0]}x{job.size[1]}, {job.repeats} interleaved rounds\n"
        f"{environment['device']}, {environment['threads']} threads, "
        f"torch {environment['torch']}{cuda}, fassd {environment['fassd']}",
        style="not bold",
    )
    return text


def plain_table(**settings: Any) -> Table:
    """A rich table without lines, as every report here prints."""
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), **settings)


def milliseconds(timing: Timing) -> str:
    """Median and half the interquartile range."""
    return f"{1000 * timing.median:.1f} ±{1000 * timing.spread:.1f}"


def mebibytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 2**20:.0f}"
