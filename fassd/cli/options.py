"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import typer

from fassd.cli.common import Network, pick_network

Value = TypeVar("Value")

# ------------------------------------------------------------------------------------ their values


class Size(NamedTuple):
    """Height and width in pixels, written 1024x2048."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def parse_size(text: str | Size) -> Size:
    """Read "HxW".

    Raises:
        typer.BadParameter: it is not two positive whole numbers with an x between them.
    """
    if isinstance(text, Size):
        return text
    from fassd.models import sizes

    try:
        return Size(*sizes.parse_size(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def listed(parse: Callable[[str], Value]) -> Callable[[Any], Sequence[Value]]:
    """A parser of values separated by commas, each of which `parse` reads."""

    def parse_list(text: str | Sequence[Value]) -> Sequence[Value]:  # a default is parsed already
        return [parse(part.strip()) for part in text.split(",")] if isinstance(text, str) else text

    return parse_list


def numbers(
    kind: Callable[[str], float], what: str, least: float = -math.inf
) -> Callable[[Any], Sequence[Any]]:
    """A parser of numbers with commas between them.

    Args:
        kind: int or float.
        what: name of the accepted numbers, for the error.
        least: smallest accepted number.
    """

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if (number := kind(text)) >= least:
                return number
        raise typer.BadParameter(
            f"{text!r} is not a {what}; separate numbers by commas, like 1,2,4"
        )

    return listed(parse)


def parse_dtype(text: str) -> str:
    """Parse one of `ANY_DTYPES`.

    Raises:
        typer.BadParameter: it is not one of them.
    """
    if text not in ANY_DTYPES:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(ANY_DTYPES)}")
    return text


# ------------------------------------------------------------------------------------ the options

FULL_SIZE = Size(1024, 2048)


def size_option(*names: str, help: str) -> Any:
    """An option with a `Size` as its value, by default `FULL_SIZE`."""
    return typer.Option(
        *names, parser=parse_size, metavar="HxW", show_default=str(FULL_SIZE), help=help
    )


def classes_option(most: int) -> Any:
    return typer.Option(
        min=1,
        max=most,
        metavar="N",
        show_default="those of the weights, or 19",
        help="Number of classes.",
    )


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        show_default="that of the weights, or fassd_net",
        metavar="NAME",
        help="Network, one of [cyan]fassd info[/]; in [cyan]val[/], [cyan]predict[/] and "
        "[cyan]bench run[/] also a file of [cyan]fassd export[/].",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="NAME",
        show_default="streets, or random if there are none",
        help="Trained weights: a file (.safetensors, .pth, .pt, .pkl), [cyan]cityscapes[/] (the "
        "authors' own, downloaded once), [cyan]streets[/] (ours, trained on CamVid and generated "
        "streets), [cyan]synthetic[/] (ours, generated streets only) or [cyan]random[/]. A file of "
        "[cyan]fassd train[/] also sets network, classes and colours.",
    ),
]
Classes = Annotated[int | None, classes_option(65536)]
Alpha = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        show_default="that of the weights, or 2",
        help="Reduction: DAPF's branches have 1/N of its channels.",
    ),
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder-name",
        show_default="that of the weights, or HarDNet",
        metavar="NAME",
        help="Encoder from timm in place of HarDNet, one of [cyan]fassd info --encoders[/]. "
        "[cyan]-m fassd_net@NAME[/] does the same.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        "-b",
        metavar="NAME",
        help="[cyan]auto[/] (the fastest kernels here), [cyan]reference[/] (plain PyTorch), or one "
        "of [cyan]python -m fassd_kernels[/].",
    ),
]
DtypeName = Literal["float32", "float16", "bfloat16"]
DTYPES = get_args(DtypeName)
Dtype = Annotated[DtypeName, typer.Option(metavar="DTYPE", help=f"Precision: {', '.join(DTYPES)}.")]
ANY_DTYPES = (*DTYPES, "int8")
AnyDtype = Annotated[
    Literal["float32", "float16", "bfloat16", "int8"],
    typer.Option(
        metavar="DTYPE",
        help=f"Precision: {', '.join(ANY_DTYPES)}. int8, on a CPU, needs calibration.",
    ),
]
CALIBRATION = 64
"""Maximum number of pictures for calibration."""

Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="SOURCE",
        help="Pictures for int8, like those that will come: files, folders or patterns, of which "
        f"at most {CALIBRATION} are used, from all over. May be repeated.",
    ),
]


def spread(found: Sequence[Value], most: int = CALIBRATION) -> list[Value]:
    """At most that many of a sequence, at equal distances."""
    count = min(len(found), most)
    return [found[index * len(found) // count] for index in range(count)]


Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="a GPU if there is one",
        help="[cyan]cpu[/], [cyan]cuda[/] or [cyan]cuda:1[/].",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, metavar="N", show_default="PyTorch's choice", help="CPU threads."
    ),
]
Scales = Annotated[
    Sequence[float],
    typer.Option(
        parser=numbers(float, "number"),
        metavar="S,S,...",
        show_default="1",
        help="Scales at which each picture is seen; the probabilities of all views are averaged.",
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Also see each picture mirrored.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Which street scene.")]


@dataclass(frozen=True)
class NetworkOptions:
    """The options that choose a network and its backend."""

    model: Model = None
    weights: Weights = None
    classes: Classes = None
    alpha: Alpha = None
    encoder_name: EncoderName = None
    backend: Backend = "auto"

    def pick(self) -> Network:
        """The chosen network, see `pick_network`."""
        return pick_network(self.model, self.weights, self.classes, self.alpha, self.encoder_name)


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let parameters of a command be dataclasses, whose fields become its options.

    Typer only finds options in the parameters of a function.
    """
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[name] = group
            hints = get_type_hints(group, include_extras=True)
            members = inspect.signature(group).parameters.values()
            options += [member.replace(annotation=hints[member.name]) for member in members]
        else:
            options.append(parameter)

    @functools.wraps(command)
    def called(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY  # so that one without a default may follow others
    signature = inspect.Signature([option.replace(kind=keyword) for option in options])
    # typer reads the signature from here, but a function's type does not declare the attribute
    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write every figure to this file."),
]
