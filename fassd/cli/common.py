"""Parts that all commands share: the application, and the options that choose a network.

PyTorch is imported inside the commands, so that `fassd --help` answers at once.
"""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

import fassd
from fassd.cli.terminal import escape, escape_lines, say, visible

ABOUT_WEIGHTS = {
    None: "random weights: labels are meaningless until trained weights are given (--weights)",
    "streets": "streets weights, trained on CamVid's photographs and generated streets alone: "
    "labels of other streets will be worse (--weights cityscapes, or your own)",
    "synthetic": "synthetic weights, trained on generated streets alone: for photographs use "
    "others (--weights streets, cityscapes, or your own)",
}
# Commands in the order in which a newcomer meets them; others follow.
MET = ("demo", "predict", "info", "val", "compare", "train", "data", "synth", "export")
UsageError: Any = typer.BadParameter.__base__  # of options and arguments


# ------------------------------------------------------------------------------------------ errors


class CommandGroup(TyperGroup):
    """Reflows help texts; prints a warning or an expected error (exit code 2) in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            # typer keeps the line breaks of docstrings in addition to those of the terminal.
            paragraphs = (command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=(*MET, *self.commands).index)

    def main(self, *args: Any, **settings: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # else an encoding may lack what is printed
                stream.reconfigure(errors="fassd")
        return super().main(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):  # they are RuntimeErrors, too
            raise
        except UsageError as error:
            error.message = visible(error.message)
            raise
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            if ctx.find_root().params.get("debug"):
                raise
            say(f"[bold red]error:[/] {escape_lines(str(error) or type(error).__name__)}")
            raise typer.Exit(2) from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"[yellow]warning:[/] {escape_lines(str(message))}")


# ----------------------------------------------------------------------------------- application

app = typer.Typer(
    name="fassd",
    cls=CommandGroup,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fassd {fassd.__version__}")
        raise typer.Exit


# These commands time the user's own program, whose OpenMP settings apply.
TIMING = ("bench", "demo", "report")


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="FASSD_DEBUG", help="Show tracebacks of errors.")
    ] = False,
) -> None:
    """Real-time segmentation of street scenes with the FASSD-Net family.

    [bold]Start here[/]

    [cyan]fassd demo -o demo[/]: a generated street, by plain PyTorch and by fused kernels

    [cyan]fassd predict photo.jpg -o out[/]: label your picture

    [cyan]fassd bench run[/]: how fast this machine is

    [cyan]fassd info[/]: which networks there are
    """
    if ctx.invoked_subcommand not in TIMING:
        fassd.wait_asleep()


# ----------------------------------------------------------------------------------------- helpers


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that unfinished files are removed."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


class Network(NamedTuple):
    """Arguments of `fassd.Segmenter` for the options that choose a network.

    Attributes:
        model: name of a network, or path of an exported file.
        weights: name or path of the weights; None for random ones, or those of an exported file.
        classes, alpha: number of classes, and alpha; None for those of an exported file.
    """

    model: str
    weights: str | None
    classes: int | None
    alpha: int | None


def pick_network(
    model: str | None,
    weights: str | None,
    classes: int | None = None,
    alpha: int | None = None,
    encoder_name: str | None = None,
    *,
    default_classes: int = 19,
) -> Network:
    """The network that --model, --weights, --classes, --alpha and --encoder-name choose, each None
    if not given.

    Args:
        model: name, path of a file of `fassd train` instead, or of an exported file.
        encoder_name: name of an encoder of timm, which becomes a part of the network's name.
        default_classes: number of classes if neither --classes nor the weights' file states it.

    Raises:
        ValueError: an option contradicts the file; the message names both.
    """
    from fassd.export import is_exported
    from fassd.models.info import read_info
    from fassd.models.variants import full_name
    from fassd.models.zoo import default_weights, is_weights_file, settled

    if is_exported(model):
        if encoder_name is not None:
            raise ValueError(f"{model} has an encoder: leave out --encoder-name {encoder_name}")
        return Network(str(model), weights, classes, alpha)
    if is_weights_file(model):
        if weights is not None:
            raise ValueError(f"{model} holds its own weights: leave out --weights {weights}")
        model, weights = None, str(model)
    own = None if weights == "random" else weights
    if encoder_name is not None:
        info = None if model or own is None else read_info(own)
        model = full_name(model or (info.model if info else "fassd_net"), encoder_name)
    name, count, reduction = settled(own, model, classes, alpha, default_classes)
    if weights is None:
        own = default_weights(name, count, reduction)
    return Network(name, own, count, reduction)


def split_model(text: str) -> tuple[str, str | None]:
    """NAME and WEIGHTS of NAME=WEIGHTS; for only a name or a file the weights are None."""
    from fassd.models.variants import is_name
    from fassd.models.zoo import is_weights_file

    name, _, weights = text.partition("=")
    if is_weights_file(text) and not is_name(name):
        return text, None
    return name, weights or None


def tell_weights(weights: str | None, network: Any = None) -> None:
    """Print a note on the quality of the weights, if it is less than expected.

    Args:
        weights: weights that were chosen.
        network: network; an exported file states its own weights.
    """
    weights = weights_of(weights, network)
    if weights in ABOUT_WEIGHTS:
        say(f"[yellow]{escape(ABOUT_WEIGHTS[weights])}[/]")


def device_for(model: str | None, device: str | None) -> str | None:
    """The requested device, or that of an exported file."""
    from fassd.export import default_device, is_exported

    return default_device(model) if device is None and is_exported(model) else device


def weights_of(weights: str | None, network: Any) -> str | None:
    """The chosen weights, or those that an exported file states."""
    exported = getattr(network, "metadata", None)
    return weights if exported is None else exported.weights
