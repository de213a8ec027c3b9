"""Dilated Asymmetric Pyramidal Fusion: multi-scale context on the coarsest map.

Source: Rosas-Arias et al., "FASSD-Net: Fast and Accurate Real-Time Semantic Segmentation for
Embedded Systems", IEEE T-ITS 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fassd.models.layers import norm_act, positive_int

DILATIONS = (12, 24, 36)
MOST_DILATION = 1 << 10


def checked_dilations(dilations: Sequence[int]) -> tuple[int, ...]:
    """Return `dilations` as three integers from 1 to 1024, or raise a ``ValueError``."""
    if not isinstance(dilations, Sequence) or len(dilations) != len(DILATIONS):
        raise ValueError(f"dilations must be three integers, got {dilations!r}")
    return tuple(positive_int("dilations", each, at_most=MOST_DILATION) for each in dilations)


class AsymmetricAtrousBranch(nn.Module):
    """A dilated 3x1 and a dilated 1x3 convolution, each with batch norm and ReLU.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.atrous_conv3x1 = nn.Conv2d(
            in_channels,
            out_channels,
            (3, 1),
            padding=(dilation, 0),
            dilation=(dilation, 1),
            bias=False,
        )
        self.atrous_conv1x3 = nn.Conv2d(
            out_channels,
            out_channels,
            (1, 3),
            padding=(0, dilation),
            dilation=(1, dilation),
            bias=False,
        )
        self.bn3x1 = nn.BatchNorm2d(out_channels)
        self.bn1x3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = norm_act(self.atrous_conv3x1(x), self.bn3x1, "relu")
        return norm_act(self.atrous_conv1x3(x), self.bn1x3, "relu")


class DAPF(nn.Module):
    """Four branches of inplanes // alpha channels, concatenated and fused by a 1x1 convolution.

    The branches are a 1x1 convolution and three `AsymmetricAtrousBranch`es, in the paper at
    dilation 12, 24 and 36. Every convolution is bias-free and followed by batch norm (eps 1e-5) and
    ReLU. Where the map's side is not larger than a dilation, that convolution's outer taps read
    only padding and it acts as a 1x1.

    Args:
        inplanes: number of channels of input and output.
        alpha: factor by which the branches are narrower; an integer from 1 to `inplanes`.
        dilations: dilations of the three asymmetric branches, each from 1 to 1024.

    Shape: (N, inplanes, H, W) to the same, any floating dtype.

    Raises:
        ValueError: `alpha` or `dilations` is outside its range.
    """

    def __init__(self, inplanes: int, alpha: int = 2, dilations: Sequence[int] = DILATIONS) -> None:
        super().__init__()
        self.inplanes = positive_int("inplanes", inplanes)
        self.alpha = positive_int("alpha", alpha, at_most=inplanes)
        width = inplanes // alpha
        self.conv1x1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1x1 = nn.BatchNorm2d(width)
        first, second, third = checked_dilations(dilations)
        self.pyBranch2 = AsymmetricAtrousBranch(inplanes, width, first)
        self.pyBranch3 = AsymmetricAtrousBranch(inplanes, width, second)
        self.pyBranch4 = AsymmetricAtrousBranch(inplanes, width, third)
        self.conv1 = nn.Conv2d(4 * width, inplanes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inplanes)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            norm_act(self.conv1x1(x), self.bn1x1, "relu"),
            self.pyBranch2(x),
            self.pyBranch3(x),
            self.pyBranch4(x),
        ]
        return norm_act(self.conv1(torch.cat(branches, 1)), self.bn1, "relu")

    def extra_repr(self) -> str:
        branches: tuple[Any, ...] = (self.pyBranch2, self.pyBranch3, self.pyBranch4)
        dilations = tuple(branch.atrous_conv3x1.dilation[0] for branch in branches)
        return f"{self.inplanes}, alpha={self.alpha}, dilations={dilations}"
