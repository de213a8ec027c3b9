"""`fassd publish`: a run's network on the Hugging Face hub, or in a folder as the hub has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fassd.cli.common import app
from fassd.cli.terminal import escape, say
from fassd.io.files import check_folder


@app.command()
def publish(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS", help="best.safetensors or last.safetensors, in the run's folder."
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository.")],
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="Licence of the weights, as in cc-by-4.0."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write into a folder; nothing is sent."
        ),
    ] = None,
) -> None:
    """Publish a network that fassd train has left, with a model card written from its run.

    In Python, FASSDNet.from_pretrained reads repositories and such folders. Needs
    [cyan]pip install 'fassd-net\\[hub]'[/]; log in with
    [cyan]hf auth login[/].

    [bold]Examples[/]

    [cyan]fassd publish runs/a/best.safetensors owner/name -o folder[/]: to look at it first

    [cyan]fassd publish runs/a/best.safetensors owner/name --license cc-by-4.0[/]
    """
    from fassd.models import load
    from fassd.training import model_card

    if output is not None:
        check_folder(output)
    card = model_card(weights, repository, license_)
    network = load(weights)
    if output is None:
        say(escape(network.push_to_hub(repository, card, private=private or None)))
    else:
        network.save_pretrained(output, card)
        say(f"{escape(repository)} in {escape(str(output))}")
