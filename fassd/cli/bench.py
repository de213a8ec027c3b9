"""`fassd bench` and `fassd demo`: plain PyTorch against fused kernels on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fassd.cli.common import (
    Alpha,
    Backend,
    Classes,
    Device,
    Dtype,
    Json,
    Model,
    Seed,
    Size,
    Threads,
    Weights,
    app,
    console,
    parse_size,
    pick_weights,
    progress,
    say,
)

if TYPE_CHECKING:
    from fassd.bench import Report

AGREEMENT_OF_DEMO = 99.9  # per cent of the labels


@app.command()
def bench(
    model: Model = "fassd_net",
    weights: Weights = None,
    classes: Classes = 19,
    alpha: Alpha = 2,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    size: Annotated[
        Size,
        typer.Option(
            parser=parse_size, metavar="HxW", show_default="1024x2048", help="Size of the input."
        ),
    ] = Size(1024, 2048),
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile", help="Time torch.compile, too.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them, not measured.")] = 2,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory, on the CPU in a process per path.")
    ] = True,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 1,
    json_: Json = None,
) -> None:
    """Measure this machine: plain PyTorch against fused kernels, same picture, same weights.

    Every round calls each path once, in rotating order; the table shows the median and
    half the interquartile range. The reference is plain PyTorch in float32; on a GPU with another
    --dtype, plain PyTorch in that precision runs beside it. A path whose labels agree with the
    reference's for less than 99% of the pixels gets no speed-up.

    Memory is what one call needs beyond the loaded model.

    [bold]Examples[/]

    [cyan]fassd bench[/]

    [cyan]fassd bench --compile --threads 1 --json bench.json[/]

    [cyan]fassd bench -m fassd_net_l2 --size 512x1024 --batch 4 --dtype float16 --device cuda[/]
    """
    from fassd.bench import Job
    from fassd.images import check_file, replacing
    from fassd.predict import pick_device

    check_file(json_)
    report = _measure(
        Job(
            model=model,
            weights=pick_weights(weights, model, classes, alpha),
            classes=classes,
            alpha=alpha,
            size=size,
            batch=batch,
            seed=seed,
            backend=backend,
            dtype=dtype,
            device=str(pick_device(device)),
            compile=compile_,
            threads=threads,
            repeats=repeats,
            warmup=warmup,
            memory=memory,
        )
    )
    console().print(report)
    if json_ is not None:
        with replacing(json_) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
        say(f"figures: {escape(str(json_))}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    model: Model = "fassd_net",
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
    from fassd.bench import Job
    from fassd.images import check_folder, write_image
    from fassd.palette import colorize, overlay
    from fassd.predict import pick_device

    check_folder(output)
    weights = pick_weights(weights, model)
    report = _measure(
        Job(
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
    )
    console().print(report)
    results = {
        "scene.png": report.picture,
        "labels.png": colorize(report.labels),
        "overlay.png": overlay(report.picture, report.labels),
    }
    for name, result in results.items():
        write_image(output / name, result)
    say(f"pictures: {escape(str(output))}/ {', '.join(results)}")
    if not report.labels_agree >= AGREEMENT_OF_DEMO:
        say(
            f"[bold red]error:[/] {report.labels_agree:.3f}% of the labels agree with plain "
            f"PyTorch's, {AGREEMENT_OF_DEMO}% are asked for"
        )
        raise typer.Exit(1)


def _measure(job: Any) -> Report:
    """Run a `fassd.bench.Job` with a progress bar."""
    from fassd.bench import run

    with progress() as bar:
        task = bar.add_task("", total=job.warmup + job.repeats)
        return run(
            job,
            step=lambda words: bar.update(task, description=words),
            tick=lambda: bar.advance(task),
        )
