"""Several views of one picture, resized and mirrored, and the mean of what a network says of them.

Probabilities are summed row band by row band: a view's logits stay as small as the network gives
them (a quarter of the sides of FASSD-Net's pictures) until a band of the picture asks for its rows.
Logits at the picture's size are kept of no view, unless the network gives no smaller ones.
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
"""Scores, of all classes, that a band of rows holds: 4 MB, so that it stays in a cache."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Views:
    """Sizes at which a network sees each picture, and whether also in a mirror.

    Attributes:
        scales: factors of the picture's sides, or of the size that the network sees.
        flip: whether each is seen mirrored left to right, too.

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
        """Whether the picture as it is is the only view."""
        return tuple(self.scales) == (1,) and not self.flip

    def of(
        self, picture: npt.NDArray[np.uint8], size: Size, only: Size | None = None
    ) -> Iterator[tuple[npt.NDArray[np.uint8], bool]]:
        """Each view, (h, w, channels) uint8, and whether it is mirrored.

        Args:
            picture: (H, W, channels) uint8.
            size: of the view at scale 1.
            only: of all views, of a network that takes no other.
        """
        for scale in self.scales:
            view = resized(picture, only or tuple(max(1, round(side * scale)) for side in size))
            yield view, False
            if self.flip:
                yield np.ascontiguousarray(view[:, ::-1]), True


class SummedViews:
    """Probabilities of one picture's classes, summed over its views.

    Of few views it holds the logits as they came. Of many, or of large ones, it holds a sum at the
    picture's size, and another one where there is a temperature: no more than two or three pictures
    of all classes, and one view. Labels are those without a temperature, whatever it is.

    Args:
        size: (H, W) of the picture.
        softmax: whether logits become probabilities; False where they are probabilities already.
        temperature: what logits are divided by for probabilities.

    Attributes:
        count: number of views that were added.
    """

    def __init__(self, size: Size, *, softmax: bool = True, temperature: float = 1.0) -> None:
        self.size = size
        self.softmax = softmax
        self.temperature = temperature
        self.count = 0
        self._waiting: list[tuple[Tensor, list[Size]]] = []
        self._totals: dict[float, Tensor] = {}  # of temperatures

    @torch.inference_mode()
    def add(self, logits: Tensor, view: Size | None, mirrored: bool) -> None:
        """Add a view.

        Args:
            logits: (1, classes, h, w) floating; enlarged bilinearly, align_corners=True.
            view: (H, W) that they are enlarged to before the picture's; None for none.
            mirrored: whether the view was.
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
            temperature: 1 or the own one; of one view any.
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
        """Those of the only view, (1, classes, H, W)."""
        [(logits, sizes)] = self._waiting
        for size in sizes:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits

    def _settle(self) -> None:
        """Make sums of what waits."""
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
        """The class of the largest sum, (H, W) uint8, or int32 of more than 256 classes.

        Args:
            groups: classes whose sums are added; the label is the group's position then.
        """
        found = []
        for _, _, band in self.bands():
            if groups is not None:
                band = torch.stack([band[list(group)].sum(0) for group in groups])
            largest = band.max(0).indices  # a quarter of argmax's time on a CPU
            found.append(largest.to(torch.uint8 if len(band) <= 256 else torch.int32))
        return torch.cat(found)

    @torch.inference_mode()
    def confident(self, measure: Measure) -> Tensor:
        """The class of the largest mean probability, and how certain it is: (2, H, W) uint8.

        Args:
            measure: as of `fassd_kernels.reference.upsample_confidence`; of at most 256 classes.
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
            temperature: as of `bands`; None for the own one.
            groups: classes whose probabilities are added; then, of them alone, they are made to sum
                up to 1.
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
    """The probabilities of a picture's classes, summed over its views.

    Args:
        network: gives the logits; an exported file may take one size alone, and may give 1 for a
            pixel's class and 0 for the others in place of logits.
        picture: (H, W, channels) uint8.
        views: how it is seen.
        run: what `small_logits` gives of a view, (h, w, channels) uint8.
        size: of the view at scale 1; None for the picture's.
        temperature: what logits are divided by.
    """
    own = picture.shape[0], picture.shape[1]
    of_labels = getattr(getattr(network, "metadata", None), "output", "logits") != "logits"
    total = SummedViews(own, softmax=not of_labels, temperature=temperature)
    for view, mirrored in views.of(picture, size or own, getattr(network, "input_size", None)):
        total.add(*run(view), mirrored)
    return total


def small_logits(network: nn.Module, batch: Tensor) -> tuple[Tensor, Size | None]:
    """The logits of one view, (1, classes, h, w) float32, as small as the network can give them.

    Returns:
        The logits, and the size that the network itself would have enlarged them to.
    """
    candidate: Any = network  # perhaps fassd_kernels' own
    hooked = candidate._forward_hooks or candidate._forward_pre_hooks
    if hasattr(network, "predict_labels") and hasattr(network, "scores") and not hooked:
        return candidate.scores(batch).float(), (batch.shape[2], batch.shape[3])
    return logits_of(network(batch)).float(), None


def rows_of(logits: Tensor, sizes: Sequence[Size], top: int, bottom: int) -> Tensor:
    """Rows of logits that are resized, bilinear with align_corners=True, one size after another.

    Args:
        logits: (1, classes, h, w) floating.
        sizes: one after another; the last is that of the picture.
        top, bottom: which rows, of the last size.

    Returns:
        (1, classes, bottom - top, width), as of `F.interpolate` but for rounding.
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
