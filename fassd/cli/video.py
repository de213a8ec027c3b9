"""The videos of `fassd predict`: where they go, and what is told of them."""

from __future__ import annotations

import glob
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.progress import Progress, TextColumn
from rich.table import Table

from fassd.cli.common import escape, escape_lines, progress, say, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fassd.inference.segmenter import Segmenter
    from fassd.inference.video import Summary
    from fassd.io.find import PictureFile, Video
    from fassd.io.levels import Range

STAGES = ("decode", "network", "encode")  # as in `fassd.inference.video.Summary.busy`
ViewName = Literal["overlay", "labels", "side-by-side"]


class VideoSettings(NamedTuple):
    """What decides a video's result, besides the network."""

    view: ViewName
    opacity: float
    codec: str | None
    limit: int | None
    fps: float | None
    timeout: float
    range: Range
    max_pixels: int


def one_file(output: Path, found: Sequence[PictureFile | Video]) -> bool:
    """Whether `output` is the one file to write, and not a folder.

    Raises:
        ValueError: it is a file by its name, but of a kind that is not written, or for several
            sources, or it is the source itself.
    """
    from fassd.io.files import VIDEO_SUFFIXES, names_file
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


def prepare_videos(
    found: Sequence[PictureFile | Video], settings: VideoSettings, suffix: str
) -> None:
    """Prepare for the videos among the sources, if any.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: the encoder is not here, or does not fit.
    """
    from fassd.io.find import Video

    if not any(isinstance(each, Video) for each in found):
        return
    from fassd.io.video.writer import check_codec

    if settings.codec is not None:
        check_codec(settings.codec, suffix.lower())


def video_file(output: Path, video: Video, settings: VideoSettings) -> Path:
    """Where a video goes in a folder."""
    return output / f"{video.name}_{settings.view}.mp4"


def source_files(video: Video) -> list[str] | None:
    """The files that a video is made of; None for a camera or stream."""
    from fassd.io.find import CAMERA, URL, sequence_files

    if CAMERA.fullmatch(video.source) or URL.fullmatch(video.source):
        return None
    if Path(video.source).exists():
        return [video.source]
    return [str(path) for _, path in sequence_files(video.source)]


def run_video(
    segmenter: Segmenter, video: Video, output: Path, settings: VideoSettings, shown: bool
) -> Summary:
    """Segment one video, with a progress bar if `shown`, and tell what is worth knowing.

    Raises:
        VideoError: it cannot be read or written.
        KeyboardInterrupt: Ctrl-C; what there was is written.
    """
    from fassd.inference.video import segment_video
    from fassd.io.video import open_video

    for part in output.parent.glob(f".{glob.escape(output.name)}.*.part"):
        part.unlink(missing_ok=True)  # of a run that was killed
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
    with _progress(shown) as bar:
        task = bar.add_task(visible(video.name), total=expected, work="")
        summary = segment_video(
            source,
            output,
            segmenter,
            view=settings.view,
            opacity=settings.opacity,
            colors=segmenter.palette,
            codec=settings.codec,
            limit=settings.limit,
            on_frame=lambda now: bar.update(task, completed=now.frames, work=_work(now)),
        )
    _tell(video, output, summary)
    if summary.interrupted:
        say(f"{summary.frames} frames written: {escape(str(output))}")
        raise KeyboardInterrupt
    return summary


def _progress(shown: bool) -> Progress:
    bar = progress()
    bar.columns = (*bar.columns, TextColumn("{task.fields[work]}", markup=False))
    bar.disable |= not shown
    return bar


def _work(summary: Summary) -> str:
    shares = " ".join(f"{stage} {share:.0%}" for stage, share in summary.shares.items())
    return f"{summary.fps:.1f} frames/s  {shares}"


def _tell(video: Video, output: Path, summary: Summary) -> None:
    """Warnings about a video, and the notes of its reader."""
    trouble = summary.trouble
    notes = list(trouble.notes)
    if trouble.skipped:
        notes.append(f"{trouble.skipped} damaged frames were skipped")
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
    """A row for each video; of each stage milliseconds a frame, and its share of the work."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("video", overflow="fold")
    columns = ("size", "frames", "codec", "fps", *(f"{stage} ms" for stage in STAGES))
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
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
