"""`fassd predict --strips`: pictures of any size, from disk to disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fassd.cli.batch import Batch
from fassd.cli.options import Size
from fassd.cli.terminal import escape, progress
from fassd.io.files import names_file
from fassd.io.finished import STRIP_ENDINGS, STRIP_FURTHER_ENDINGS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fassd.inference.segmenter import Segmenter
    from fassd.io.find import PictureFile, Video
    from fassd.io.tiff import ArrayRows, TiffRows

PANEL = "Pictures of any size"
VIEWS = ("size", "scales", "flip")  # options that tiles support, being pictures themselves


def parse_bytes(text: str | int) -> int:
    """Parse a number of bytes: 2GiB, 500MB, 1000000.

    Raises:
        typer.BadParameter: it is not a number of bytes.
    """
    from pydantic import ByteSize, TypeAdapter

    with contextlib.suppress(ValueError):
        if (count := TypeAdapter(ByteSize).validate_python(text)) > 0:
            return count
    raise typer.BadParameter(f"{text!r} is not an amount of memory; write it like 2GiB or 500MiB")


Strips = Annotated[
    bool,
    typer.Option(
        "--strips",
        rich_help_panel=PANEL,
        help="Label each picture in strips of rows, in constant memory, with the labels of the "
        "whole picture. TIFFs are read and written in parts.",
    ),
]
Tiles = Annotated[
    int | None,
    typer.Option(
        min=64,
        metavar="SIDE",
        rich_help_panel=PANEL,
        help="The same in overlapping tiles with sides of this many pixels, for networks that "
        "--strips cannot take. An approximation: no tile sees what lies beyond it.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        rich_help_panel=PANEL,
        show_default="2GiB",
        help="Memory for the values of a strip: [cyan]500MiB[/], [cyan]4GiB[/].",
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=PANEL,
        show_default="beside the results",
        help="Folder for the network's maps, about 24 bytes per pixel; removed in the end.",
    ),
]


@dataclass(frozen=True)
class StripOptions:
    """The options for pictures that do not fit into memory."""

    strips: Strips = False
    tiles: Tiles = None
    memory: Memory = None
    scratch: Scratch = None

    @property
    def asked(self) -> bool:
        """True if pictures are processed by parts."""
        return self.strips or self.tiles is not None

    def check(
        self, found: Sequence[PictureFile | Video], output: Path, others: Mapping[str, Any]
    ) -> None:
        """Check that these options go with the sources and the other options.

        Args:
            found: sources.
            output: file or folder for the results.
            others: options that strips do not support, by name, with their values.

        Raises:
            ValueError: they do not.
        """
        from fassd.io.find import PictureFile
        from fassd.io.tiff import TIFF_SUFFIXES, import_tifffile

        if self.memory is not None and not self.strips:
            raise ValueError("--memory works only with --strips")
        if not self.asked:
            if self.scratch is not None:
                raise ValueError("--scratch works only with --strips or --tiles")
            return
        if self.strips and self.tiles is not None:
            raise ValueError("--strips and --tiles exclude each other: give one of them")
        option = "--strips" if self.strips else "--tiles"
        refused = {
            name: value for name, value in others.items() if name not in VIEWS or self.strips
        }
        if given := [f"--{name.replace('_', '-')}" for name, value in refused.items() if value]:
            raise ValueError(f"{option} labels pictures as they are: leave out {', '.join(given)}")
        if videos := [each[0] for each in found if not isinstance(each, PictureFile)]:
            raise ValueError(f"{option} takes pictures, and {videos[0]} is a video")
        if names_file(output) and output.suffix.lower() not in TIFF_SUFFIXES:
            raise ValueError(
                f"{option} writes TIFFs: --output must be a folder or end in "
                f"{', '.join(TIFF_SUFFIXES)}, got {str(output)!r}"
            )
        import_tifffile()


class StripBatch(Batch):
    """Pictures that are segmented in strips, with the same settings."""

    endings, further = STRIP_ENDINGS, STRIP_FURTHER_ENDINGS

    def __init__(self, strips: StripOptions, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._strips = strips

    def do(self, sources: Sequence[PictureFile | Video], segmenter: Segmenter, shown: bool) -> None:
        table = None if self._ids is None else self._ids.of(segmenter.model)
        with progress(shown) as bar:
            for source in sources:
                picture: Any = source
                task = bar.add_task(escape(picture.path.name), total=1000)

                def tell(share: float, task: Any = task) -> None:
                    bar.update(task, completed=round(1000 * share))

                with self._reporting(picture):
                    result = self._segment_strips(picture, segmenter, table, tell)
                    self.outcome.pictures.append((picture, *result))
                bar.remove_task(task)
        self._remark_on_others()

    def _segment_strips(
        self,
        picture: PictureFile,
        segmenter: Segmenter,
        table: npt.NDArray[np.integer] | None,
        tell: Callable[[float], None],
    ) -> tuple[Size, float]:
        import numpy as np

        from fassd.inference.large import labelled, scratch_folder, write_labels
        from fassd.inference.steps import MEMORY
        from fassd.io.tiff import write_tiff

        settings, files = self.settings, self._results(picture)
        started = time.perf_counter()
        folder = scratch_folder(next(iter(files.values())), self._strips.scratch)
        memory = self._strips.memory or MEMORY
        with (
            self._rows(picture) as rows,
            labelled(
                segmenter,
                rows,
                folder,
                memory=memory,
                tiles=self._strips.tiles,
                **settings.certainty,
                progress=tell,
            ) as labels,
        ):
            seconds = time.perf_counter() - started
            next(iter(files.values())).parent.mkdir(parents=True, exist_ok=True)
            self._begin(picture)
            for kind, file in files.items():
                if kind in ("labels", "trainids"):  # which one file holds, with its palette
                    write_labels(file, labels, segmenter.palette)
                    continue
                draw = self._drawing(kind, segmenter, table)

                def drawn(first: int, last: int, kind: str = kind, draw: Any = draw) -> Any:
                    seen = rows.read(first, last) if kind in ("overlay", "side-by-side") else None
                    return draw(seen, *labels.read_all(first, last))

                width = rows.width * (2 if kind == "side-by-side" else 1)
                dtype = np.uint8 if table is None or kind != "label-ids" else table.dtype
                write_tiff(file, (rows.height, width), drawn, dtype)
            return Size(rows.height, rows.width), seconds

    @contextlib.contextmanager
    def _rows(self, picture: PictureFile) -> Iterator[TiffRows | ArrayRows]:
        """A file's rows; remarks on it are printed once, and counted."""
        from fassd.io.tiff import open_rows

        with open_rows(picture.path, self.settings.range, self.settings.max_pixels) as rows:
            self._remark(picture, rows.remarks)
            yield rows
