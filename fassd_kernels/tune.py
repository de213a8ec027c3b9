"""``python -m fassd_kernels.tune``: measure what is fastest on this GPU, and keep it."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import typer
from rich.console import Console

from fassd_kernels.triton import availability
from fassd_kernels.triton.device import assuming, describe_device, device_named
from fassd_kernels.triton.program import recording
from fassd_kernels.tuning.backends import command as tune_backends
from fassd_kernels.tuning.options import parse_dtype, parse_size
from fassd_kernels.tuning.tiles import cases_of, record_network, render, tune


def main(
    model: Annotated[str, typer.Option(help="a variant of the family")] = "fassd_net",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the picture")] = "1024x2048",
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32")] = "float16",
    batch: Annotated[int, typer.Option(min=1, help="pictures at once")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list what would be measured; needs no GPU")
    ] = False,
    gpu: Annotated[str, typer.Option(help="with --dry-run: the GPU to plan for")] = "H200",
    budget: Annotated[float, typer.Option(min=1, help="seconds to measure for, at most")] = 300,
    backends: Annotated[
        bool, typer.Option("--backends", help="measure backends, call by call, not tile sizes")
    ] = False,
) -> None:
    """Measure tile sizes for a network on this GPU, verify each, keep the fastest."""
    kind, (height, width) = parse_dtype(dtype), parse_size(size)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if backends:
        planned_for = gpu if dry_run else None
        try:
            path = tune_backends(model, (height, width), kind, batch, planned_for, budget, console)
        except (ValueError, KeyError) as error:
            raise typer.BadParameter(str(error)) from error
        if not dry_run:
            print(path or "nothing was measured")
        return
    if availability.triton_missing():
        raise typer.BadParameter(availability.triton_missing())
    title = f"{model}, {batch} x {size}, {dtype}"
    try:
        if dry_run:
            device = device_named(gpu)
            with assuming(device), recording():
                calls = record_network(model, height, width, batch, kind, torch.device("cpu"))
                cases = cases_of(calls, device)
            console.print(render(cases, f"{title}, on {device.name}: to be measured"))
            print(f"{len(cases)} problems, {sum(len(c.trials) for c in cases)} configurations")
            return
        why = availability.reason()
        if why or availability.INTERPRETED:
            raise typer.BadParameter(f"{why or 'TRITON_INTERPRET is set'}; --dry-run needs no GPU")
        place = torch.device("cuda", torch.cuda.current_device())
        device = describe_device(place)
        calls = record_network(model, height, width, batch, kind, place)
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(str(error)) from error
    path = tune(calls, device, budget, console, title)
    print(f"{path}")


if __name__ == "__main__":
    typer.run(main)
