"""Several views of one picture, resized and mirrored, and the mean of the network's results.

Probabilities are summed one band of rows at a time: a view's logits stay as small as the network
returns them (a quarter of the sides of FASSD-Net's pictures) until a band of the picture needs its
rows. Logits at the picture's size are not stored for any view, unless the network returns no
smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd.io.images import resized
from fassd.models.layers import logits_of
from fassd_kernels.reference.upsample import Measure, certainty_of

BAND = 1 << 20
"""Maximum scores, over all classes, in a band of rows: 4 MB, so that it stays in a cache."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Views:
    """The sizes at which a network sees each picture, with or without mirror images.

    Attributes:
        scales: factors of the picture's sides, or of the network's input size.
        flip: True adds each view mirrored left to right.

    Raises:
        ValueError: a scale is not above zero, or there is none.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        several = isinstance(self.scales, Sequence) and len(self.scales) > 0
        if not several or not all(
            isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in self.scales
        ):
            raise ValueError(f"scales must be one or more positive numbers, got {self.scales!r}")

    @property
    def plain(self) -> bool:
        """True if the unchanged picture is the only view."""
        return tuple(self.scales) == (1,) and not self.flip

    def of(
        self, picture: npt.NDArray[np.uint8], size: Size, only: Size | None = None
    ) -> Iterator[tuple[npt.NDArray[np.uint8], bool]]:
        """Each view, (h, w, channels) uint8, and whether it is mirrored.

        Args:
            picture: (H, W, channels) uint8.
            size: size of the view at scale 1.
            only: size of all views, for a network that takes no other.
        """
        for scale in self.scales:
            view = resized(picture, only or tuple(max(1, round(side * scale)) for side in size))
            yield view, False
            if self.flip:
                yield np.ascontiguousarray(view[:, ::-1]), True


class SummedViews:
    """Probabilities of one picture's classes, summed over its views.

    For few views it stores the original logits. For many, or large ones, it stores a sum at the
    picture's size, and another one if there is a temperature: no more than two or three pictures of
    all classes, and one view. Labels do not depend on the temperature.

    Args:
        size: (H, W) of the picture.
        softmax: True if logits become probabilities; False if they are probabilities already.
        temperature: divisor of the logits for probabilities.

    Attributes:
        count: number of views that were added.
    """

    def __init__(self, size: Size, *, softmax: bool = True, temperature: float = 1.0) -> None:
        self.size = size
        self.softmax = softmax
        self.temperature = temperature
        self.count = 0
        self._waiting: list[tuple[Tensor, list[Size]]] = []
        self._totals: dict[float, Tensor] = {}  # by temperature

    @torch.inference_mode()
    def add(self, logits: Tensor, view: Size | None, mirrored: bool) -> None:
        """Add a view.

        Args:
            logits: (1, classes, h, w) floating; enlarged bilinearly, align_corners=True.
            view: (H, W) to which they are enlarged before the picture's size; None for none.
            mirrored: True if the view was mirrored.
        """
        self.count += 1
        logits = logits.flip(3) if mirrored else logits
        own = logits.shape[2], logits.shape[3]
        steps = [own, *([] if view is None else [view]), self.size]
        sizes = [after for before, after in pairwise(steps) if before != after]
        self._waiting.append((logits.contiguous(), sizes))
        whole = logits.shape[1] * math.prod(self.size)
        if self.count > 1 and sum(each.numel() for each, _ in self._waiting) >= whole:
            self._settle()

    @torch.inference_mode()
    def bands(self, temperature: float = 1.0) -> Iterator[tuple[int, int, Tensor]]:
        """The sums, rows `top` to `bottom` at a time: top, bottom, (classes, rows, W) float32.

        Args:
            temperature: 1 or the object's own; any with a single view.
        """
        height, width = self.size
        total = self._totals[temperature] if self._totals else None
        one = self._waiting[0][0][0] if self._waiting else total
        assert one is not None  # a view was added
        rows = max(1, BAND // (len(one) * width))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            band = None if total is None else total[:, top:bottom].clone()
            for logits, sizes in self._waiting:
                seen = rows_of(logits, sizes, top, bottom)[0]
                seen = (seen / temperature).softmax(0) if self.softmax else seen
                band = seen if band is None else band.add_(seen)
            assert band is not None
            yield top, bottom, band

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """The logits of the only view, (1, classes, H, W)."""
        [(logits, sizes)] = self._waiting
        for size in sizes:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits

    def _settle(self) -> None:
        """Add the waiting logits to the sums."""
        totals = {}
        for temperature in {1.0, self.temperature}:
            total = self._totals.get(temperature)
            for top, bottom, band in self.bands(temperature):
                if total is None:
                    total = band.new_empty(len(band), *self.size)
                total[:, top:bottom] = band
            assert total is not None  # a picture has rows
            totals[temperature] = total
        self._totals, self._waiting = totals, []

    @torch.inference_mode()
    def labels(self, groups: Sequence[Sequence[int]] | None = None) -> Tensor:
        """The class with the largest sum, (H, W) uint8, or int32 for more than 256 classes.

        Args:
            groups: groups of classes whose sums are added; the label is then the group's position.
        """
        found = []
        for _, _, band in self.bands():
            if groups is not None:
                band = torch.stack([band[list(group)].sum(0) for group in groups])
            largest = band.max(0).indices  # takes a quarter of argmax's time on a CPU
            found.append(largest.to(torch.uint8 if len(band) <= 256 else torch.int32))
        return torch.cat(found)

    @torch.inference_mode()
    def confident(self, measure: Measure) -> Tensor:
        """The class with the largest mean probability, and its certainty: (2, H, W) uint8.

        Args:
            measure: measure, as in `fassd_kernels.reference.upsample_confidence`; at most 256
                classes.
        """
        found = []
        certain = None if self.temperature == 1 else self.bands(self.temperature)
        for _, _, band in self.bands():
            own = band if certain is None else next(certain)[2]
            labels = band.max(0).indices.to(torch.uint8)
            certainty = certainty_of(own[None] / self.count, measure)[0].nan_to_num(0.0)
            found.append(torch.stack([labels, (255 * certainty + 0.5).to(torch.uint8)]))
        return torch.cat(found, 1)

    @torch.inference_mode()
    def mean(
        self, groups: Sequence[Sequence[int]] | None = None, temperature: float | None = None
    ) -> Tensor:
        """The mean probabilities, (classes, H, W) float32.

        Args:
            temperature: temperature, as in `bands`; None for the object's own.
            groups: groups of classes whose probabilities are added; the groups' probabilities are
                then scaled to a sum of 1.
        """
        at = self.temperature if temperature is None else temperature
        found = torch.cat([band for _, _, band in self.bands(at)], 1)
        if groups is None:
            return found.div_(self.count)
        found = torch.stack([found[list(group)].sum(0) for group in groups])
        return found.div_(found.sum(0).clamp_min_(1e-30))


def summed(
    network: nn.Module,
    picture: npt.NDArray[np.uint8],
    views: Views,
    run: Callable[[npt.NDArray[np.uint8]], tuple[Tensor, Size | None]],
    size: Size | None = None,
    temperature: float = 1.0,
) -> SummedViews:
    """Sum the probabilities of a picture's classes over its views.

    Args:
        network: network that returns logits; an exported file may take a single size, and may
            return 1 for a pixel's class and 0 for the others instead of logits.
        picture: (H, W, channels) uint8.
        views: views of the picture.
        run: function that returns the result of `small_logits` for a view, (h, w, channels) uint8.
        size: size of the view at scale 1; None for the picture's.
        temperature: divisor of the logits.
    """
    own = picture.shape[0], picture.shape[1]
    of_labels = getattr(getattr(network, "metadata", None), "output", "logits") != "logits"
    total = SummedViews(own, softmax=not of_labels, temperature=temperature)
    for view, mirrored in views.of(picture, size or own, getattr(network, "input_size", None)):
        total.add(*run(view), mirrored)
    return total


def only_view(logits: Tensor, size: Size) -> SummedViews:
    """The scores of one picture, (1, classes, h, w), to be enlarged to its size (H, W)."""
    total = SummedViews(size, softmax=False)
    total.add(logits, None, False)
    return total


def small_logits(network: nn.Module, batch: Tensor) -> tuple[Tensor, Size | None]:
    """The logits of one view, (1, classes, h, w) float32, as small as the network can return them.

    Returns:
        The logits, and the size to which the network itself would have enlarged them.
    """
    candidate: Any = network  # may be one of fassd_kernels
    hooked = candidate._forward_hooks or candidate._forward_pre_hooks
    if hasattr(network, "predict_labels") and hasattr(network, "scores") and not hooked:
        return candidate.scores(batch).float(), (batch.shape[2], batch.shape[3])
    return logits_of(network(batch)).float(), None


def rows_of(logits: Tensor, sizes: Sequence[Size], top: int, bottom: int) -> Tensor:
    """Rows of logits that are resized, bilinear with align_corners=True, one size after another.

    Args:
        logits: (1, classes, h, w) floating.
        sizes: successive sizes; the last is that of the picture.
        top, bottom: range of rows, in the last size.

    Returns:
        (1, classes, bottom - top, width), equal to `F.interpolate` except for rounding.
    """
    if not sizes:
        return logits[:, :, top:bottom]
    *before, (height, width) = sizes
    source = before[-1][0] if before else logits.shape[2]
    if source == height:
        part = rows_of(logits, before, top, bottom)
    else:
        place = torch.arange(top, bottom, device=logits.device, dtype=torch.float64)
        place = place * ((source - 1) / max(height - 1, 1))
        above = place.long().clamp(max=source - 1)
        below = (above + 1).clamp(max=source - 1)
        first, last = int(above[0]), int(below[-1])
        part = rows_of(logits, before, first, last + 1)
        weight = (place - above).to(part.dtype)[:, None]
        part = torch.lerp(part[:, :, above - first], part[:, :, below - first], weight)
    return F.interpolate(part, (bottom - top, width), mode="bilinear", align_corners=True)
