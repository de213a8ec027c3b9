"""Atrous spatial pyramid pooling: the module that DAPF is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fassd.models.layers import ConvLayer, positive_int


class ASPP(nn.Module):
    """DeepLabV3's pyramid: 1x1, 3x3 at three dilations, and image pooling; concat; 1x1.

    A reconstruction: the authors published no code for their ASPP rows. This module is the
    one of Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017),
    section 3.3, in the widths that give the published parameter and operation counts to the last
    digit. Its state dict keys are our own.

    Every convolution is bias-free and followed by batch norm (eps 1e-5) and ReLU. In training the
    Every convolution is bias-free and followed by batch norm (eps 1e-5) and ReLU. In training the
    batch norm of the pooled branch sees one value per picture and channel, so a batch of one raises
    PyTorch's "expected more than 1 value per channel".

    Args:
        inplanes: number of channels of input and output.
        width: number of channels of each of the five branches.
        dilations: dilations of the 3x3 convolutions.

    Shape: (N, inplanes, H, W) to the same, any floating dtype.
    """

    def __init__(
        self, inplanes: int, width: int = 256, dilations: tuple[int, ...] = (12, 24, 36)
    ) -> None:
        super().__init__()
        self.inplanes = positive_int("inplanes", inplanes)
        self.width = positive_int("width", width)
        self.dilations = tuple(positive_int("dilations", dilation) for dilation in dilations)
        self.conv1x1 = ConvLayer(inplanes, width, 1)
        self.atrous = nn.ModuleList(
            ConvLayer(inplanes, width, dilation=dilation) for dilation in self.dilations
        )
        self.pooled = ConvLayer(inplanes, width, 1)
        self.fuse = ConvLayer((2 + len(self.dilations)) * width, inplanes, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Bilinear upsampling from 1x1 is a broadcast.
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, x.shape[2], x.shape[3])
        return self.fuse(
            torch.cat([self.conv1x1(x), *(branch(x) for branch in self.atrous), pooled], 1)
        )

    def extra_repr(self) -> str:
        return f"{self.inplanes}, width={self.width}, dilations={self.dilations}"
