"""`fassd synth`: a dataset of generated streets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fassd.cli.common import app
from fassd.cli.options import FULL_SIZE, Size, size_option
from fassd.cli.terminal import escape, progress, say


@app.command()
def synth(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to write; made if missing.")
    ],
    split: Annotated[
        Literal["train", "val", "test"],
        typer.Option(
            "--split",
            "-s",
            metavar="NAME",
            help="train, val or test, each drawn with textures of its own.",
        ),
    ] = "train",
    count: Annotated[
        int,
        typer.Option(
            "--count", "-n", min=1, max=1_000_000, metavar="N", help="Number of pictures."
        ),
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Same seed, same files.")] = 0,
    size: Annotated[Size, size_option(help="Height and width in pixels.")] = FULL_SIZE,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, metavar="N", show_default="one per core", help="Processes."),
    ] = None,
) -> None:
    """Generate street scenes with exact labels, as a Cityscapes tree (leftImg8bit and gtFine).

    All 19 classes appear. Train, val and test share no texture. The files depend on seed, split and
    size alone, whatever the number of processes.

    [bold]Examples[/]

    [cyan]fassd synth streets --count 1500 --size 512x1024[/]

    [cyan]fassd synth streets --split val --count 100 --size 512x1024[/]

    [cyan]fassd data check streets[/]
    """
    from fassd.synth.write import write_tree

    with progress() as bar:
        task = bar.add_task(f"drawing {split}", total=count)
        write_tree(folder, split, count, seed, size, workers, lambda: bar.advance(task))
    say(f"{count:,} pictures of {size} and their labels in {escape(str(folder))}, split {split}")
