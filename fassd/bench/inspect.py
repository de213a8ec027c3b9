"""``python -m fassd.bench.inspect``: kernels compiled and analysed, without a GPU.

For each launch of a network on a GPU of your choice: tile, registers, spills, shared memory,
tensor-core instructions, width of the loads, and by the time model the floor and the prediction.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fassd.bench.costs.triton import TritonLaunch, plan_network
from fassd.bench.tables import Column, report_table
from fassd.models.device import DTYPES, DtypeName
from fassd.models.sizes import parse_size
from fassd_kernels.modules.network import Output
from fassd_kernels.triton import availability
from fassd_kernels.triton.aot import Resources, examine_all
from fassd_kernels.triton.device import Device, device_named


@dataclass(frozen=True)
class LaunchRow:
    """One row of the report: launches of one binary on equal shapes."""

    label: str
    count: int
    grid: tuple[int, ...]
    tile: str
    warps: int
    megabytes: float
    gigaflops: float
    floor_us: float
    predicted_us: float
    resources: Resources | None


def rows_of(
    launches: Sequence[TritonLaunch], device: Device, compiled: dict[str, Resources]
) -> list[LaunchRow]:
    """Rows of the report; equal launches are grouped, in the order of their first ones."""
    groups: dict[Any, list[TritonLaunch]] = {}
    for launch in launches:
        problem = launch.launch.problem
        key = problem.key if problem else launch.label
        groups.setdefault((launch.source.identity, key), []).append(launch)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_MIDDLE", "BLOCK_K", "BLOCK_C")
    rows = []
    for (key, _), group in groups.items():
        first = group[0].launch
        sides = [str(first.arguments[name]) for name in names if name in first.arguments]
        rows.append(
            LaunchRow(
                group[0].label,
                len(group),
                first.grid,
                "x".join(sides),
                first.options["num_warps"],
                sum(one.launch.work.bytes for one in group) / 1e6,
                sum(one.launch.work.operations for one in group) / 1e9,
                sum(one.floor(device) for one in group) * 1e6,
                sum(one.predicted(device) for one in group) * 1e6,
                compiled.get(key),
            )
        )
    return rows


def faults(rows: Sequence[LaunchRow], device: Device) -> list[str]:
    """Faults of a binary: spills, or more shared memory than a block can have."""
    found = []
    for row in rows:
        if row.resources and row.resources.spills:
            found.append(f"{row.label} ({row.tile}) spills {row.resources.spills} bytes")
        if row.resources and row.resources.shared > device.shared:
            found.append(
                f"{row.label} ({row.tile}) takes {row.resources.shared} bytes of shared memory; "
                f"{device.name} gives a block {device.shared}"
            )
    return found


def columns_of(rows: Sequence[LaunchRow]) -> Iterator[Column[LaunchRow]]:
    """The columns of the report, with their totals."""

    def figure(heading: str, name: str, digits: int) -> Column[LaunchRow]:
        total = sum(getattr(row, name) for row in rows)
        return Column(
            heading,
            lambda row: f"{getattr(row, name):.{digits}f}",
            f"{total:.{max(digits - 1, 0)}f}",
        )

    def taken(heading: str, text: Callable[[Resources], str]) -> Column[LaunchRow]:
        return Column(heading, lambda row: text(row.resources) if row.resources else "")

    yield Column("launch, channels", lambda row: row.label, "all", words=True)
    yield Column("tile", lambda row: row.tile, words=True)
    yield figure("x", "count", 0)
    yield Column("programs", lambda row: str(math.prod(row.grid)))
    yield Column("warps", lambda row: str(row.warps))
    yield from itertools.starmap(taken, TAKEN.items())
    yield figure("MB", "megabytes", 1)
    yield figure("GFLOP", "gigaflops", 2)
    yield figure("floor us", "floor_us", 1)
    yield figure("predicted us", "predicted_us", 1)


TAKEN: dict[str, Callable[[Resources], str]] = {
    "regs": lambda found: str(found.registers),
    "spills": lambda found: str(found.spills),
    "shared KB": lambda found: f"{found.shared / 1024:.0f}",
    "MMA": lambda found: str(found.tensor_cores),
    "16 B loads": lambda found: str(found.wide_loads),
    "others": lambda found: str(found.narrow_loads),
}
"""Resources of a compiled kernel, by column."""


def main(
    model: Annotated[str, typer.Option(help="a variant of the family")] = "fassd_net",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the picture")] = "1024x2048",
    batch: Annotated[int, typer.Option(min=1, help="pictures at once")] = 1,
    dtype: Annotated[DtypeName, typer.Option(help="of the network")] = "float16",
    gpu: Annotated[str, typer.Option(help="name of a GPU, or a part of it")] = "H200",
    output: Annotated[Output, typer.Option(help="of the network")] = "labels",
    compile: Annotated[bool, typer.Option(help="compile, or only plan and predict")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="processes that compile")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Launches of a network on a GPU, compiled and analysed; no GPU is needed."""
    if availability.triton_missing():
        raise typer.BadParameter(availability.triton_missing())
    if availability.INTERPRETED:
        raise typer.BadParameter("TRITON_INTERPRET is set: there is nothing to compile")
    try:
        device = device_named(gpu)
        launches = plan_network(
            model, *parse_size(size), device, batch, DTYPES[dtype], output=output
        )
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(str(error)) from error
    sources = [planned.source for planned in launches]
    compiled = examine_all(sources, device, jobs) if compile else {}
    rows = rows_of(launches, device, compiled)
    title = f"{model}, {batch} x {size}, {dtype}, {output}, on {device.name}"
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(title, report_table(rows, list(columns_of(rows))), sep="\n")
    if json_file:
        content = {"title": title, "gpu": device.name, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    wrong = faults(rows, device)
    for fault in wrong:
        print(f"FAULT {fault}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
