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
from fassd.inference.steps import MEMORY, MapStep, Picture, check_memory, run
from fassd.inference.strips import plan
from fassd.inference.tiles import TileStep
from fassd.io.files import locked
from fassd.io.images import MAX_PIXELS, ImageError
from fassd.io.palette import leave_out
from fassd.io.tiff import open_rows, write_tiff
from fassd.models.info import temperature_of

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter
    from fassd_kernels.reference.upsample import Measure


class LabelRows:
    """The labels of a picture by rows, from a file, and their certainty from another.

    Args:
        labels: file of the labels.
        certainty: file of their certainty, 0 to 255, if there is one.
        least: certainty, 0 to 1, below which labels are `fassd.io.palette.IGNORE`.
    """

    def __init__(self, labels: MapFile, *certainty: MapFile, least: float | None = None) -> None:
        self._labels, self._certainty, self._least = labels, certainty, least
        self.height, self.width = labels.shape[:2]
        self.dtype = np.uint8 if labels.dtype.itemsize == 1 else np.uint16

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """The labels of rows [first, last), (rows, width)."""
        return self.read_all(first, last)[0]

    def certainty(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """The certainty of these labels, (rows, width)."""
        return self.read_all(first, last)[1]

    def read_all(self, first: int, last: int) -> tuple[npt.NDArray[Any], ...]:
        """The labels and, if there is a file of it, their certainty."""
        files = (self._labels, *self._certainty)
        labels, *certainty = (each.read(first, last)[0, 0].numpy() for each in files)
        if certainty:
            leave_out(labels, certainty[0], self._least)
        return labels, *certainty


@contextlib.contextmanager
def labelled(
    segmenter: Segmenter,
    picture: Picture,
    folder: Path,
    *,
    memory: int = MEMORY,
    rows: int | None = None,
    tiles: int | None = None,
    confidence: Measure | None = None,
    min_confidence: float | None = None,
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
        confidence: measure of certainty, as in `Segmenter.predict`; None for labels alone.
        min_confidence: certainty below which labels are `fassd.io.palette.IGNORE`.
        progress: function called after each strip with the share of the work that is done.

    Raises:
        UnboundedError: the reach of a module of the network is not known (a ValueError).
        ValueError: the picture is too small or has bands, the memory is not enough, the segmenter
            has a size or several views (with tiles, it may), or gives no such certainty.
        OSError: the maps do not fit on the disk, or another process works in the folder.
    """
    steps: Sequence[MapStep]
    if confidence is not None:
        segmenter.check_confidence(confidence, min_confidence)
    if tiles is None:
        steps = plan(segmenter, picture, folder, confidence).steps
    else:
        steps = [TileStep(segmenter, picture, folder, tiles, confidence)]
    identity = identity_of(segmenter, picture, tiles, confidence)
    if rows is None:
        check_memory(steps, memory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):  # until the labels have been read
            run(steps, folder, identity, memory=memory, rows=rows, progress=progress)
            labels, *certainty = (target.map for target in steps[-1].targets)
            yield LabelRows(labels, *certainty, least=min_confidence)
    except ImageError:  # what was made of a damaged picture is of no use when it is mended
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def predict_file(
    segmenter: Segmenter,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    certainty: str | os.PathLike[str] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    **settings: Any,
) -> tuple[int, int]:
    """Label a picture file of any size, from disk to disk.

    The labels are those of the whole picture (`fassd.inference.strips`), except with tiles.

    Args:
        segmenter: segmenter, as in `labelled`.
        source: path of a TIFF, which is read by rows (`fassd.io.tiff.TiffRows`), or of any other
            picture, which is read whole.
        output: path of a TIFF in tiles for the labels, in a palette of the classes' colours.
        certainty: path of a TIFF for the labels' certainty, grey, 255 for certain.
        scratch: folder for the maps; by default a hidden one beside `output`.
        max_pixels: maximum of height times width for a picture that is read whole.
        settings: `memory`, `tiles`, `confidence`, `min_confidence` and `progress` of `labelled`.

    Returns:
        The picture's height and width.

    Raises:
        Errors as in `labelled`, and `fassd.io.images.ImageError` if the source cannot be read.
        ValueError: also, there is no `confidence`, but a file for it or a smallest one.
    """
    needed = certainty is not None or settings.get("min_confidence") is not None
    if needed and settings.get("confidence") is None:
        raise ValueError("certainty and min_confidence need a confidence, got None")
    output = Path(output)
    folder = scratch_folder(output, scratch)
    with open_rows(source, segmenter.range, max_pixels) as picture:
        with labelled(segmenter, picture, folder, **settings) as labels:
            write_labels(output, labels, segmenter.palette)
            if certainty is not None:
                write_tiff(Path(certainty), (labels.height, labels.width), labels.certainty)
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


def identity_of(
    segmenter: Segmenter, picture: Picture, tiles: int | None, confidence: Measure | None
) -> str:
    """The digest of a picture, a network and settings, which distinguishes their work."""
    text = [fassd.__version__, segmenter.backend, str(segmenter.dtype), str(segmenter.device)]
    text += map(repr, [segmenter.size, segmenter.views, tiles, confidence])
    text.append(repr(temperature_of(segmenter.model)))
    digest = hashlib.sha256(json.dumps([text, picture.identity], default=str).encode())
    digest.update(repr(segmenter.model).encode())
    for name, tensor in segmenter.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
