"""The videos of `fassd predict`: their outputs, and messages about them."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import TextColumn
from rich.table import Table

from fassd.cli.terminal import escape, escape_lines, plain_table, progress, say, visible
from fassd.io.files import VIDEO_SUFFIXES, names_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fassd.inference.segmenter import Segmenter
    from fassd.inference.video import Summary
    from fassd.io.find import PictureFile, Video

STAGES = ("decode", "network", "encode")  # as in `fassd.inference.video.Summary.busy`


def parse_range(text: str) -> Any:
    """Parse a range, see `fassd.io.levels.as_range`.

    Raises:
        typer.BadParameter: it is not a range.
    """
    from fassd.io.levels import as_range

    try:
        return as_range(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Opacity = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="X", help="Strength of the colours in the overlay."),
]
LevelRange = Annotated[
    Any,
    typer.Option(
        parser=parse_range,
        metavar="LOW:HIGH",
        show_default="all that a file can hold",
        help="Values that become black and white in pictures of more than 8 bits: "
        "[cyan]0:4095[/] for 12 bits in 16, [cyan]auto[/] for each picture's lowest and "
        "highest.",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Refuse pictures of more pixels (height x width)."),
]
View = Annotated[
    Literal["overlay", "labels", "side-by-side", "trainids"],
    typer.Option(
        metavar="NAME",
        help="What a video's frames, or the one picture that -o names, show: overlay, labels, "
        "side-by-side or trainids.",
    ),
]


LabelIds = Annotated[
    str | None,
    typer.Option(
        metavar="CARD",
        help="For pictures, also write NAME_labelids.png with the ids of this card's masks "
        "([cyan]cityscapes[/], another of [cyan]fassd data list[/], or a card's file).",
    ),
]


Confidence = Annotated[
    Literal["probability", "margin", "entropy"] | None,
    typer.Option(
        metavar="KIND",
        help="Fade the overlay where labels are uncertain and, for pictures, also write "
        "NAME_confidence.png (grey, white for certain). One of probability, margin and entropy.",
    ),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Leave pixels that are less certain than this unlabelled (255), by --confidence or, "
        "without it, by the margin.",
    ),
]
Probabilities = Annotated[
    Literal["npz", "tiff"] | None,
    typer.Option(
        metavar="FORMAT",
        help="For pictures, also write NAME_probabilities: [cyan]npz[/] (float16, compressed) or "
        "[cyan]tiff[/] (16 bits, a page for each class).",
    ),
]


def video_option(help: str, **settings: Any) -> Any:
    return typer.Option(rich_help_panel="Videos", help=help, **settings)


FrameLimit = Annotated[
    int | None, video_option("Stop after N frames of each video.", metavar="N", min=1)
]
FrameRate = Annotated[
    float | None,
    video_option(
        "Frame rate of a numbered sequence, or to ask a camera for.",
        metavar="FPS",
        show_default="25 for sequences",
        min=0.01,
        max=1000,
    ),
]
Silence = Annotated[
    float,
    video_option(
        "Silence after which a stream or camera is opened again.", metavar="SECONDS", min=0.1
    ),
]


@dataclass(frozen=True)
class ResultOptions:
    """The settings that determine results for pictures and videos, besides the network."""

    opacity: Opacity = 0.5
    range: LevelRange = None
    max_pixels: MaxPixels = 100_000_000
    view: View = "overlay"
    label_ids: LabelIds = None
    confidence: Confidence = None
    min_confidence: MinConfidence = None
    probabilities: Probabilities = None
    limit: FrameLimit = None
    fps: FrameRate = None
    timeout: Silence = 10

    @property
    def certainty(self) -> dict[str, Any]:
        """Arguments of `fassd.Segmenter.predict` for the labels' certainty, if requested."""
        if self.confidence is None and self.min_confidence is None:
            return {}
        return {"confidence": self.confidence or "margin", "min_confidence": self.min_confidence}


def one_file(output: Path, found: Sequence[PictureFile | Video]) -> bool:
    """True if `output` is the one file to write, and not a folder.

    Raises:
        ValueError: its name is that of a file, but of a kind that is not written, or for several
            sources, or it is the source itself.
    """
    from fassd.io.find import Video
    from fassd.io.images import written_suffixes

    if not names_file(output):
        return False
    suffix = output.suffix.lower()
    if len(found) != 1:
        one = "video" if suffix in VIDEO_SUFFIXES else "file"
        raise ValueError(
            f"--output {output} names one {one}, but there are {len(found)} sources: give a folder"
        )
    [source] = found
    what, accepted = "picture", written_suffixes()
    if isinstance(source, Video):
        from fassd.io.video import FORMATS

        what, accepted = "video", list(FORMATS)
    elif suffix in VIDEO_SUFFIXES:
        raise ValueError(
            f"--output {output} names a video, but {source.name} is a picture: give a folder"
        )
    if suffix not in accepted:
        raise ValueError(
            f"--output must be a folder or end in {', '.join(accepted)} for a {what}, "
            f"got {str(output)!r}"
        )
    if output.exists() and output.resolve() == Path(source[0]).resolve():
        raise ValueError(f"--output {output} is the source itself: give another name")
    return True


def check_used(found: Sequence[PictureFile | Video], settings: ResultOptions, single: bool) -> None:
    """Check that no option is for sources that are not there.

    Args:
        found: sources.
        settings: the options.
        single: True if one file is written, and not a folder.

    Raises:
        ValueError: one is.
    """
    from fassd.io.find import Video

    videos = sum(isinstance(each, Video) for each in found)
    if not videos and not single and settings.view != "overlay":
        raise ValueError(
            f"--view {settings.view} is for videos and for one picture that --output names; in a "
            "folder each picture gets its labels, overlay and class indices: leave --view out"
        )
    no_videos, no_pictures = videos == 0, videos == len(found)
    for name, missing, what in (
        ("limit", no_videos, "videos"),
        ("fps", no_videos, "videos"),
        ("label_ids", no_pictures, "pictures"),
        ("probabilities", no_pictures, "pictures"),
    ):
        if missing and getattr(settings, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for {what}, and no source is one: leave it out")


def prepare_videos(
    found: Sequence[PictureFile | Video], settings: ResultOptions, suffix: str
) -> None:
    """Prepare for the videos among the sources, if any.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: files with that ending cannot hold what is to be shown.
    """
    from fassd.io.find import Video

    if not any(isinstance(each, Video) for each in found):
        return
    from fassd.io.video.writer import encoder_for

    encoder_for(suffix.lower(), settings.view == "trainids")


def source_files(video: Video) -> list[str] | None:
    """The files of a video; None for a camera or stream."""
    from fassd.io.find import CAMERA, URL, sequence_files

    if CAMERA.fullmatch(video.source) or URL.fullmatch(video.source):
        return None
    if Path(video.source).exists():
        return [video.source]
    return [str(path) for _, path in sequence_files(video.source)]


def run_video(
    segmenter: Segmenter, video: Video, output: Path, settings: ResultOptions, shown: bool
) -> Summary:
    """Segment one video, with a progress bar if `shown`, and print remarks on it.

    Raises:
        VideoError: it cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; the part until then is written.
    """
    from fassd.inference.video import segment_video
    from fassd.io.video import open_video

    for part in output.parent.glob(f".{glob.escape(output.name)}.*.part"):
        part.unlink(missing_ok=True)  # left by a run that was killed
    fps = None if settings.fps is None else Fraction(settings.fps).limit_denominator(1001)
    source = open_video(
        video.source,
        fps=fps,
        timeout=settings.timeout,
        range=settings.range,
        max_pixels=settings.max_pixels,
    )
    expected = source.expected
    if settings.limit is not None:
        expected = min(settings.limit, expected or settings.limit)
    work = TextColumn("{task.fields[work]}", markup=False)
    with progress(shown, work) as bar:
        task = bar.add_task(visible(video.name), total=expected, work="")
        summary = segment_video(
            source,
            output,
            segmenter,
            view=settings.view,
            opacity=settings.opacity,
            colors=segmenter.palette,
            limit=settings.limit,
            **settings.certainty,
            on_frame=lambda now: bar.update(task, completed=now.frames, work=_work(now)),
        )
    _tell(video, output, summary)
    if summary.interrupted:
        say(f"{summary.frames} frames written: {escape(str(output))}")
        raise KeyboardInterrupt
    return summary


def _work(summary: Summary) -> str:
    shares = " ".join(f"{stage} {share:.0%}" for stage, share in summary.shares.items())
    return f"{summary.fps:.1f} frames/s  {shares}"


def _tell(video: Video, output: Path, summary: Summary) -> None:
    """Print warnings about a video, and the notes of its reader."""
    trouble = summary.trouble
    notes = list(trouble.notes)
    if trouble.skipped:
        notes.append(f"damaged frames skipped: {trouble.skipped}")
    if trouble.resized:
        height, width = summary.size
        notes.append(f"{trouble.resized} frames of another size became {height}x{width}")
    if trouble.reconnections:
        notes.append(f"reconnected {trouble.reconnections} times")
    if summary.dropped:
        notes.append(f"{summary.dropped} frames came while the network was busy and were dropped")
    if summary.silent:
        codecs = ", ".join(summary.silent)
        notes.append(f"without sound: {output.suffix} cannot hold {codecs}, .mkv can")
    for note in notes:
        say(f"[yellow]{escape(video.source)}:[/] {escape_lines(note)}")


def video_table(done: Sequence[tuple[Video, Summary]]) -> Table:
    """A row for each video; for each stage milliseconds per frame, and its share of the work."""
    stages = (f">{stage} ms" for stage in STAGES)
    headings = ("video", ">size", ">frames", ">codec", ">fps", *stages)
    table = plain_table(*headings, padding=(0, 1, 0, 0))
    for video, summary in done:
        frames = max(summary.frames, 1)
        table.add_row(
            escape(video.source),
            "{}x{}".format(*summary.size),
            str(summary.frames),
            summary.codec,
            f"{summary.fps:.1f}",
            *(
                f"{1000 * summary.busy[stage] / frames:.1f} {summary.shares[stage]:4.0%}"
                for stage in STAGES
            ),
        )
    return table
