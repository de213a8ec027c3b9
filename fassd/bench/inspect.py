"""``python -m fassd.bench.inspect``: kernels compiled and taken apart, without a GPU.

For each launch of a network on a GPU of your choice: tile, registers, spills, shared memory,
tensor-core instructions, width of the loads, and by the time model the floor and the prediction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fassd.bench.costs.training import PASSES, training_step
from fassd.bench.costs.triton import Planned, plan_network
from fassd_kernels.triton import availability
from fassd_kernels.triton.aot import Resources, examine_all
from fassd_kernels.triton.device import Device, device_named
from fassd_kernels.tuning.options import parse_dtype, parse_output, parse_size


@dataclass(frozen=True)
class LaunchRow:
    """One line of the report: launches that are one binary on equal shapes."""

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


def label_of(planned: Planned) -> str:
    """What a launch does, with its channels."""
    problem = planned.launch.problem
    if problem is None:
        return planned.label
    inputs = "+".join(map(str, problem.in_channels))
    return f"{planned.label} {inputs}>{problem.out_channels}"


def tile_of(planned: Planned) -> str:
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_MIDDLE", "BLOCK_K", "BLOCK_C")
    arguments = planned.launch.arguments
    return "x".join(str(arguments[name]) for name in names if name in arguments)


def rows_of(
    launches: Sequence[Planned], device: Device, compiled: dict[str, Resources]
) -> list[LaunchRow]:
    """Lines of the report, equal launches together, in the order in which they come."""
    groups: dict[Any, list[Planned]] = {}
    for planned in launches:
        key = planned.source.identity
        problem = planned.launch.problem
        groups.setdefault((key, problem.key if problem else planned.label), []).append(planned)
    rows = []
    for (key, _), group in groups.items():
        first = group[0]
        rows.append(
            LaunchRow(
                label_of(first),
                len(group),
                first.launch.grid,
                tile_of(first),
                first.launch.options["num_warps"],
                sum(p.launch.work.bytes for p in group) / 1e6,
                sum(p.launch.work.operations for p in group) / 1e9,
                sum(p.floor(device) for p in group) * 1e6,
                sum(p.predicted(device) for p in group) * 1e6,
                compiled.get(key),
            )
        )
    return rows


def faults(rows: Sequence[LaunchRow], device: Device) -> list[str]:
    """What would be wrong with a binary: spills, or more shared memory than a block can have."""
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


def render(rows: Sequence[LaunchRow], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("launch, channels", "tile"):
        table.add_column(name)
    for name in (
        "x", "programs", "warps", "regs", "spills", "shared KB", "MMA", "16 B loads", "others",
        "MB", "GFLOP", "floor us", "predicted us",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        found = row.resources
        taken = ["", "", "", "", "", ""]
        if found:
            taken = [
                str(found.registers), str(found.spills), f"{found.shared / 1024:.0f}",
                str(found.tensor_cores), str(found.wide_loads), str(found.narrow_loads),
            ]  # fmt: skip
        programs = 1
        for side in row.grid:
            programs *= side
        table.add_row(
            row.label, row.tile, str(row.count), str(programs), str(row.warps), *taken,
            f"{row.megabytes:.1f}", f"{row.gigaflops:.2f}", f"{row.floor_us:.1f}",
            f"{row.predicted_us:.1f}",
        )  # fmt: skip
    table.add_section()
    total = [sum(getattr(row, name) for row in rows) for name in
             ("count", "megabytes", "gigaflops", "floor_us", "predicted_us")]  # fmt: skip
    table.add_row(
        "all", "", str(total[0]), *[""] * 8, f"{total[1]:.0f}", f"{total[2]:.1f}",
        f"{total[3]:.0f}", f"{total[4]:.0f}",
    )  # fmt: skip
    return table


def print_training(model: str, height: int, width: int, device: Device) -> None:
    """Print the times of a training step of one network, see :mod:`fassd.bench.costs.training`."""
    step = training_step(model, height, width)
    best = step.seconds("fused statistics", device)
    print(f"{model}, one picture of {height}x{width} in training, 16 bits, on {device.name}:")
    for kernels in PASSES:
        seconds = step.seconds(kernels, device)
        print(f"  {kernels:<17} {seconds * 1e3:6.3f} ms  {seconds / best:.3f}")


def main(
    model: Annotated[str, typer.Option(help="a variant of the family")] = "fassd_net",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the picture")] = "1024x2048",
    batch: Annotated[int, typer.Option(min=1, help="pictures at once")] = 1,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32")] = "float16",
    gpu: Annotated[str, typer.Option(help="name of a GPU, or a part of it")] = "H200",
    output: Annotated[str, typer.Option(help="labels or logits")] = "labels",
    compile: Annotated[bool, typer.Option(help="compile, or only plan and predict")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="processes that compile")] = 2,
    training: Annotated[
        bool, typer.Option("--training", help="what fused training kernels could win, instead")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """What a network launches on a GPU, compiled and taken apart; no GPU is needed."""
    if availability.triton_missing():
        raise typer.BadParameter(availability.triton_missing())
    if availability.INTERPRETED:
        raise typer.BadParameter("TRITON_INTERPRET is set: there is nothing to compile")
    try:
        device = device_named(gpu)
        height, width = parse_size(size)
        if training:
            print_training(model, height, width, device)
            return
        launches = plan_network(
            model, height, width, device, batch, parse_dtype(dtype), parse_output(output)
        )
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(str(error)) from error
    sources = [planned.source for planned in launches]
    compiled = examine_all(sources, device, jobs) if compile else {}
    rows = rows_of(launches, device, compiled)
    title = f"{model}, {batch} x {size}, {dtype}, {output}, on {device.name}"
    Console(width=None if sys.stdout.isatty() else 200).print(render(rows, title))
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
