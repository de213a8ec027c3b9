"""`fassd data`: shipped cards, new ones, and the check of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fassd.cli import options
from fassd.cli.common import CommandGroup, app
from fassd.cli.terminal import (
    console,
    counted,
    escape,
    escape_lines,
    plain_table,
    progress,
    say,
    swatch,
    visible,
    write_json,
)
from fassd.io.files import check_file

if TYPE_CHECKING:
    from fassd.data.check import CheckReport, Finding, SplitReport

PROBLEMS_SHOWN = 20
SIZES_SHOWN = 3

data = typer.Typer(
    cls=CommandGroup,
    help="List the cards that ship, write a card for your data, check a dataset.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(data, name="data")


@data.command("list")
def list_() -> None:
    """List the cards that come with the package; each is a file to copy and change."""
    from fassd.data.card import CARDS
    from fassd.data.cardfile import load_card, shipped_cards

    table = plain_table("card", ">classes", "splits", "")
    for name in shipped_cards():
        card = load_card(name, root=CARDS)  # any folder: no files are searched for
        table.add_row(name, str(card.num_classes), ", ".join(card.splits), card.description)
    console().print(table)
    say(f"files: {escape(str(CARDS))}")


@data.command()
def new(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Pictures with masks or polygons.")
    ],
) -> None:
    """Look at a folder and write a card for it, with comments that explain what was found.

    It recognises masks (PNG and the like, or .npy) and polygons of LabelMe, COCO and YOLO, beside
    the pictures or in folders of their own, with or without folders for splits.

    [bold]Examples[/]

    [cyan]fassd data new photos/[/]: writes photos/card.yaml
    """
    from fassd.data.newcard import write_card

    card = write_card(folder)
    say(f"{card.pairs:,} pictures with labels, {len(card.labels.classes)} classes")
    if card.unpaired:
        say(f"[yellow]warning:[/] {card.unpaired:,} pictures have no labels")
    for path in card.written:
        say(f"written: {escape(str(path))}")
    say(f"read it through, then: fassd data check {escape(str(folder))}")


@data.command()
def check(
    card: Annotated[
        str,
        typer.Argument(
            metavar="CARD",
            help="A card's YAML file, a folder with card.yaml or Cityscapes in it, or the name of "
            "a shipped card ([cyan]fassd data list[/]).",
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the dataset; shipped cards need it."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this split; may be repeated.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, metavar="N", show_default="one per core, at most 8", help="Threads."
        ),
    ] = None,
    json_: options.Json = None,
) -> None:
    """Read every picture and mask of a dataset and report all that is wrong.

    Exit code: 0 nothing is wrong (there may be warnings), 1 something is, 2 the card is unusable.

    [bold]Examples[/]

    [cyan]fassd data check /data/cityscapes[/]

    [cyan]fassd data check ade20k --root /data/ADEChallengeData2016 --split val[/]
    """
    from fassd.data.cardfile import load_card
    from fassd.data.check import check_card

    dataset = load_card(card, root)
    check_file(json_)
    with progress() as bar:
        task = bar.add_task(f"reading {visible(dataset.name)}", total=None)
        report = check_card(
            dataset, split, workers, lambda done, all_: bar.update(task, completed=done, total=all_)
        )
    console().print(_splits_table(report))
    if any(part.read for part in report.splits):
        console().print(_classes_table(report))
    _tell(report.warnings, "[yellow]warning:[/]")
    _tell(report.errors, "[bold red]error:[/]")
    if json_ is not None:
        write_json(json_, report.to_json())
    count = f"{counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}"
    say(f"{escape(dataset.name)} in {escape(str(dataset.root))}: {count}")
    if report.errors:
        raise typer.Exit(1)


def _splits_table(report: CheckReport) -> Table:
    table = plain_table("split", ">pictures", ">read", "sizes", ">ignored")
    for split in report.splits:
        expected = "" if split.expected in (None, split.pictures) else f" of {split.expected:,}"
        ignored = f"{100 * split.ignored_share:.2f}%" if split.read else "-"
        table.add_row(
            escape(split.name), f"{split.pictures:,}{expected}", f"{split.read:,}",
            _sizes(split), ignored,
        )  # fmt: skip
    return table


def _sizes(split: SplitReport) -> str:
    """The most frequent sizes, with their numbers if there are several."""
    if len(split.sizes) == 1:
        return "{}x{}".format(*next(iter(split.sizes)))
    common = split.sizes.most_common(SIZES_SHOWN)
    shown = [f"{height}x{width} ({count:,})" for (height, width), count in common]
    more = len(split.sizes) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more > 0 else shown)


def _classes_table(report: CheckReport) -> Table:
    """Shares of the labelled pixels."""
    table = plain_table("class", *(f">{escape(split.name)}" for split in report.splits))
    for index, info in enumerate(report.card.classes):
        shares = [
            f"{100 * split.pixels[index] / max(1, split.pixels.sum()):.3f}%"
            for split in report.splits
        ]
        table.add_row(swatch(info), *shares)
    return table


def _tell(problems: list[Finding], prefix: str) -> None:
    for problem in problems[:PROBLEMS_SHOWN]:
        say(f"{prefix} {escape(problem.split)}: {escape_lines(problem.message)}")
    if len(problems) > PROBLEMS_SHOWN:
        say(f"{prefix} ... and {len(problems) - PROBLEMS_SHOWN} more (--json writes them all)")
