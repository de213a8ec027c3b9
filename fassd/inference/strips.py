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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fassd.inference.fields import Field, UnboundedError, encoder_field, field_of
from fassd.inference.maps import MapFile
from fassd.inference.steps import MapStep, Picture, Target
from fassd.models.encoder import STRIDES, Encoder
from fassd.models.info import temperature_of
from fassd.models.layers import Rows, resize
from fassd.models.network import FASSDNet
from fassd.models.preprocess import normalize, preprocessing_of
from fassd_kernels.graphs.steps import repeatable
from fassd_kernels.reference.conv_act import channels_last
from fassd_kernels.reference.upsample import Measure, confident_labels

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter

TRIED = 8
"""Side of a map for trying parts."""


@dataclass
class StripPlan:
    """The steps from a picture to its labels, and the maps between them, in a folder."""

    network: Any
    picture: Picture
    folder: Path
    dtype: torch.dtype
    device: torch.device
    steps: list[MapStep] = field(default_factory=list)

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
        self.steps.append(MapStep(name, [target], size[0], seen, compute, reads, whole))
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
            if not _is_fused(self.network):
                return self.network.encode(pixels)
            with repeatable():
                return self.network.encode(channels_last(pixels) if pixels.is_cpu else pixels)

        self.steps.append(MapStep("encoder", targets, size[0], seen, compute))
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
        network = self.network
        names = ["conv1x1_up", "mda", "denseBlocksUp"]
        parts = [(f"{name}.{index}", getattr(network, name)[index]) for name in names]
        final = index == len(network.conv1x1_up) - 1
        if final:
            parts.append(("finalConv", network.finalConv))
        seen = field_of(parts, skip.shape[:2])

        def joined(below: Tensor, beside: Tensor, rows: Rows) -> Tensor:
            x = network.refine(index, below, beside, rows)
            return network.finalConv(x) if final else x

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
        self.steps.append(MapStep(name, [Target(made, 1)], skip.height, seen, compute, [low, skip]))
        return made

    def label(self, scores: MapFile, measure: Measure | None) -> None:
        """The last step, to the labels and, with a measure, their certainty."""
        network, classes = self.network, scores.shape[2]
        height, width = self.picture.height, self.picture.width
        dtype = torch.uint8 if classes <= 256 else torch.uint16
        names = ["labels"] if measure is None else ["labels", "certainty"]
        made = [Target(self.map(name, (height, width, 1), dtype), 1) for name in names]
        fused, direct = _is_fused(network), _is_fused(network) and classes <= 256

        def compute(first: int, last: int) -> Sequence[Tensor]:
            rows = Rows(0, scores.height, first, height)
            begin, end = rows.read(last - first)
            rows = rows._replace(low=begin)
            strip, size = self.given(scores.read(begin, end)), (last - first, width)
            if direct:
                found = network.labels_of(strip, size, measure, rows)
            else:
                if fused:
                    large = network.run("upsample", strip, size, rows)
                else:
                    large = resize(strip, size, rows)
                found = large.argmax(1)
                if measure is not None:
                    found = confident_labels(large, measure, temperature_of(network))
            return found.view(1, -1, *size).to(dtype).split(1, 1)

        # The scores that are read; enlarged, by PyTorch along a row and then of all rows.
        values = scores.shape[1] * classes * scores.height / height
        enlarged = 4.0 * classes if measure is None else 8.0 * classes
        values += width * (len(made) if direct else enlarged)
        seen = Field(1, 0, height, width, values)
        self.steps.append(MapStep("labels", made, height, seen, compute, [scores]))


def plan(
    segmenter: Segmenter, picture: Picture, folder: Path, measure: Measure | None = None
) -> StripPlan:
    """The steps from a picture to its labels by a network, with their maps in a folder.

    With a `measure` the last step has a second target: the certainty of the labels.

    Raises:
        UnboundedError: the reach of a module is not known, or the network is not one of
            `fassd.models`; the message names it.
        ValueError: the picture is too small for the network, or has bands; or the segmenter has a
            size or several views.
    """
    network = segmenter.model
    if not isinstance(network, FASSDNet):
        raise UnboundedError(
            f"strips need a network of fassd.list_models(), got a {type(network).__name__}"
        )
    if getattr(network, "quantization", None) is not None:
        raise UnboundedError("strips are not computed in int8: choose another dtype, or tiles")
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
    made = StripPlan(network, picture, folder, segmenter.dtype, segmenter.device)
    with torch.inference_mode():
        *skips, low = made.encode()
        low = made.context(low)
        for index in range(len(network.conv1x1_up)):
            low = made.refine(index, low, skips.pop())
        made.label(low, measure)
    return made


def check_colors(segmenter: Segmenter) -> None:
    """Raise ValueError for a network that takes other bands than RGB, as rows are."""
    if segmenter.bands is not None:
        raise ValueError(
            f"pictures of {segmenter.bands} bands cannot be done by strips or tiles, which are RGB"
        )


def _is_fused(network: nn.Module) -> bool:
    from fassd_kernels.modules.network import FusedNetwork

    return isinstance(network, FusedNetwork)


def _part(network: Any, begin: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda x: network.encode_part(x, begin, end)


def _whole_field(parts: Sequence[tuple[str, nn.Module]], size: tuple[int, int]) -> Field:
    """The field of a part that keeps the size and needs the whole map."""
    channels = sum(
        inner.out_channels
        for _, part in parts
        for inner in part.modules()
        if isinstance(inner, nn.Conv2d)
    )
    return Field(1, size[0], size[0], size[1], float(channels * size[1]))
