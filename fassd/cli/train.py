"""`fassd train`: learn weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fassd.cli.common import Device, Threads, app, console, escape, escape_lines, say, set_threads

if TYPE_CHECKING:
    from fassd.training.evaluation import Evaluation
    from fassd.training.recipe import Recipe


@app.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="A folder (Cityscapes' tree, or one with a card.yaml), a card's file, or the name "
            "of a shipped card ([cyan]fassd data list[/]) with --root.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of the pictures, for a card.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            help="[cyan]paper[/], [cyan]paper-l1[/], [cyan]paper-l2[/], [cyan]demo[/], or a YAML "
            "file of settings. Without it [cyan]paper[/].",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="NAME=VALUE", help="Change any setting; may be repeated."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Network.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="[cyan]imagenet[/] (downloaded once) or [cyan]random[/].")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="Start from these weights.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step, all processes.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-batches that a process makes of its part.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="[cyan]float32[/], [cyan]bfloat16[/], [cyan]float16[/] or [cyan]auto[/]."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read pictures.")] = None,
    device: Device = None,
    threads: Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, settings and all.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and the data, train nothing.")
    ] = False,
) -> None:
    """Train a network.

    The folder of the run gets recipe.yaml, log.csv, val.csv, TensorBoard logs, pictures of
    predictions, [cyan]best.safetensors[/] and [cyan]last.safetensors[/], and checkpoints. Ctrl-C
    saves and stops; --resume goes on as if nothing had happened (to the last bit on a CPU
    with as many threads; on a GPU with -s deterministic=true).

    Many GPUs or machines: start it with [cyan]torchrun[/]; --batch is shared among the processes,
    and all machines have to see the same --output folder.

    [bold]Examples[/]

    [cyan]fassd train --preset paper --data cityscapes/ -o runs/paper[/]

    [cyan]fassd train -p paper -d cityscapes/ -o runs/small --accumulate 8 --precision bfloat16[/]

    [cyan]fassd synth streets --split train --count 1500[/] and [cyan]--split val --count 100[/]

    [cyan]fassd train --preset demo --data streets/ -o runs/demo --set ema=0.995[/]

    [cyan]torchrun --nproc-per-node 4 -m fassd train -p paper -d cityscapes/ -o runs/four[/]
    """
    from fassd.data.card import load_card
    from fassd.training.distributed import is_main, process_group
    from fassd.training.loop import StoppedError, Trainer
    from fassd.training.recipe import RecipeError

    options: dict[str, Any] = {
        "preset": preset,
        "model": model,
        "encoder": encoder,
        "weights": weights,
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
        "workers": workers,
    }
    changes = {name: value for name, value in options.items() if value is not None}
    changes |= dict(_assignment(text) for text in set_ or ())
    if resume and changes:
        raise RecipeError(
            f"--resume takes the settings of the run; leave out {', '.join(sorted(changes))}"
        )
    recipe = None if resume else _recipe(changes.pop("preset", "paper"), changes)
    data, root = _remembered(output, data, root, resume)
    card = load_card(data, root)
    if dry_run:
        if recipe is not None:
            console().print(recipe.to_yaml(), markup=False)
        console().print(
            f"{escape(card.name)}: {card.num_classes} classes, {escape(str(card.root))}"
        )
        return
    set_threads(threads)
    with process_group(device) as home:
        with _Screen(output, shown=is_main()) as screen:
            trainer = Trainer(recipe, card, output, device=home, resume=resume, reporter=screen)
            if is_main():
                _remember(output, data, root)
            try:
                result = trainer.run()
            except StoppedError as error:
                screen.message(str(error))
                raise typer.Exit(130) from None
        if is_main() and result is not None:
            console().print(result)
    if is_main():
        say(f"weights: {escape(str(output))}/best.safetensors, last.safetensors")


def _assignment(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise typer.BadParameter(f"--set takes NAME=VALUE, got {text!r}")
    try:
        return name.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"--set {text}: {value!r} is no YAML value") from error


def _recipe(preset: str, changes: dict[str, Any]) -> Recipe:
    from fassd.training.recipe import load_recipe

    recipe = load_recipe(preset)
    return recipe.replace(**changes) if changes else recipe


# The data of a run is written beside its recipe, so that --resume needs no more than the folder.
DATA = "data.yaml"


def _remember(output: Path, data: str, root: Path | None) -> None:
    from fassd.images import replacing

    place = str(Path(data).resolve()) if Path(data).exists() else data
    entry = {"data": place, "root": None if root is None else str(root.resolve())}
    with replacing(output / DATA) as file:
        file.write(yaml.safe_dump(entry).encode())


def _remembered(
    output: Path, data: str | None, root: Path | None, resume: bool
) -> tuple[str, Path | None]:
    if data is not None:
        return data, root
    if resume and (output / DATA).is_file():
        try:
            entry = yaml.safe_load((output / DATA).read_text(encoding="utf-8"))
            return entry["data"], None if entry["root"] is None else Path(entry["root"])
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise ValueError(f"{output / DATA} is damaged: give --data") from error
    raise ValueError("--data is needed: a folder, a card's file, or a shipped card's name")


class _Screen:
    """The run on the terminal: a bar with loss, rate and time, and a line per event."""

    def __init__(self, output: Path, shown: bool) -> None:
        self.console = console(stderr=True)
        live = shown and self.console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not live,
        )
        self.live = live
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
        text = f"loss {loss:.4f}  lr {learning_rate:.2e}"
        self.bar.update(self.training, completed=step, description=text)
        if not self.live:
            self._line(f"step {step}  {text}")

    def validating(self, done: int, total: int) -> None:
        visible = done < total
        self.bar.update(self.validation, completed=done, total=total, visible=visible)

    def validated(self, step: int, evaluation: Evaluation, best: bool) -> None:
        scores = evaluation.scores
        self.bar.update(self.validation, visible=False)
        self._line(
            f"step {step}  [bold]mIoU {100 * scores.miou:.2f}%[/]  pixel accuracy "
            f"{100 * scores.pixel_accuracy:.2f}%{'  [green]best so far[/]' if best else ''}"
        )

    def message(self, text: str) -> None:
        self._line(f"[yellow]{escape_lines(text)}[/]")

    def _line(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)
