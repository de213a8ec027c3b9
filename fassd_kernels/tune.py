"""``python -m fassd_kernels.tune``: measure what is fastest on this GPU, and store it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich.console import Console

from fassd.models.device import DTYPES, DtypeName
from fassd.models.sizes import parse_size
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import Device, assuming, describe_device, device_named
from fassd_kernels.triton.program import recording
from fassd_kernels.tuning import backends as choice
from fassd_kernels.tuning import tiles
from fassd_kernels.tuning.calls import OperatorCall, record_network
from fassd_kernels.tuning.trials import render


def main(
    model: Annotated[str, typer.Option(help="a variant of the family")] = "fassd_net",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the picture")] = "1024x2048",
    dtype: Annotated[DtypeName, typer.Option(help="of the network")] = "float16",
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
    console = Console(width=None if sys.stdout.isatty() else 160)
    tuner, what = (choice, "calls") if backends else (tiles, "problems")
    title = f"{model}, {batch} x {size}, {dtype}"
    no_triton = availability.triton_missing() if dry_run or not backends else ""
    if no_triton:
        raise typer.BadParameter(no_triton)
    try:
        kind, sides = DTYPES[dtype], parse_size(size)
        if dry_run:
            device = device_named(gpu)
            with assuming(device), recording():
                calls = record_network(model, *sides, batch=batch, dtype=kind)
                list_what(calls, device, backends, title, console)
            return
        if not torch.cuda.is_available():
            raise ValueError("no GPU is seen; --dry-run needs none")
        place = torch.device("cuda", torch.cuda.current_device())
        recorder = tuner.recorder(place, kind)
        calls = record_network(
            model, *sides, batch=batch, dtype=kind, place=place, backend=recorder
        )
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(str(error)) from error
    device = describe_device(place)
    cases = tuner.cases_of(calls, device)
    done = tuner.tune(cases, device, budget)
    if not done:
        print("nothing was measured")
        return
    console.print(render(done, f"{title}, on {device.name}"))
    if len(done) < len(cases):
        left_to = "the order of the backends" if backends else "the model"
        print(f"out of time: {len(cases) - len(done)} {what} are left to {left_to}")
    wrong = sum(trial.reason.startswith("wrong") for case in done for trial in case.trials)
    if wrong:
        tried = "backends" if backends else "configurations"
        print(f"{wrong} {tried} gave wrong numbers and are out", file=sys.stderr)
    print(tuner.table_path(device))


def list_what(
    calls: Sequence[OperatorCall], device: Device, backends: bool, title: str, console: Console
) -> None:
    """Print what would be measured on a GPU."""
    if backends:
        keys = dict.fromkeys(call.key for call in calls)
        print(*keys, f"{len(keys)} calls", sep="\n")
        return
    cases = tiles.cases_of(calls, device)
    console.print(render(cases, f"{title}, on {device.name}: to be measured"))
    print(f"{len(cases)} problems, {sum(len(c.trials) for c in cases)} configurations")


if __name__ == "__main__":
    typer.run(main)
