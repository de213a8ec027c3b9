"""The sources of `fassd predict`, one after another, except those that are finished."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fassd
from fassd.cli.options import Size
from fassd.cli.terminal import escape, escape_lines, progress, say
from fassd.cli.video import ResultOptions, run_video, source_files
from fassd.io.finished import (
    FURTHER_ENDINGS,
    OUTPUT_ENDINGS,
    VIDEO_ENDINGS,
    Record,
    Stamp,
    stamp,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.data.ids import ClassIds
    from fassd.inference.segmenter import Segmenter
    from fassd.inference.video import Summary
    from fassd.io.find import PictureFile, Video


@dataclass
class Outcome:
    """The result of a process for its sources: finished now, finished earlier, and failed."""

    pictures: list[tuple[PictureFile, Size, float]] = field(default_factory=list)
    videos: list[tuple[Video, Summary]] = field(default_factory=list)
    before: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return len(self.pictures) + len(self.videos) + self.before

    def __add__(self, other: Outcome) -> Outcome:
        """The outcomes of two processes, as one."""
        return Outcome(*map(add, vars(self).values(), vars(other).values()))


class Batch:
    """Sources to be segmented with the same settings.

    Args:
        output: folder for the results, or the one file to write.
        settings: settings of pictures and videos.
        network: settings of the network: names of files, and values.
        single: True if `output` is a file, which is always made again.
        again: True makes all results again.
        ids: ids of a card, for a further file of each picture.

    Raises:
        ValueError: a further file is requested, but the output is a single file.
    """

    endings, further = OUTPUT_ENDINGS, FURTHER_ENDINGS

    def __init__(
        self,
        output: Path,
        settings: ResultOptions,
        network: Sequence[Any],
        *,
        single: bool,
        again: bool,
        ids: ClassIds | None = None,
    ) -> None:
        for option, asked in (("--label-ids", ids), ("--probabilities", settings.probabilities)):
            if asked is not None and single:
                raise ValueError(
                    f"{option} writes a file beside others: give a folder, not --output {output}"
                )
        if settings.confidence is not None and single and settings.view != "overlay":
            raise ValueError(
                f"--confidence shows in overlays and in files beside them, not in --view "
                f"{settings.view} of one file: give a folder, not --output {output}"
            )
        self.output, self.settings, self.single, self.again = output, settings, single, again
        self.outcome = Outcome()
        self._ids = ids
        self._record = None if single else Record(output)
        self._network = [fassd.__version__, *map(_identified, network)]
        self._stamps: dict[PictureFile | Video, Stamp | None] = {}
        self._remarks: Counter[str] = Counter()
        self._ranges: Counter[str] = Counter()

    def check(self, sources: Sequence[PictureFile | Video]) -> None:
        """Check that no result would replace a source.

        Raises:
            ValueError: one would.
        """
        names = {os.path.basename(source[0]): source[0] for source in sources}
        for source in sources:
            for file in self._results(source).values():
                if file.name in names and file.resolve() == Path(names[file.name]).resolve():
                    raise ValueError(
                        f"{file} is a source, and the result of {source[0]} would overwrite it: "
                        "give another folder (--output)"
                    )

    def unfinished(self, sources: Sequence[PictureFile | Video]) -> list[PictureFile | Video]:
        """The sources that are not finished; the others are counted as finished earlier."""
        for source in sources:
            self._stamps[source] = _stamp(source)  # their state before they are read
        todo = [source for source in sources if not self._finished(source)]
        self.outcome.before = len(sources) - len(todo)
        return todo

    def do(self, sources: Sequence[PictureFile | Video], segmenter: Segmenter, shown: bool) -> None:
        """Segment sources, the pictures first, with progress bars if `shown`.

        A source that fails is reported, and the others continue.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            ValueError: the network's classes are not those of the ids.
        """
        from fassd.io.find import PictureFile

        table = None if self._ids is None else self._ids.of(segmenter.model)

        pictures = [source for source in sources if isinstance(source, PictureFile)]
        videos = [source for source in sources if not isinstance(source, PictureFile)]
        with progress(shown) as bar:
            for picture in bar.track(pictures, description="segmenting"):
                with self._reporting(picture):
                    result = self._segment(picture, segmenter, table)
                    self.outcome.pictures.append((picture, *result))
        self._remark_on_others()
        for video in videos:
            with self._reporting(video):
                [file] = self._results(video).values()
                file.parent.mkdir(parents=True, exist_ok=True)
                self._begin(video)
                summary = run_video(segmenter, video, file, self.settings, shown)
                self.outcome.videos.append((video, summary))

    def _read(self, picture: PictureFile, bands: int | None) -> npt.NDArray[np.uint8]:
        """Read one file; remarks on it are printed once, and counted."""
        from fassd.io.bands import examine_picture
        from fassd.io.levels import told

        limits = self.settings.range, self.settings.max_pixels
        reading = examine_picture(picture.path, bands, *limits)
        if reading.range is not None:
            self._ranges[told(self.settings.range, reading.range)] += 1
        self._remark(picture, reading.remarks)
        return reading.pixels

    def _remark(self, picture: PictureFile, remarks: Sequence[str]) -> None:
        """Print the remarks on a picture, unless they were printed for an earlier one."""
        for remark in remarks:
            if not self._remarks[remark]:
                say(f"[yellow]warning:[/] {escape(f'{picture.path}: {remark}')}")
            self._remarks[remark] += 1

    def _remark_on_others(self) -> None:
        for remark, count in self._remarks.items():
            if count > 1:
                say(f"[yellow]warning:[/] {count - 1} more: {escape(remark)}")
        for spread, count in self._ranges.items():
            say(f"{count} picture{'s' * (count > 1)} of {spread}")

    def _segment(
        self,
        picture: PictureFile,
        segmenter: Segmenter,
        table: npt.NDArray[np.integer] | None,
    ) -> tuple[Size, float]:
        """Segment one picture and write its results; return its size and the network's seconds.

        Args:
            table: the id of each label, if ids are written.
        """
        from fassd.io.bands import shown
        from fassd.io.images import write_image
        from fassd.io.probabilities import write_probabilities

        image = self._read(picture, segmenter.bands)
        started = time.perf_counter()
        found: Any = segmenter.predict(image, **self.settings.certainty)
        labels, *certainty = found if self.settings.certainty else (found,)
        seconds = time.perf_counter() - started
        seen = image if segmenter.bands is None else shown(image)
        files = self._results(picture)
        next(iter(files.values())).parent.mkdir(parents=True, exist_ok=True)
        self._begin(picture)
        for kind, file in files.items():
            if kind in ("npz", "tiff"):
                names = [info.name for info in segmenter.classes]
                write_probabilities(file, segmenter.probabilities(image).cpu().numpy(), names)
            else:
                draw = self._drawing(kind, segmenter, table)
                write_image(file, draw(seen, labels, *certainty))
        return Size(*labels.shape), seconds

    def _drawing(
        self, kind: str, segmenter: Segmenter, table: npt.NDArray[np.integer] | None
    ) -> Callable[..., npt.NDArray[Any]]:
        """A function from a picture, its labels and perhaps their certainty to a file's pixels."""
        from fassd.io.palette import drawing

        if kind == "label-ids":
            ids = cast(Any, table)
            return lambda image, labels, *certainty: ids[labels]
        if kind == "confidence":
            return lambda image, labels, certainty: certainty
        return drawing(kind, self.settings.opacity, segmenter.palette)

    def _begin(self, source: PictureFile | Video) -> None:
        """Record the files that are about to be written: from then on they count as results."""
        if self._record is not None:
            self._record.begin(self._name(source))

    @contextlib.contextmanager
    def _reporting(self, source: PictureFile | Video) -> Iterator[None]:
        """Record the source as finished; or report an error, if one is raised."""
        stamp = self._stamps[source]
        try:
            yield
            if self._record is not None and stamp is not None:
                self._record.add(self._name(source), stamp, self._made_by(source))
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            self.outcome.failed += 1
            say(f"[red]failed:[/] {escape_lines(_reason(source[0], error))}")

    def _finished(self, source: PictureFile | Video) -> bool:
        stamp = self._stamps[source]
        if self._record is None or self.again or stamp is None:
            return False
        results = [*self._results(source).values()]
        return self._record.holds(self._name(source), stamp, self._made_by(source), results)

    def _results(self, source: PictureFile | Video) -> dict[str, Path]:
        """The files for a source, by what they show."""
        from fassd.io.find import PictureFile

        settings = self.settings
        view: str = settings.view
        if self.single:
            return {view: self.output}
        endings = {view: VIDEO_ENDINGS[view]}
        if isinstance(source, PictureFile):
            asked: set[str | None] = {settings.probabilities}
            asked |= {"label-ids"} if self._ids is not None else set()
            asked |= {"confidence"} if settings.certainty else set()
            further = {kind: ending for kind, ending in self.further.items() if kind in asked}
            endings = self.endings | further
        return {kind: self.output / f"{source.name}{end}" for kind, end in endings.items()}

    def _name(self, source: PictureFile | Video) -> str:
        first = next(iter(self._results(source).values()))
        return first.relative_to(self.output).as_posix()

    def _made_by(self, source: PictureFile | Video) -> dict[str, Any]:
        """The settings that determine the results, besides the source."""
        from fassd.io.find import PictureFile

        own: dict[str, Any] = {"opacity": self.settings.opacity, "range": self.settings.range}
        for name in ("confidence", "min_confidence", "probabilities"):
            if getattr(self.settings, name) is not None:
                own[name] = getattr(self.settings, name)
        if self._ids is not None:
            own["ids"] = [self._ids.names, self._ids.ids, self._ids.ignored]
        if not isinstance(source, PictureFile):
            own = dict(vars(self.settings))
            for name in ("timeout", "max_pixels", "label_ids", "probabilities"):
                del own[name]
        return {"network": self._network, **own}


def _identified(setting: Any) -> Any:
    """A setting, or for the name of a file, the state that identifies its content."""
    named = isinstance(setting, str) and Path(setting).is_file()
    return stamp([setting]) if named else setting


def _stamp(source: PictureFile | Video) -> Stamp | None:
    """The state of the source's files; None if there are none, or they are inaccessible."""
    from fassd.io.find import PictureFile

    files = [source.path] if isinstance(source, PictureFile) else source_files(source)
    try:
        return stamp(files) if files else None
    except OSError:  # reading it reports the error
        return None


def _reason(source: str | Path, error: Exception) -> str:
    """Message for an error that a source caused."""
    reason = str(error) or type(error).__name__
    # PyTorch reports a lack of memory as a RuntimeError.
    if isinstance(error, MemoryError) or re.search(
        "allocate memory|(not enough|out of) memory|bad_alloc", reason
    ):
        reason = "does not fit in memory"
    return reason if str(source) in reason else f"{source}: {reason}"
