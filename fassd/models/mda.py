"""Multi-resolution Dilated Asymmetric module: the decoder's residual refinement.

Source: Rosas-Arias et al., "FASSD-Net: Fast and Accurate Real-Time Semantic Segmentation for
Embedded Systems", IEEE T-ITS 2021.
"""

from __future__ import annotations

from torch import Tensor, nn

from fassd.models.layers import BNPReLU, ConvBNPReLU, positive_int


class MDA(nn.Module):
    """A plain 3x3 beside a dilated 3x1 and 1x3, at half the width, added to the input.

    BN-PReLU, 3x3 to nIn // 2 with BN-PReLU; then a 3x3 and, in parallel, a dilated 3x1 followed by
    a dilated 1x3, each with BN-PReLU; their sum through BN-PReLU and a bare 1x1 back to `nIn`;
    plus the input. Batch norm eps is 1e-3, PReLU has one slope per channel, no convolution a bias.

    Args:
        nIn: number of channels of input and output, at least 2.
        d: dilation of the 3x1 and the 1x3.

    Shape: (N, nIn, H, W) to the same, any floating dtype.

    Raises:
        ValueError: `nIn` is below 2 or `d` below 1.
    """

    def __init__(self, nIn: int, d: int) -> None:
        super().__init__()
        self.nIn = positive_int("nIn", nIn)
        self.d = positive_int("d", d)
        if nIn < 2:
            raise ValueError(f"nIn must be at least 2, as the branches have nIn // 2, got {nIn}")
        half = nIn // 2
        self.bn_relu_1 = BNPReLU(nIn)
        self.conv3x3 = ConvBNPReLU(nIn, half, (3, 3))
        self.parallel_conv3x3 = ConvBNPReLU(half, half, (3, 3))
        self.parallel_ddconv3x1 = ConvBNPReLU(half, half, (3, 1), dilation=d)
        self.parallel_ddconv1x3 = ConvBNPReLU(half, half, (1, 3), dilation=d)
        self.bn_relu_2 = BNPReLU(half)
        self.conv1x1 = ConvBNPReLU(half, nIn, (1, 1), bn_prelu=False)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv3x3(self.bn_relu_1(x))
        plain = self.parallel_conv3x3(reduced)
        dilated = self.parallel_ddconv1x3(self.parallel_ddconv3x1(reduced))
        return x + self.conv1x1(self.bn_relu_2(plain + dilated))

    def extra_repr(self) -> str:
        return f"{self.nIn}, d={self.d}"
