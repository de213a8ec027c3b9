"""`fassd demo`: a generated street through plain PyTorch and fused kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fassd.cli import options
from fassd.cli.common import app
from fassd.cli.jobs import job_of, measure
from fassd.cli.options import FULL_SIZE, Size, size_option
from fassd.cli.terminal import console, escape, say
from fassd.io.files import check_folder


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write to.")
    ],
    model: options.Model = None,
    weights: options.Weights = None,
    backend: options.Backend = "auto",
    size: Annotated[Size, size_option(help="Size of the scene.")] = FULL_SIZE,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Measured rounds.")] = 5,
    device: options.Device = None,
    threads: options.Threads = None,
    seed: options.Seed = 1,
) -> None:
    """Render a street, segment it with plain PyTorch and with fused kernels, and compare.

    Writes [cyan]scene.png[/], [cyan]labels.png[/] (in colours) and [cyan]overlay.png[/]. The
    weights are ours, trained on photographs and generated streets of other textures; for
    networks that have none they are random, with batch norms calibrated on the scene: then the
    labels follow what the picture shows, but their names mean nothing.

    Exit code: 1 if less than 99.9% of the labels agree.

    [bold]Examples[/]

    [cyan]fassd demo -o demo[/]

    [cyan]fassd demo -o demo --weights cityscapes --size 512x1024 --seed 3[/]
    """
    from fassd.bench.run import run
    from fassd.evaluation.agreement import DEMO_LIMIT
    from fassd.io.images import write_image
    from fassd.io.palette import colorize, overlay
    from fassd.models.device import pick_device

    check_folder(output)
    job = job_of(
        model=model,
        weights=weights,
        size=size,
        seed=seed,
        backend=backend,
        device=str(pick_device(device)),
        threads=threads,
        repeats=repeats,
        memory=False,
    )
    report = measure(partial(run, [job]), [job])
    console().print(report)
    (scene,) = report.scenes
    results = {
        "scene.png": scene.picture,
        "labels.png": colorize(scene.labels, scene.colors),
        "overlay.png": overlay(scene.picture, scene.labels, colors=scene.colors),
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
