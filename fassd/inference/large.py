"""Picture files of any size: labels from disk to disk, in constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

import fassd
from fassd.inference.maps import MapFile
from fassd.inference.strips import MEMORY, Picture, Step, alone, check_memory, plan, run
from fassd.inference.tiles import TileStep
from fassd.io.images import MAX_PIXELS, ImageError
from fassd.io.levels import Range
from fassd.io.tiff import ArrayRows, TiffRows, open_rows, write_tiff

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter


class LabelRows:
    """The labels of a picture in a file, by rows."""

    def __init__(self, labels: MapFile) -> None:
        self._labels = labels
        self.height, self.width = labels.shape[:2]
        self.dtype = np.uint8 if labels.dtype.itemsize == 1 else np.uint16

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Rows [first, last), (rows, width)."""
        return self._labels.read(first, last)[0, 0].numpy()


@contextlib.contextmanager
def labelled(
    segmenter: Segmenter,
    picture: Picture,
    folder: Path,
    *,
    memory: int = MEMORY,
    rows: int | None = None,
    tiles: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[LabelRows]:
    """The labels of a picture, computed in strips (`fassd.inference.strips`) or by tiles.

    Args:
        segmenter: segmenter with a network of `fassd.list_models()`, and no size; any for tiles.
        picture: picture to label.
        folder: folder for the network's maps, some 24 bytes per pixel. It is removed if the block
            succeeds or the picture is damaged; otherwise it stays, and a later call with the same
            arguments continues there.
        memory: bytes that the values of a strip may take.
        rows: rows of the picture in a strip, in place of `memory`.
        tiles: side of the tiles (`fassd.inference.tiles`); None for strips.
        progress: called with the share that is done, after each strip.

    Raises:
        UnboundedError: the reach of a module of the network is not known (a ValueError).
        ValueError: the picture is too small or has bands, the memory is not enough, the segmenter
            has a size or several views (with tiles, it may).
        OSError: the maps do not fit on the disk, or another process works in the folder.
    """
    steps: Sequence[Step]
    if tiles is None:
        steps = plan(segmenter, picture, folder).steps
    else:
        steps = [TileStep(segmenter, picture, folder, tiles)]
    identity = identity_of(segmenter, picture, tiles)
    if rows is None:
        check_memory(steps, memory)
    try:
        with alone(folder):  # until the labels have been read
            run(steps, folder, identity, memory=memory, rows=rows, progress=progress)
            yield LabelRows(steps[-1].targets[0].map)
    except ImageError:  # what was made of a damaged picture is of no use when it is mended
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def predict_file(
    segmenter: Segmenter,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    memory: int = MEMORY,
    tiles: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[int, int]:
    """Label a picture file of any size, from disk to disk.

    The labels are those of the whole picture (`fassd.inference.strips`), except with tiles.

    Args:
        segmenter, memory, tiles, progress: as of `labelled`.
        source: a TIFF, which is read by rows (`fassd.io.tiff.TiffRows`), or any other picture,
            which is read whole.
        output: a TIFF in tiles: the labels, in a palette of the classes' colours.
        scratch: folder for the maps; by default a hidden one beside `output`.
        max_pixels: maximum of height times width for a picture that is read whole.

    Returns:
        The picture's height and width.

    Raises:
        As `labelled`, and `fassd.io.images.ImageError` where the source cannot be read.
    """
    output = Path(output)
    folder = scratch_folder(output, scratch)
    with rows_of(source, segmenter.range, max_pixels) as picture:
        with labelled(
            segmenter, picture, folder, memory=memory, tiles=tiles, progress=progress
        ) as labels:
            write_labels(output, labels, segmenter.palette)
        return picture.height, picture.width


def write_labels(path: Path, labels: LabelRows, palette: npt.NDArray[np.uint8]) -> None:
    """Write labels as a TIFF with a palette of the classes' colours; without one for 16 bits."""
    size = (labels.height, labels.width)
    write_tiff(path, size, labels.read, labels.dtype, palette if labels.dtype == np.uint8 else None)


def scratch_folder(output: Path, scratch: str | os.PathLike[str] | None = None) -> Path:
    """Folder for the maps of the picture whose result is `output`."""
    if scratch is None:
        return output.parent / f".{output.name}.strips"
    own = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:12]
    return Path(scratch) / f"{output.name}-{own}.strips"


@contextlib.contextmanager
def rows_of(
    source: str | os.PathLike[str], range: Range = None, max_pixels: int | None = None
) -> Iterator[TiffRows | ArrayRows]:
    """`open_rows`, closed when the block ends."""
    picture = open_rows(source, range, max_pixels)
    with picture if isinstance(picture, TiffRows) else contextlib.nullcontext():
        yield picture


def identity_of(segmenter: Segmenter, picture: Picture, tiles: int | None = None) -> str:
    """What tells this picture by this network from all other work."""
    text = [fassd.__version__, segmenter.backend, str(segmenter.dtype), str(segmenter.device)]
    text += [repr(segmenter.size), repr(segmenter.views), repr(tiles)]
    digest = hashlib.sha256(json.dumps([text, picture.identity], default=str).encode())
    digest.update(repr(segmenter.model).encode())
    for name, tensor in segmenter.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
