"""Pictures of any size, labelled as a whole and computed strip by strip.

The network's maps are stored in files. Each is made from the previous one, a strip of rows at a
time: a strip is read with as many rows above and below as the layers between the two maps read
(`fassd.inference.fields`), computed, and written without them. Resizing takes its positions from
the whole maps. Memory is therefore that of a strip, whatever the picture's height, and every label
equals the whole picture's:

    picture > map at stride 4 > 8 > 16 > 32 > context > 16 > 8 > 4, scores > labels
                  '-----------'----'-------------------'----'----' skips

Parts that read the whole map (image pooling) are computed on the whole coarsest map, a 1024th of
the pixels.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fassd.inference.fields import TILE, Field, UnboundedError, encoder_field, field_of
from fassd.inference.maps import MapFile
from fassd.models.encoder import STRIDES, Encoder
from fassd.models.layers import Rows, interpolate_rows
from fassd.models.network import FASSDNet
from fassd.models.preprocess import normalize, preprocessing_of
from fassd.models.replacing import replacing

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter

try:
    import fcntl
except ImportError:  # of Windows there is no such lock
    fcntl = None  # type: ignore[assignment]

MEMORY = 2 << 30
"""Bytes that a strip may take, if nothing else is asked for."""

TRIED = 8
"""Side of a map for trying parts."""

JOURNAL = "journal.json"
"""Name of the file that says which strips are done."""


class Picture(Protocol):
    """Rows of a picture.

    Attributes:
        height, width: its size.
        identity: what tells it from other pictures, as JSON can hold it.
    """

    height: int
    width: int
    identity: Any

    def read(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Rows [first, last), (rows, width, 3) uint8 RGB."""
        ...


@dataclass
class Target:
    """A map that a step makes, and rows of the step's input to a row of it."""

    map: MapFile
    stride: int


@dataclass
class Step:
    """What is done strip by strip from one map to the next.

    Attributes:
        name: of what it makes.
        targets: what it writes.
        height: rows of what it reads.
        field: what its layers see; `stride` is the coarsest of the targets'.
        compute: (first, last), rows of what it reads, to those of every target, (1, C, rows, W),
            the first of which belongs to row `first`.
        reads: maps that it reads.
        whole: whether it takes all rows at once.
    """

    name: str
    targets: Sequence[Target]
    height: int
    field: Field
    compute: Callable[[int, int], Sequence[Tensor]]
    reads: Sequence[MapFile] = ()
    whole: bool = False

    @property
    def align(self) -> int:
        """Rows of the input, at multiples of which a strip may begin and end."""
        return TILE * self.field.stride

    @property
    def units(self) -> int:
        """Rows of the coarsest target, at least one of every other."""
        return max(-(-t.map.height * t.stride // self.field.stride) for t in self.targets)

    def input_rows(self, first: int, last: int) -> tuple[int, int]:
        """Rows [begin, end) of the input that are read for units [first, last)."""
        if self.whole:
            return 0, self.height
        above = first * self.field.stride - self.field.reach
        below = last * self.field.stride + self.field.reach
        begin = max(0, above // self.align * self.align)
        return begin, min(self.height, -(-below // self.align) * self.align)

    def units_within(self, values: float, rows: int | None, height: int) -> int:
        """Units of a strip of at most so many values; or of `rows` of a picture of `height`.

        At least one, of which `least_values` tells whether it fits.
        """
        if self.whole:
            return self.units
        if rows is not None:
            return max(1, rows * self.height // (height * self.field.stride))
        around = 2 * (self.field.reach + self.align)
        fit = int(values / self.field.values) - around
        # A picture that is no higher than that has fewer rows around a strip.
        if self.height * self.field.values <= values:
            return self.units
        return max(1, min(self.units, fit // self.field.stride))

    def least_rows(self) -> int:
        """Rows that the smallest strip away from the borders has."""
        rows = 2 * (self.field.reach + self.align) + self.field.stride
        return self.height if self.whole else min(rows, self.height)

    def least_values(self) -> float:
        """Values that the smallest strip has."""
        return self.field.values * self.least_rows()

    def do(self, first: int, last: int) -> None:
        """Make units [first, last)."""
        begin, end = self.input_rows(first, last)
        for target, strip in zip(self.targets, self.compute(begin, end), strict=True):
            top = first * self.field.stride // target.stride
            bottom = min(last * self.field.stride // target.stride, target.map.height)
            if last == self.units:
                bottom = target.map.height
            skipped = begin // target.stride
            target.map.write(top, strip[:, :, top - skipped : bottom - skipped])


@dataclass
class Plan:
    """The steps from a picture to its labels, and the maps between them, in a folder."""

    network: Any
    picture: Picture
    folder: Path
    dtype: torch.dtype
    device: torch.device
    steps: list[Step] = field(default_factory=list)

    def map(self, name: str, shape: tuple[int, int, int], dtype: torch.dtype | None = None) -> Any:
        return MapFile(self.folder / f"{name}.raw", shape, dtype or self.dtype)

    def given(self, values: Tensor) -> Tensor:
        """A strip in the form in which the network's own layers would return it."""
        values = values.to(self.device)
        return values if _is_fused(self.network) else values.contiguous()

    def zeros(self, channels: int, side: int) -> Tensor:
        """A map for trying parts, to find their number of channels."""
        return torch.zeros(1, channels, side, side, dtype=self.dtype, device=self.device)

    def pixels(self, first: int, last: int) -> Tensor:
        """Rows of the picture in the form of the network's input."""
        values = normalize(self.picture.read(first, last), preprocessing_of(self.network))
        return torch.from_numpy(values)[None].to(self.device, self.dtype)

    def add(
        self,
        name: str,
        parts: Sequence[tuple[str, nn.Module]],
        source: MapFile | None,
        run: Callable[[Tensor], Tensor],
        whole: bool = False,
    ) -> MapFile:
        """A step from one map, or the picture, to the next, through `parts`; `run` runs them."""
        picture = self.picture
        size = source.shape[:2] if source else (picture.height, picture.width)
        channels = source.shape[2] if source else 3
        seen = _whole_field(parts, size) if whole else field_of(parts, size)
        tried = run(self.zeros(channels, TRIED * seen.stride))
        made = self.map(name, (seen.height, seen.width, tried.shape[1]))

        def compute(first: int, last: int) -> Sequence[Tensor]:
            read = self.given(source.read(first, last)) if source else self.pixels(first, last)
            return [run(read)]

        seen = seen._replace(values=seen.values + size[1] * channels)
        reads = [source] if source else []
        target = Target(made, seen.stride)
        self.steps.append(Step(name, [target], size[0], seen, compute, reads, whole))
        return made

    def encode(self) -> list[MapFile]:
        """The steps of the encoder; its maps, fine to coarse."""
        network, maps, begin = self.network, [], 0
        if isinstance(network.base, Encoder):
            return self.encode_at_once(network.base)
        source = None
        for level, end in enumerate(network.ends(), start=1):
            parts = [(f"base.{i}", network.base[i]) for i in range(begin, end)]
            source = self.add(f"encoder-{level}", parts, source, _part(network, begin, end))
            maps.append(source)
            begin = end
        return maps

    def encode_at_once(self, encoder: Encoder) -> list[MapFile]:
        """One step to all maps of an encoder of timm."""
        size = self.picture.height, self.picture.width
        seen = encoder_field(encoder, size)
        seen = seen._replace(values=seen.values + 3 * size[1])
        channels = [part.conv.out_channels for part in cast(Any, encoder.project)]
        targets = [
            Target(
                self.map(f"encoder-{stride}", (-(-size[0] // stride), -(-size[1] // stride), c)),
                stride,
            )
            for stride, c in zip(STRIDES, channels, strict=True)
        ]

        def compute(first: int, last: int) -> Sequence[Tensor]:
            pixels = self.pixels(first, last)
            if _is_fused(self.network):
                return self.network.encode_from(pixels, 0)
            return self.network.encode(pixels)

        self.steps.append(Step("encoder", targets, size[0], seen, compute))
        return [target.map for target in targets]

    def context(self, source: MapFile) -> MapFile:
        module = self.network.DAPF
        parts = [("DAPF", module)]
        try:
            field_of(parts, source.shape[:2])
        except UnboundedError:
            return self.add("context", parts, source, module, whole=True)
        return self.add("context", parts, source, module)

    def refine(self, index: int, low: MapFile, skip: MapFile) -> MapFile:
        """A level of the decoder; at the last one, with the scores."""
        from fassd_kernels.modules.network import join

        network = self.network
        names = ["conv1x1_up", "mda", "denseBlocksUp"]
        parts = [(f"{name}.{index}", getattr(network, name)[index]) for name in names]
        final = index == len(network.conv1x1_up) - 1
        if final:
            parts.append(("finalConv", network.finalConv))
        seen = field_of(parts, skip.shape[:2])

        def joined(below: Tensor, beside: Tensor, rows: Rows) -> Tensor:
            x = join(network.conv1x1_up[index], below, beside, rows)
            for _, part in parts[1:]:
                x = part(x)
            return x

        def compute(first: int, last: int) -> Sequence[Tensor]:
            rows = Rows(0, low.height, first, skip.height)
            begin, end = rows.read(last - first)
            below, beside = (
                self.given(each) for each in (low.read(begin, end), skip.read(first, last))
            )
            return [joined(below, beside, rows._replace(low=begin))]

        below, beside = (self.zeros(each.shape[2], TRIED) for each in (low, skip))
        tried = joined(below, beside, Rows(0, TRIED, 0, TRIED))
        name = "scores" if final else f"decoder-{len(network.conv1x1_up) - index}"
        made = self.map(name, (seen.height, seen.width, tried.shape[1]))

        own = skip.shape[1] * (skip.shape[2] + 2 * low.shape[2])
        seen = seen._replace(values=seen.values + own)
        self.steps.append(Step(name, [Target(made, 1)], skip.height, seen, compute, [low, skip]))
        return made

    def label(self, scores: MapFile) -> MapFile:
        network, classes = self.network, scores.shape[2]
        height, width = self.picture.height, self.picture.width
        dtype = torch.uint8 if classes <= 256 else torch.uint16
        made = self.map("labels", (height, width, 1), dtype)
        fused, direct = _is_fused(network), _is_fused(network) and classes <= 256

        def compute(first: int, last: int) -> Sequence[Tensor]:
            rows = Rows(0, scores.height, first, height)
            begin, end = rows.read(last - first)
            rows = rows._replace(low=begin)
            strip, size = self.given(scores.read(begin, end)), (last - first, width)
            if direct:
                labels = network.run("upsample_argmax", strip, size, rows)
            elif fused:
                labels = network.run("upsample", strip, size, rows).argmax(1)
            else:
                labels = interpolate_rows(strip, size, rows).argmax(1)
            return [labels[:, None].to(dtype)]

        # The scores that are read; enlarged, by PyTorch along a row and then of all rows.
        values = scores.shape[1] * classes * scores.height / height
        values += width * (1.0 if direct else 4.0 * classes)
        seen = Field(1, 0, height, width, values)
        self.steps.append(Step("labels", [Target(made, 1)], height, seen, compute, [scores]))
        return made


def plan(segmenter: Segmenter, picture: Picture, folder: Path) -> Plan:
    """The steps from a picture to its labels by a network, with their maps in a folder.

    Raises:
        UnboundedError: it is not known how far a module sees, or the network is none of
            `fassd.models`; the message names it.
        ValueError: the picture is too small for the network, or has bands; or the segmenter has a
            size or several views.
    """
    network = segmenter.model
    if not isinstance(network, FASSDNet):
        raise UnboundedError(
            f"strips are of the networks of fassd.list_models(), not of a {type(network).__name__}"
        )
    if segmenter.size is not None:
        raise ValueError("strips are of a picture's own size: no other size can be given")
    if not segmenter.views.plain:
        raise ValueError("strips are of a picture as it is: neither scales nor flip can be given")
    check_colors(segmenter)
    least = network.minimum_size
    if min(picture.height, picture.width) < least:
        raise ValueError(
            f"the picture must be at least {least}x{least} pixels for this variant, got "
            f"{picture.height}x{picture.width}"
        )
    made = Plan(network, picture, folder, segmenter.dtype, segmenter.device)
    with torch.inference_mode():
        *skips, low = made.encode()
        low = made.context(low)
        for index in range(len(network.conv1x1_up)):
            low = made.refine(index, low, skips.pop())
        made.label(low)
    return made


def check_colors(segmenter: Segmenter) -> None:
    """Raise ValueError for a network that takes other bands than RGB, as rows are."""
    if segmenter.bands is not None:
        raise ValueError(
            f"pictures of {segmenter.bands} bands cannot be done by strips or tiles, which are RGB"
        )


def run(
    steps: Sequence[Step],
    folder: Path,
    identity: str,
    *,
    memory: int = MEMORY,
    rows: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Do the steps, from where an earlier run of the same work in this folder ended.

    The folder is to be `alone`. What was done holds through a crash of the process; after one of
    the machine, files may lack what the journal says that they have, and are to be removed.

    Args:
        steps: of a `Plan`; the last one's targets stay, all other maps are deleted when the last
            step that reads them is done.
        folder: of the maps.
        identity: what tells this work from other work.
        memory: bytes that the values of a strip may take.
        rows: rows of the picture in a strip, in place of `memory`.
        progress: called with the share that is done, after each strip.

    Raises:
        OSError: the maps do not fit on the disk.
    """
    height = steps[-1].height
    done = _journal(folder, identity)
    _check_space(steps, folder, done)
    costs = [step.height * step.field.values for step in steps]
    for index, step in enumerate(steps):
        first = done.get(step.name, 0)
        if first < step.units:
            for target in step.targets:
                target.map.create()
        count = step.units_within(memory / _itemsize(step), rows, height)
        while first < step.units:
            last = min(first + count, step.units)
            with torch.inference_mode():
                step.do(first, last)
            done[step.name] = first = last
            _write_journal(folder, identity, done)
            progress((sum(costs[:index]) + costs[index] * last / step.units) / sum(costs))
        later = {each.path for other in steps[index + 1 :] for each in other.reads}
        for each in step.reads:
            if each.path not in later:
                each.path.unlink(missing_ok=True)


def _itemsize(step: Step) -> int:
    """Bytes of a value that is computed with."""
    return max(each.dtype.itemsize for each in (*step.reads, *(t.map for t in step.targets)))


def check_memory(steps: Sequence[Step], memory: int) -> None:
    """Raise ValueError where the smallest strip of a step does not fit in memory."""
    for step in steps:
        least = step.least_values() * _itemsize(step)
        if least > memory:
            raise ValueError(
                f"memory of {memory / 1e6:,.0f} MB is not enough for a strip: the smallest one of "
                f"{step.name}, {step.least_rows()} rows of its input, takes {least / 1e6:,.0f} MB"
            )


def _check_space(steps: Sequence[Step], folder: Path, done: dict[str, int]) -> None:
    maps = [target.map for step in steps for target in step.targets if step.name not in done]
    needed, free = sum(each.bytes for each in maps), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: the maps of this picture take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} "
            "GB are free there; give another folder for them"
        )


def _journal(folder: Path, identity: str) -> dict[str, int]:
    """Units of each step that are done; what other work has left is removed."""
    try:
        found = json.loads((folder / JOURNAL).read_text())
        if found["identity"] == identity:
            return {str(name): int(units) for name, units in found["done"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    for left in folder.glob("*.raw"):
        left.unlink()
    return {}


def _write_journal(folder: Path, identity: str, done: dict[str, int]) -> None:
    with replacing(folder / JOURNAL) as file:
        file.write(json.dumps({"identity": identity, "done": done}).encode())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out of it, where the system can.

    Raises:
        OSError: another process is at work there, or it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with (folder / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{folder}: another process is at work there") from error
        yield


def _is_fused(network: nn.Module) -> bool:
    from fassd_kernels.modules.network import FusedNetwork

    return isinstance(network, FusedNetwork)


def _part(network: Any, begin: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda x: network.encode_part(x, begin, end)


def _whole_field(parts: Sequence[tuple[str, nn.Module]], size: tuple[int, int]) -> Field:
    """Of a part that keeps the size and has to be given the whole map."""
    channels = sum(
        inner.out_channels
        for _, part in parts
        for inner in part.modules()
        if isinstance(inner, nn.Conv2d)
    )
    return Field(1, size[0], size[0], size[1], float(channels * size[1]))
