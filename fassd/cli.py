"""The command line `fassd`.

PyTorch is imported inside the commands: `fassd --help` answers at once.
"""

from __future__ import annotations

import json
import re
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

import fassd

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.bench import Report
    from fassd.images import Picture
    from fassd.predict import Segmenter

__all__ = ["Size", "app", "main", "parse_size"]

AGREEMENT_OF_DEMO = 99.9  # per cent of the labels
ROWS_SHOWN = 20  # pictures in the table at the end of `fassd predict`
RANDOM = "random weights: labels are meaningless until trained weights are given (--weights)"


# ------------------------------------------------------------------------------- errors and sizes


class _Group(TyperGroup):
    """Reflows help texts; makes one line of a warning or an expected error (exit code 2)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            # typer keeps the line breaks of docstrings, which then meet those of the terminal.
            paragraphs = (command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("stopped")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):  # RuntimeErrors, too
            raise
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            _say(f"[bold red]error:[/] {escape(str(error) or type(error).__name__)}")
            raise typer.Exit(2) from None


class Size(NamedTuple):
    """Height and width in pixels, written 1024x2048."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def parse_size(text: str | Size) -> Size:
    """Read "HxW".

    Raises:
        typer.BadParameter: it is not two positive whole numbers with an x between.
    """
    if isinstance(text, Size):
        return text
    match = re.fullmatch(r"\s*([1-9]\d*)\s*x\s*([1-9]\d*)\s*", text.lower())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a size; write height x width in pixels, for example 1024x2048"
        )
    return Size(int(match[1]), int(match[2]))


def _console() -> Console:
    return Console(highlight=False)


def _say(markup: str) -> None:
    """A line for the person at the screen; on stderr, so that stdout holds results alone."""
    Console(stderr=True, highlight=False).print(markup, soft_wrap=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"[yellow]warning:[/] {escape(str(message))}")


# --------------------------------------------------------------------------------- shared options

Model = Annotated[
    str, typer.Option("--model", "-m", help="Network; [cyan]fassd info[/] lists them.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        help="Trained weights: a file (.pkl, .pth, .pt, .safetensors), or [cyan]cityscapes[/] for "
        "the authors' own, downloaded once. Random if not given.",
    ),
]
Classes = Annotated[int, typer.Option("--classes", min=1, max=65536, help="Number of classes.")]
Alpha = Annotated[
    int, typer.Option("--alpha", min=1, help="How much narrower DAPF's branches are.")
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        "-b",
        help="[cyan]auto[/]: the fastest fused kernels here; [cyan]reference[/]: plain PyTorch; or "
        "one that [cyan]python -m fassd_kernels[/] lists.",
    ),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"], typer.Option("--dtype", help="Precision.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="[cyan]cpu[/], [cyan]cuda[/], [cyan]cuda:1[/]; a GPU if any."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="CPU threads; PyTorch's choice if not given."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Which street scene.")]

app = typer.Typer(
    name="fassd",
    cls=_Group,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fassd {fassd.__version__}")
        raise typer.Exit


@app.callback()
def root(
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

    [cyan]fassd demo -o demo[/]   a generated street through plain PyTorch and fused kernels

    [cyan]fassd predict photo.jpg -o out -w cityscapes[/]   your picture, the authors' weights

    [cyan]fassd bench[/]   how fast this machine is

    [cyan]fassd info[/]   which networks there are
    """


# ---------------------------------------------------------------------------------------- predict


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
        _say(f"[red]failed:[/] {escape(str(missed))}")
    if not pictures:
        raise unfound[-1]
    _set_threads(threads)
    segmenter = _segmenter(model, weights, classes, alpha, backend, dtype, device, size)
    if weights is None:
        _say(f"[yellow]{escape(RANDOM)}[/]")

    done: list[tuple[Picture, Size, float]] = []
    started = time.perf_counter()
    with _progress() as progress:
        task = progress.add_task("segmenting", total=len(pictures))
        for picture in pictures:
            try:
                done.append((picture, *_predict_one(segmenter, picture, output, classes, opacity)))
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                _say(f"[red]failed:[/] {escape(_reason(picture, error))}")
            progress.advance(task)
    failed = len(pictures) - len(done) + len(unfound)
    if done:
        _console().print(_summary(done))
    seconds = time.perf_counter() - started
    trouble = f", [red]{failed} failed[/]" if failed else ""
    count = f"{len(done)} of {len(pictures)} pictures in {seconds:.1f} s"
    _say(f"{count}{trouble}: {escape(str(output))}")
    if failed:
        raise typer.Exit(1 if done else 2)


def _segmenter(
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


# ---------------------------------------------------------------------------------- bench and demo


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
    json_: Annotated[
        Path | None, typer.Option("--json", help="Also write every figure to this file.")
    ] = None,
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
    from fassd.images import check_folder, replacing
    from fassd.predict import pick_device

    if json_ is not None:
        check_folder(json_.parent)
        if json_.is_dir():
            raise IsADirectoryError(f"cannot write to {json_}: it is a folder, not a file")
    report = _measure(
        Job(
            model=model,
            weights=weights,
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
    _console().print(report)
    if json_ is not None:
        with replacing(json_) as file:
            file.write(json.dumps(report.to_json(), indent=1).encode())
        _say(f"figures: {escape(str(json_))}")


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

    Writes [cyan]scene.png[/], [cyan]labels.png[/] (in colours) and [cyan]overlay.png[/]. Without
    weights the network is random, its batch norms calibrated on the scene: the labels follow
    what the picture shows, but their names mean nothing.

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
    _console().print(report)
    results = {
        "scene.png": report.picture,
        "labels.png": colorize(report.labels),
        "overlay.png": overlay(report.picture, report.labels),
    }
    for name, result in results.items():
        write_image(output / name, result)
    _say(f"pictures: {escape(str(output))}/ {', '.join(results)}")
    if not report.labels_agree >= AGREEMENT_OF_DEMO:
        _say(
            f"[bold red]error:[/] {report.labels_agree:.3f}% of the labels agree with plain "
            f"PyTorch's, {AGREEMENT_OF_DEMO}% are asked for"
        )
        raise typer.Exit(1)


def _measure(job: Any) -> Report:
    """Run a `fassd.bench.Job` with a progress bar."""
    from fassd.bench import run

    with _progress() as progress:
        task = progress.add_task("", total=job.warmup + job.repeats)
        return run(
            job,
            step=lambda words: progress.update(task, description=words),
            tick=lambda: progress.advance(task),
        )


# ------------------------------------------------------------------------------------------- info


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(help="Network; without it, all are listed.")] = None,
    input_: Annotated[
        Size,
        typer.Option(
            "--input",
            parser=parse_size,
            metavar="HxW",
            show_default="1024x2048",
            help="Size of the input.",
        ),
    ] = Size(1024, 2048),
    classes: Classes = 19,
    alpha: Alpha = 2,
) -> None:
    """What a network costs, part by part; or, without a name, which networks there are.

    Parameters, multiply-accumulates, activation memory, and the taps of dilated convolutions
    that read only padding at that input size.

    [bold]Examples[/]

    [cyan]fassd info[/]

    [cyan]fassd info fassd_net --input 512x1024[/]

    [cyan]fassd info fassd_net_l2 --classes 11 --alpha 4[/]
    """
    if name is None:
        _console().print(_variants())
        return
    from fassd.complexity import analyze
    from fassd.models import create_model

    _console().print(analyze(create_model(name, classes, alpha), input_, name=name))


def _variants() -> Table:
    from fassd.models import VARIANTS

    table = Table(
        title="The authors' own figures: Cityscapes, 1024x2048, GTX 1080 Ti",
        caption="GFLOPs as published (multiply-accumulates); exact counts: fassd info NAME",
        header_style="bold",
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("name", no_wrap=True, style="cyan")
    for heading in ("GFLOPs", "M params", "fps", "mIoU"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, variant in VARIANTS.items():
        figures = variant.published
        shown = (
            [f"{figures.gflops}", f"{figures.params_m}", f"{figures.fps_1080ti}", f"{figures.miou}"]
            if figures
            else ["-"] * 4
        )
        table.add_row(name, *shown, variant.description)
    return table


# ----------------------------------------------------------------------------------------- helpers


def _progress() -> Progress:
    """A progress bar on stderr; silent where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    """Entry point of the console script `fassd`."""
    app(prog_name="fassd")
