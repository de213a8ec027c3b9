"""`fassd demo`: a generated street through plain PyTorch and fused kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fassd.cli.common import (
    Backend,
    Device,
    Model,
    Seed,
    Size,
    Threads,
    Weights,
    app,
    console,
    escape,
    parse_size,
    pick_network,
    say,
)
from fassd.cli.jobs import job_of, measure


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    model: Model = None,
    weights: Weights = None,
    backend: Backend = "auto",
    size: Annotated[
        Size,
        typer.Option(
            parser=parse_size, metavar="HxW", show_default="1024x2048", help="Size of the scene."
        ),
    ] = Size(1024, 2048),
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 1,
) -> None:
    """Render a street, segment it with plain PyTorch and with fused kernels, and compare.

    Writes [cyan]scene.png[/], [cyan]labels.png[/] (in colours) and [cyan]overlay.png[/]. The
    weights are ours, trained on generated streets of other textures; for networks that have
    none they are random, with batch norms calibrated on the scene: then the labels follow what the
    picture shows, but their names mean nothing.

    Exit code: 1 if less than 99.9% of the labels agree.

    [bold]Examples[/]

    [cyan]fassd demo -o demo[/]

    [cyan]fassd demo -o demo --weights cityscapes --size 512x1024 --seed 3[/]
    """
    from fassd.bench.run import run
    from fassd.evaluation.agreement import DEMO_LIMIT
    from fassd.io.images import check_folder, write_image
    from fassd.io.palette import colorize, overlay
    from fassd.models.device import pick_device

    check_folder(output)
    job = job_of(
        pick_network(model, weights),
        size=size,
        seed=seed,
        backend=backend,
        device=str(pick_device(device)),
        threads=threads,
        repeats=repeats,
        memory=False,
    )
    report = measure(partial(run, job), [job])
    console().print(report)
    results = {
        "scene.png": report.picture,
        "labels.png": colorize(report.labels, report.colors),
        "overlay.png": overlay(report.picture, report.labels, colors=report.colors),
    }
    for name, result in results.items():
        write_image(output / name, result)
    say(f"pictures: {escape(str(output))}/ {', '.join(results)}")
    if not report.labels_agree >= DEMO_LIMIT:
        say(
            f"[bold red]error:[/] {report.labels_agree:.3f}% of the labels agree with plain "
            f"PyTorch's, {DEMO_LIMIT}% are asked for"
        )
        raise typer.Exit(1)
