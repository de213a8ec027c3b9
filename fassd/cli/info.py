"""`fassd info`: networks and their costs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fassd.cli import options
from fassd.cli.common import app, pick_network
from fassd.cli.options import FULL_SIZE, Size, size_option
from fassd.cli.terminal import console, plain_table, swatch


@app.command()
def info(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Network, or a file of [cyan]fassd train[/]; without it, all networks are listed. "
            "With --encoders: part of their names, or a pattern with * and ?.",
        ),
    ] = None,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="List the encoders from timm that fit.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", "-w", metavar="FILE", help="Trained weights that name their network."
        ),
    ] = None,
    input_: Annotated[Size, size_option("--input", help="Size of the input.")] = FULL_SIZE,
    classes: options.Classes = None,
    alpha: options.Alpha = None,
    encoder_name: options.EncoderName = None,
) -> None:
    """Show what a network costs, part by part; or, without a name, which networks there are.

    The costs are parameters, multiply-accumulates, activation memory, and the taps of dilated
    convolutions that read only padding at the given input size.

    [bold]Examples[/]

    [cyan]fassd info[/]

    [cyan]fassd info fassd_net --input 512x1024[/]

    [cyan]fassd info fassd_net_l2 --classes 11 --alpha 4[/]

    [cyan]fassd info runs/plants/best.safetensors[/]

    [cyan]fassd info --encoders 'resnet*d'[/]

    [cyan]fassd info fassd_net --encoder-name resnet18d[/]
    """
    if encoders:
        console().print(_encoders(name or ""))
        return
    if (name, weights, encoder_name) == (None, None, None):
        console().print(_variants())
        console().print(_reports())
        return
    from fassd.bench.costs.counts import analyze
    from fassd.io.palette import classes_of
    from fassd.models import create_model, info_of
    from fassd.models.zoo import is_weights_file

    if weights is None and not is_weights_file(name):
        weights = "random"
    chosen = pick_network(name, weights, classes, alpha, encoder_name)
    network = create_model(chosen.model, chosen.classes, chosen.alpha, weights=chosen.weights)
    console().print(analyze(network, input_, name=chosen.model))
    known = info_of(network)
    if known is not None and known.preprocessing is not None:
        own = known.preprocessing
        console().print(
            f"pictures: {own.channels}, mean {own.mean}, deviation {own.std}, of 0 to 1"
        )
    if known is not None and known.class_names:
        console().print("classes:", *map(swatch, classes_of(network)))


def _encoders(pattern: str) -> Table:
    """Table of timm's encoders with matching names.

    Raises:
        ValueError: no name matches.
    """
    from fassd.bench.costs.encoders import encoder_costs

    table = plain_table(
        "encoder", ">M params", ">GMACs",
        title="Encoders alone, at 1024x2048", title_justify="left",
    )  # fmt: skip
    for name, cost in encoder_costs(pattern):
        table.add_row(name, f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.1f}")
    if not table.row_count:
        raise ValueError(
            f"no encoder from timm that fits matches {pattern!r}; fassd info --encoders lists all"
        )
    return table


def _reports() -> Table:
    from fassd.models import VARIANTS

    table = plain_table(
        "name", ">mIoU", "on", ">fps", "", "source",
        title="\nFurther published scores", title_justify="left",
    )  # fmt: skip
    for name, variant in VARIANTS.items():
        for report in variant.reports:
            speed = "" if report.fps is None else f"{report.fps:g}"
            row = f"{report.miou}", report.data, speed, report.device, report.source
            table.add_row(name, *row)
    return table


def _variants() -> Table:
    from fassd.models import VARIANTS

    headings = (">GFLOPs", ">M params", ">fps", ">mIoU", "")
    table = plain_table(
        "name",
        *headings,
        title="The authors' own figures: Cityscapes, 1024x2048, GTX 1080 Ti",
        caption="GFLOPs as published (multiply-accumulates); exact counts: fassd info NAME",
        title_justify="left",
        caption_justify="left",
    )
    for name, variant in VARIANTS.items():
        figures = variant.published
        shown = (
            [f"{figures.gflops}", f"{figures.params_m}", f"{figures.fps_1080ti}", f"{figures.miou}"]
            if figures
            else ["-"] * 4
        )
        table.add_row(name, *shown, variant.description)
    return table
