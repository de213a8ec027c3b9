"""`fassd train`: training of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TimeElapsedColumn

from fassd.cli import options
from fassd.cli.common import app
from fassd.cli.options import with_groups
from fassd.cli.terminal import console, escape, escape_lines, progress, say
from fassd.io.untrusted import read_text, read_yaml, shortened, shown

if TYPE_CHECKING:
    from fassd.data.card import Card
    from fassd.evaluation.evaluate import Evaluation
    from fassd.training.recipe import Recipe

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="CARD",
        help="A folder (Cityscapes' tree, or one with a card.yaml), a card's file, or the name "
        "of a shipped card ([cyan]fassd data list[/]) with --root. May be repeated: the classes "
        "are those of the first, and [cyan]-s shares=[1,2][/] says how often each is seen.",
    ),
]
Root = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the pictures that a card describes; one for each shipped card's name.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME",
        show_default="paper",
        help="[cyan]paper[/], [cyan]paper-l1[/], [cyan]paper-l2[/], [cyan]streets[/], "
        "[cyan]demo[/], [cyan]membrane[/], or a YAML file of settings.",
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Weights that the encoder starts from: [cyan]imagenet[/] (downloaded once; for an "
        "encoder from timm, timm's own) or [cyan]random[/].",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="[cyan]float32[/], [cyan]bfloat16[/], [cyan]float16[/] or [cyan]auto[/].",
    ),
]


@dataclass(frozen=True)
class RecipeOptions:
    """A preset, and the settings of `fassd.training.recipe.Recipe` that have their own options."""

    preset: Preset = None
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Network.")] = (
        None
    )
    encoder: Encoder = None
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", metavar="NAME", help="Start from these weights."),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Optimizer steps; or give epochs: [cyan]-s epochs=30[/]."),
    ] = None
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Pictures per step, over all processes.")
    ] = None
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Parts that a process takes its pictures in, to save memory."
        ),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option("--lr", metavar="RATE", help="Learning rate.")
    ] = None
    precision: Precision = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of everything random.")] = None
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that read pictures.")
    ] = None
    threads: options.Threads = None


Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="Change any setting; may be repeated."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in the folder with its settings, of which --steps, --lr, "
        "--threads, --workers and some of --set may change.",
    ),
]


@app.command()
@with_groups
def train(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the run.")
    ],
    data: Data = None,
    root: Root = None,
    settings: RecipeOptions,
    encoder_name: options.EncoderName = None,
    set_: Assignments = None,
    device: options.Device = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and the data, train nothing.")
    ] = False,
) -> None:
    """Train a network.

    Writes recipe.yaml, log.csv, val.csv, TensorBoard logs, pictures of predictions,
    [cyan]best.safetensors[/], [cyan]last.safetensors[/] and checkpoints to the output folder.
    Ctrl-C saves and stops; --resume continues as if nothing had happened (bit for bit on a CPU with
    as many threads, and on a GPU with -s deterministic=true).

    With several GPUs or machines, start it with [cyan]torchrun[/]; the processes share --batch, and
    all machines must see the same --output folder.

    [bold]Examples[/]

    [cyan]fassd train --preset paper --data cityscapes/ -o runs/paper[/]

    [cyan]fassd train -d cityscapes/ -o runs/small --accumulate 8 --precision bfloat16[/]

    [cyan]fassd train --preset demo --data streets/ -o runs/demo --set ema=0.995[/]

    [cyan]fassd train -d cityscapes/ -o runs/resnet --encoder-name resnet18d[/]

    [cyan]fassd train -p demo -d streets/ -d camvid --root CamVid/ -o runs/both[/]

    [cyan]torchrun --nproc-per-node 4 -m fassd train -d cityscapes/ -o runs/four[/]
    """
    from fassd.distributed import is_main, process_group
    from fassd.models.variants import full_name
    from fassd.training.loop import StoppedError, Trainer
    from fassd.training.recipe import load_recipe

    changes = {name: value for name, value in vars(settings).items() if value is not None}
    changes |= dict(_assignment(text) for text in set_ or ())
    if resume:
        if encoder_name is not None:
            raise ValueError("--resume keeps the encoder of the run: leave out --encoder-name")
        recipe = _resumed(output, changes)
    else:
        recipe = load_recipe(changes.pop("preset", "paper")).replace(**changes)
        recipe = recipe.replace(model=full_name(recipe.model, encoder_name))
    cards = _cards(output, data or [], root or [], resume)
    if dry_run:
        if recipe is not None:
            console().print(recipe.to_yaml(), markup=False)
        for card in cards:
            console().print(
                f"{escape(card.name)}: {card.num_classes} classes, {escape(str(card.root))}"
            )
        return
    with process_group(device) as home:
        with _Screen(output, shown=is_main()) as screen:
            trainer = Trainer(recipe, cards, output, device=home, resume=resume, reporter=screen)
            try:
                trainer.run()
            except StoppedError as error:
                screen.message(str(error))
                raise typer.Exit(130) from None
        if is_main():
            for dataset, evaluation in zip(trainer.val_sets, trainer.evaluations, strict=False):
                if len(trainer.val_sets) > 1:
                    console().print(f"{escape(dataset.card.name)}, {escape(dataset.split)}:")
                console().print(evaluation)
    if is_main():
        if trainer.unscored:
            say(f"[yellow]{trainer.unscored} of the run's validations failed[/]")
        names = [
            name for name in ("best.safetensors", "last.safetensors") if (output / name).exists()
        ]
        say(f"weights: {escape(str(output))}/{', '.join(names)}")


def _assignment(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise typer.BadParameter(f"--set takes NAME=VALUE, got {text!r}")
    try:
        return name.strip().replace("-", "_"), read_yaml(value)
    except ValueError as error:
        raise typer.BadParameter(
            f"--set {shortened(name, 40)}: {shown(value)} is not a YAML value ({error})"
        ) from error


def _resumed(output: Path, changes: dict[str, Any]) -> Recipe | None:
    """The run's recipe with changes; None without any.

    Raises:
        RecipeError: a setting cannot be changed.
    """
    from fassd.training.recipe import CHANGEABLE, RecipeError, recipe_of_run

    fixed = sorted(set(changes) - CHANGEABLE)
    if fixed:
        raise RecipeError(
            f"--resume keeps the settings of the run: leave out {', '.join(fixed)} (what may "
            f"change is {', '.join(sorted(CHANGEABLE))})"
        )
    file = output / "recipe.yaml"
    return recipe_of_run(file).replace(**changes) if changes and file.is_file() else None


def _cards(output: Path, data: list[str], roots: list[Path], resume: bool) -> list[Card]:
    """The requested cards, or for those not given the cards of the run to be resumed."""
    from fassd.data.card import CardError
    from fassd.data.cardfile import load_card
    from fassd.training.state import DATA

    if data:
        return [load_card(*entry) for entry in zip(data, _placed(data, roots), strict=True)]
    file = output / DATA
    if resume and not file.is_file():
        raise ValueError(
            f"--resume continues the run in {output}, but there is no {file}: give the folder of a "
            "run, or --data if that file was lost"
        )
    if not resume:
        raise ValueError("--data is needed: a folder, a card's file, or a shipped card's name")
    try:
        entries = _noted(read_yaml(read_text(file)))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged: give --data") from error
    if roots and len(roots) != len(entries):
        raise ValueError(f"{file} names {len(entries)} data sets: give --root once for each")
    try:
        return [
            load_card(entry, root or before)
            for (entry, before), root in zip(entries, roots or len(entries) * (None,), strict=True)
        ]
    except CardError as error:
        raise CardError(f"{error} (as {file} has it: if it was moved, give --data)") from error


def _placed(data: list[str], roots: list[Path]) -> list[Path | None]:
    """The root of each `--data`: one for each of them, or for each that is a shipped card's name.

    Raises:
        ValueError: their number is neither of these.
    """
    from fassd.data.cardfile import shipped_cards

    if len(roots) == len(data):
        return list(roots)
    named = [text in shipped_cards() for text in data]
    if roots and len(roots) != sum(named):
        raise ValueError(
            f"--root must be given once for each --data ({len(data)}), or for each of them that is "
            f"a shipped card's name ({sum(named)}), got {len(roots)}"
        )
    given = iter(roots)
    return [next(given, None) if shipped else None for shipped in named]


def _noted(value: Any) -> list[tuple[str, str | None]]:
    """Data and root of each data set, from data.yaml.

    Raises:
        TypeError, KeyError: the content is something else.
    """
    entries = value if isinstance(value, list) else [value]
    pairs = [(entry["data"], entry["root"]) for entry in entries]
    if not pairs or not all(isinstance(d, str) and isinstance(r, str | None) for d, r in pairs):
        raise TypeError
    return pairs


class _Screen:
    """Display of a run on the terminal: a bar with loss, rate and time, and a line per event."""

    def __init__(self, output: Path, shown: bool) -> None:
        self.bar = progress(shown, TimeElapsedColumn())
        self.console, self.live = self.bar.console, not self.bar.disable
        self.output = output
        self.training = self.bar.add_task("", total=None)
        self.validation = self.bar.add_task("validating", total=None, visible=False)

    def __enter__(self) -> _Screen:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def started(self, recipe: Recipe, step: int) -> None:
        begun = f"going on after step {step}" if step else "new run"
        self._line(
            f"{escape(recipe.model)}, {recipe.steps} steps of {recipe.batch} at "
            f"{recipe.crop[0]}x{recipe.crop[1]}, {recipe.precision}: {begun} in "
            f"[cyan]{escape(str(self.output))}[/]"
        )
        self.bar.update(self.training, completed=step, total=recipe.steps)

    def stepped(self, step: int, loss: float, learning_rate: float) -> None:
        self.bar.update(self.validation, visible=False)  # of a validation that failed
        text = f"loss {loss:.4f}  lr {learning_rate:.2e}"
        self.bar.update(self.training, completed=step, description=text)
        if not self.live:
            self._line(f"step {step}  {text}")

    def validating(self, done: int, total: int) -> None:
        visible = done < total
        self.bar.update(self.validation, completed=done, total=total, visible=visible)

    def validated(self, step: int, evaluations: Sequence[Evaluation], best: bool) -> None:
        self.bar.update(self.validation, visible=False)
        scores = [evaluation.scores for evaluation in evaluations]  # in the order of --data
        mious = ", ".join(f"{100 * each.miou:.2f}%" for each in scores)
        accuracies = ", ".join(f"{100 * each.pixel_accuracy:.2f}%" for each in scores)
        self._line(
            f"step {step}  [bold]mIoU {mious}[/]  pixel accuracy {accuracies}"
            f"{'  [green]best so far[/]' if best else ''}"
        )

    def message(self, text: str) -> None:
        self._line(f"[yellow]{escape_lines(text)}[/]")

    def _line(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)
