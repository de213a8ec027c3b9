"""`fassd predict`: label pictures."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fassd.cli.common import (
    Alpha,
    Backend,
    Classes,
    Device,
    Dtype,
    Model,
    Size,
    Threads,
    Weights,
    app,
    console,
    parse_size,
    pick_weights,
    progress,
    say,
    set_threads,
    tell_weights,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.images import Picture
    from fassd.predict import Segmenter

ROWS_SHOWN = 20  # pictures in the table at the end


@app.command()
def predict(
    source: Annotated[
        list[str], typer.Argument(help="Pictures, folders, or quoted patterns like 'in/**/*.png'.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    model: Model = "fassd_net",
    weights: Weights = None,
    classes: Classes = 19,
    alpha: Alpha = 2,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    size: Annotated[
        Size | None,
        typer.Option(
            parser=parse_size,
            metavar="HxW",
            help="Size that the network sees; results keep the picture's. Its own if not given.",
        ),
    ] = None,
    device: Device = None,
    opacity: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of the colours in the overlay.")
    ] = 0.5,
    threads: Threads = None,
) -> None:
    """Segment pictures.

    For each picture three files: [cyan]NAME_color.png[/] (label map in colours),
    [cyan]NAME_overlay.png[/] (colours over the picture) and [cyan]NAME_trainids.png[/] (class
    indices, 8 or 16 bits). Folders are searched with their subfolders, whose tree is kept; equal
    names get -2, -3, ...

    Grey, palette, CMYK, RGBA (laid over grey), 16-bit and EXIF-rotated pictures are read.
    A picture or folder that cannot be read is reported and the rest goes on.

    Exit code: 0 all done, 1 some pictures failed, 2 nothing done.

    [bold]Examples[/]

    [cyan]fassd predict street.jpg -o out --weights cityscapes[/]

    [cyan]fassd predict photos/ more/*.png -o out -m fassd_net_l2 --device cuda --dtype float16[/]

    [cyan]fassd predict 'drive/**/*.jpg' -o out --size 512x1024 --opacity 0.7[/]
    """
    from fassd.images import ImageError, check_folder, find_pictures

    unfound: list[ImageError] = []
    pictures = find_pictures(source, onerror=unfound.append)
    check_folder(output)
    for missed in unfound if pictures else unfound[:-1]:
        say(f"[red]failed:[/] {escape(str(missed))}")
    if not pictures:
        raise unfound[-1]
    set_threads(threads)
    weights = pick_weights(weights, model, classes, alpha)
    segmenter = build_segmenter(model, weights, classes, alpha, backend, dtype, device, size)
    tell_weights(weights, segmenter.model)

    done: list[tuple[Picture, Size, float]] = []
    started = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("segmenting", total=len(pictures))
        for picture in pictures:
            try:
                done.append((picture, *_predict_one(segmenter, picture, output, classes, opacity)))
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                say(f"[red]failed:[/] {escape(_reason(picture, error))}")
            bar.advance(task)
    failed = len(pictures) - len(done) + len(unfound)
    if done:
        console().print(_summary(done))
    seconds = time.perf_counter() - started
    trouble = f", [red]{failed} failed[/]" if failed else ""
    count = f"{len(done)} of {len(pictures)} pictures in {seconds:.1f} s"
    say(f"{count}{trouble}: {escape(str(output))}")
    if failed:
        raise typer.Exit(1 if done else 2)


def build_segmenter(
    model: str,
    weights: str | None,
    classes: int,
    alpha: int,
    backend: str,
    dtype: str,
    device: str | None,
    size: Size | None,
) -> Segmenter:
    import torch

    from fassd.predict import Segmenter

    torch.manual_seed(0)  # random weights, where none are given, are the same in every run
    return Segmenter(
        model,
        weights=weights,
        num_classes=classes,
        alpha=alpha,
        backend=backend,
        dtype=getattr(torch, dtype),
        device=device,
        size=size,
    )


def _predict_one(
    segmenter: Segmenter, picture: Picture, output: Path, classes: int, opacity: float
) -> tuple[Size, float]:
    """Segment one file and write its three results; its size, and the seconds of the network."""
    from fassd.images import OUTPUT_ENDINGS, read_image, write_image
    from fassd.palette import colorize, overlay, palette

    image = read_image(picture.path)
    started = time.perf_counter()
    labels = segmenter.predict(image)
    seconds = time.perf_counter() - started
    colors = palette(classes)
    results: list[npt.NDArray[np.integer]] = [
        colorize(labels, colors),
        overlay(image, labels, opacity, colors),
        labels,
    ]
    for ending, result in zip(OUTPUT_ENDINGS, results, strict=True):
        write_image(output / f"{picture.name}{ending}", result)
    return Size(*labels.shape), seconds


def _reason(picture: Picture, error: Exception) -> str:
    """What to tell of an error that a picture caused."""
    reason = str(error) or type(error).__name__
    # PyTorch's errors of memory are RuntimeErrors.
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", reason):
        reason = "does not fit in memory"
    return reason if str(picture.path) in reason else f"{picture.path}: {reason}"


def _shown(picture: Picture) -> str:
    """Where a picture is, and its output name where that is another."""
    path = picture.path
    return str(path) if picture.name == path.stem else f"{path} -> {picture.name}"


def _summary(done: list[tuple[Picture, Size, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("picture", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("ms", justify="right")
    for picture, size, seconds in done[:ROWS_SHOWN]:
        table.add_row(escape(_shown(picture)), str(size), f"{1000 * seconds:.1f}")
    if len(done) > ROWS_SHOWN:
        table.add_row(f"... and {len(done) - ROWS_SHOWN} more", "", "")
    if len(done) > 1:
        median = statistics.median(seconds for _, _, seconds in done)
        table.add_row("[bold]median[/]", "", f"[bold]{1000 * median:.1f}[/]")
    return table
