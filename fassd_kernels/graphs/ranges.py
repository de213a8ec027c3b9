"""Ranges of a network's maps, measured on calibration inputs, and the bytes that stand for them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 4096
"""Number of bins of a histogram, from minus to plus its limit."""

MOST_VALUES = 1 << 20
"""Number of values of a map that are counted, at most, on a grid of rows and columns."""

SHARES = torch.linspace(1.0, 0.3, 71, dtype=torch.float64)
"""Shares of the range of a map's values that are tried as the range of its bytes."""


class Grid(NamedTuple):
    """What the bytes of a map stand for: ``scale * (q - zero)``.

    Attributes:
        scale: distance of two adjacent bytes' values, above 0.
        zero: byte of the value 0, from 0 to 255.
    """

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Grid:
        """The grid for values from `low`, at most 0, to `high`, at least 0."""
        scale = (high - low) / 255 or 1.0
        return cls(scale, round(-low / scale))


class Histogram:
    """Values of a map, but for those that are exactly 0, which every grid contains.

    Attributes:
        counts: `BINS` numbers, float64, of values from minus to plus `limit`.
        limit: a power of two. It doubles, and pairs of bins become one, when a larger value comes.
        low, high: least and largest value, or 0.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 2.0**-24
        self.low = self.high = 0.0

    def add(self, image: Tensor) -> None:
        """Count the values of an N x C x H x W image of any floating dtype, of a large one some.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        values = image.detach().float()
        low, high = map(float, torch.aminmax(values)) if image.numel() else (0.0, 0.0)
        if not abs(low) + abs(high) < torch.inf:
            raise ValueError("a layer gives values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while self.limit < max(self.high, -self.low):
            pairs = self.counts.unflatten(0, (-1, 2)).sum(1)
            self.counts, self.limit = F.pad(pairs, (BINS // 4, BINS // 4)), 2 * self.limit
        every = math.ceil(math.sqrt(values.numel() / MOST_VALUES)) or 1
        some = values[..., ::every, ::every]
        self.counts += torch.histc(some, BINS, -self.limit, self.limit)
        self.counts[BINS // 2] -= (some == 0).sum()

    def grid(self) -> Grid:
        """The grid with the least squared error.

        The error of 8 bits is that of rounding, a twelfth of the squared step, and that of values
        beyond the range.
        """
        width = 2 * self.limit / BINS
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit
        low, high = SHARES[:, None] * self.low, SHARES[:, None] * self.high
        beyond = (centres - centres.clamp(low, high)) ** 2
        rounding = ((high - low) / 255) ** 2 / 12
        error = ((beyond + rounding) * self.counts).sum(1)
        share = float(SHARES[error.argmin()])
        return Grid.of(share * self.low, share * self.high)


class Quantization:
    """The grids of the maps of a network, by names that all of its graphs have in common.

    Attributes:
        grids: grids of the maps that were measured.
        histograms: histograms of the maps while they are measured; None afterwards.
    """

    def __init__(self) -> None:
        self.grids: dict[str, Grid] = {}
        self.histograms: dict[str, Histogram] | None = {}

    def measured(self) -> None:
        """Set the grids by what was measured."""
        assert self.histograms is not None
        self.grids = {name: found.grid() for name, found in self.histograms.items()}
        self.histograms = None
