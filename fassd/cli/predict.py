"""`fassd predict`: label pictures and videos."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fassd.cli import options
from fassd.cli.batch import Batch, Outcome
from fassd.cli.common import Network, app, device_for, set_threads, tell_weights
from fassd.cli.memory import bounded_memory
from fassd.cli.options import NetworkOptions, Size, parse_size, with_groups
from fassd.cli.strips import StripBatch, StripOptions
from fassd.cli.terminal import console, escape, escape_lines, plain_table, say, tell_results
from fassd.cli.video import ResultOptions, check_used, one_file, prepare_videos, video_table
from fassd.io.files import check_file, check_folder

if TYPE_CHECKING:
    import torch

    from fassd.inference.pictures import ImageLike
    from fassd.inference.segmenter import Segmenter
    from fassd.io.find import PictureFile, Video

ROWS_SHOWN = 20  # pictures in the table at the end

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Pictures, videos, folders, quoted patterns like 'in/**/*.png', cameras "
        "([cyan]camera:0[/]), addresses ([cyan]rtsp://...[/]), numbered sequences "
        "([cyan]frame%04d.png[/]).",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Folder to write to; for a single picture or video also a file.",
    ),
]
InputSize = Annotated[
    Size | None,
    typer.Option(
        parser=parse_size,
        metavar="HxW",
        show_default="the picture's own",
        help="Size at which the network sees a picture; results keep the picture's own.",
    ),
]


@app.command()
@with_groups
def predict(
    *,
    source: Sources,
    output: Output,
    network: NetworkOptions,
    dtype: options.AnyDtype = "float32",
    calibration: options.Calibration = None,
    size: InputSize = None,
    scales: options.Scales = (1.0,),
    flip: options.Flip = False,
    device: options.Device = None,
    threads: options.Threads = None,
    again: Annotated[
        bool, typer.Option("--again", help="Redo what the output folder already has.")
    ] = False,
    results: ResultOptions,
    strips: StripOptions,
) -> None:
    """Segment pictures and videos.

    Writes three files for each picture: [cyan]NAME_color.png[/] (labels in colours),
    [cyan]NAME_overlay.png[/] (colours over the picture) and [cyan]NAME_trainids.png[/] (class
    indices, 8 or 16 bits). [cyan]--label-ids cityscapes[/] adds [cyan]NAME_labelids.png[/], with
    the ids of that data set's masks, which its benchmark's server takes. Folders are searched with
    their subfolders, whose tree is kept; equal names get -2, -3, ...

    Grey, palette, CMYK, RGBA (laid over grey), 16-bit (--range) and EXIF-rotated pictures are read;
    of several pages or frames, the first. A picture or folder that cannot be read is reported and
    the rest goes on.

    If -o names a file, such as out.png, and there is one picture, that file alone is written;
    --view says what it shows.

    [cyan]--scales 0.75,1,1.25 --flip[/] averages the probabilities of six views, as
    [cyan]fassd val[/] does, which takes six times as long.

    A video becomes the file that -o names (.mp4, .m4v, .mov, .mkv, .webm), or in a folder
    [cyan]NAME_VIEW.mp4[/], with its sound, frame rate and timestamps. Rotated videos come out
    upright; odd sides are made even by repeating the last row or column. Damaged frames are
    skipped and counted. With [cyan]--view trainids[/] the grey levels of its frames are the class
    indices, without loss ([cyan]NAME_trainids.mkv[/], FFV1). A stream that drops is opened again;
    where the network is slower than a camera or stream, frames are dropped. Ctrl-C ends a video
    early, and what was written plays. Videos need [cyan]pip install 'fassd-net\\[video]'[/].

    A command that was killed continues when it is run again: files that have their results in the
    output folder are skipped, unless they or the options changed (--again redoes them). Results
    are never taken for sources: those listed in [cyan].fassd-predict.jsonl[/] of their folder are
    skipped in folders and patterns, and counted.

    A picture that does not fit in memory is done with --strips: its labels are the same, and
    written as TIFFs, [cyan]NAME_trainids.tif[/] (class indices, in a palette of their colours) and
    [cyan]NAME_overlay.tif[/]; with --confidence and --label-ids further ones. It needs
    [cyan]pip install 'fassd-net\\[tiff]'[/].

    Under [cyan]torchrun[/] the processes share the sources.

    Exit code: 0 all done, 1 some sources failed, 2 nothing done, 130 stopped by Ctrl-C.

    [bold]Examples[/]

    [cyan]fassd predict street.jpg -o out[/]

    [cyan]fassd predict plants/ -o out -w runs/plants/best.safetensors[/]

    [cyan]fassd predict photos/ more/*.png -o out --device cuda --dtype float16[/]

    [cyan]fassd predict 'drive/**/*.jpg' -o out --size 512x1024 --opacity 0.7[/]

    [cyan]fassd predict photos/ -o out -w cityscapes --scales 0.75,1,1.25 --flip[/]

    [cyan]fassd predict leftImg8bit/test -o out -w cityscapes --label-ids cityscapes[/]

    [cyan]fassd predict drive.mp4 -o out.mp4 --view side-by-side[/]

    [cyan]fassd predict slide.tif -o out --strips --memory 4GiB[/]

    [cyan]torchrun --nproc-per-node 4 -m fassd predict drives/ -o out -w cityscapes[/]
    """
    from PIL import Image

    from fassd.data.ids import read_ids
    from fassd.distributed import all_gather, is_main, process_group, rank, world_size
    from fassd.io.find import find_sources
    from fassd.io.finished import VIDEO_ENDINGS
    from fassd.io.images import ImageError

    unfound: list[ImageError] = []
    earlier: list[Path] = []
    found = find_sources(source, onerror=unfound.append, onresult=earlier.append)
    if not found:
        raise unfound[-1]
    single = one_file(output, found)
    others = {
        "size": size,
        "scales": tuple(scales) != (1,),
        "flip": flip,
        "probabilities": results.probabilities,
    }
    strips.check(found, output, others)
    check_used(found, results, single)
    check_file(output) if single else check_folder(output)
    # Pillow's own limit is twice this number.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, (results.max_pixels + 1) // 2)
    folder_suffix = Path(VIDEO_ENDINGS[results.view]).suffix
    prepare_videos(found, results, output.suffix if single else folder_suffix)
    set_threads(threads)
    device = device_for(network.model, device)
    chosen = network.pick()
    identity = (*chosen, network.backend, dtype, size, *scales, flip, strips.tiles)
    identity += tuple(calibration or ())
    ids = None if results.label_ids is None else read_ids(results.label_ids)
    kind = functools.partial(StripBatch, strips) if strips.asked else Batch
    work = kind(output, results, identity, single=single, again=again, ids=ids)
    work.check(found)
    started = time.perf_counter()
    with process_group(device, patient=True) as home:
        for missed in unfound if is_main() else []:
            say(f"[red]failed:[/] {escape_lines(str(missed))}")
        if is_main():
            tell_results(earlier)
        todo = work.unfinished(found[rank() :: world_size()])
        if todo:
            place = device if world_size() == 1 else str(home)
            how = (network.backend, dtype, place, size, scales, flip)
            segmenter = build_segmenter(chosen, *how, calibrating(calibration, dtype))
            if is_main():
                tell_weights(chosen.weights, segmenter.model)
            with bounded_memory(world_size()):
                work.do(todo, segmenter, shown=is_main())
        outcome = sum(all_gather(work.outcome), Outcome())
        failed = outcome.failed + len(unfound)
        if is_main():
            _report(outcome, found, failed, time.perf_counter() - started, output)
    if failed:
        raise typer.Exit(1 if outcome.done else 2)


def build_segmenter(
    network: Network,
    backend: str,
    dtype: str,
    device: torch.device | str | None,
    size: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    calibration: Iterable[ImageLike] | None = None,
) -> Segmenter:
    import torch

    from fassd.inference.segmenter import Segmenter

    torch.manual_seed(0)  # random weights, without given ones, are the same in every run
    return Segmenter(
        network.model,
        weights=network.weights,
        num_classes=network.classes,
        alpha=network.alpha,
        backend=backend,
        dtype=getattr(torch, dtype),
        device=device,
        size=size,
        scales=scales,
        flip=flip,
        calibration=calibration,
    )


def calibrating(sources: Sequence[str] | None, dtype: str) -> list[Path] | None:
    """Files of the pictures that --calibration names; None if it was not given.

    Raises:
        ValueError: it names none, or is given without --dtype int8.
    """
    from fassd.io.find import find_pictures

    if not sources:
        return None
    if dtype != "int8":
        raise ValueError(f"--calibration works only with --dtype int8, got --dtype {dtype}")
    return [picture.path for picture in options.spread(find_pictures(sources))]


def _summary(done: list[tuple[PictureFile, Size, float]]) -> Table:
    table = plain_table("picture", ">size", ">ms")
    for picture, size, seconds in done[:ROWS_SHOWN]:
        path = str(picture.path)
        told = picture.path.with_suffix("").as_posix().endswith(picture.name)  # unless it got a -2
        shown = path if told else f"{path} -> {picture.name}"
        table.add_row(escape(shown), str(size), f"{1000 * seconds:.1f}")
    if len(done) > ROWS_SHOWN:
        table.add_row(f"... and {len(done) - ROWS_SHOWN} more", "", "")
    if len(done) > 1:
        median = statistics.median(seconds for _, _, seconds in done)
        table.add_row("[bold]median[/]", "", f"[bold]{1000 * median:.1f}[/]")
    return table


def _report(
    outcome: Outcome, found: list[PictureFile | Video], failed: int, seconds: float, output: Path
) -> None:
    """Tables of the results, and their number."""
    from fassd.io.find import Video

    if outcome.pictures:
        console().print(_summary(outcome.pictures))
    if outcome.videos:
        console().print(video_table(outcome.videos))
    kinds = {"videos" if isinstance(each, Video) else "pictures" for each in found}
    what = kinds.pop() if len(kinds) == 1 else "pictures and videos"
    before = f" ({outcome.before} done before)" if outcome.before else ""
    trouble = f", [red]{failed} failed[/]" if failed else ""
    count = f"{outcome.done} of {len(found)} {what} in {seconds:.1f} s{before}"
    say(f"{count}{trouble}: {escape(str(output))}")
