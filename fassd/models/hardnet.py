"""The harmonic dense block.

Source: Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fassd.models.layers import ConvLayer, positive_int


def harmonic_inputs(layer: int) -> list[int]:
    """Earlier layers that feed layer `layer` (from 1; 0 is the block's input), in concat order.

    Layer k reads layer k - 2^n for every n for which 2^n divides k (section 3.1 of the paper):

    >>> harmonic_inputs(6), harmonic_inputs(8)
    ([5, 4], [7, 6, 4, 0])
    """
    return [layer - (1 << n) for n in range(layer.bit_length()) if layer % (1 << n) == 0]


def harmonic_width(layer: int, growth_rate: int, grmul: float) -> int:
    """Output channels of layer `layer`: growth_rate * grmul^n, n being how often 2 divides `layer`.

    A layer that many others read is wider. The product is rounded to an even number, halves up.
    """
    width = growth_rate * grmul ** (len(harmonic_inputs(layer)) - 1)
    return int(width + 1) // 2 * 2


class HarDBlock(nn.Module):
    """3x3 `ConvLayer`s, each fed by the concatenation of the layers at power-of-two distances.

    The odd-numbered layers and the last one, concatenated in order, are the output; the others
    are only read inside the block.

    Args:
        in_channels: number of channels of the input.
        growth_rate: number of output channels of an odd-numbered layer (rounded to even).
        grmul: factor by which a layer gets wider for each time that 2 divides its number.
        n_layers: number of layers.

    Shape: (N, in_channels, H, W) to (N, `out_channels`, H, W).

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(self, in_channels: int, growth_rate: int, grmul: float, n_layers: int) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.growth_rate = positive_int("growth_rate", growth_rate)
        self.n_layers = positive_int("n_layers", n_layers)
        if not grmul > 0:
            raise ValueError(f"grmul must be positive, got {grmul!r}")
        self.grmul = grmul

        numbers = range(1, self.n_layers + 1)
        widths = [self.in_channels, *(harmonic_width(k, growth_rate, grmul) for k in numbers)]
        self.links = [harmonic_inputs(k) for k in numbers]
        self.layers = nn.ModuleList(
            ConvLayer(sum(widths[source] for source in links), widths[k])
            for k, links in zip(numbers, self.links, strict=True)
        )
        self.output_layers = [k for k in numbers if k % 2 == 1 or k == self.n_layers]
        self.out_channels = sum(widths[k] for k in self.output_layers)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer, links in zip(self.layers, self.links, strict=True):
            sources = [outputs[source] for source in links]
            outputs.append(layer(sources[0] if len(sources) == 1 else torch.cat(sources, 1)))
        return torch.cat([outputs[k] for k in self.output_layers], 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, growth_rate={self.growth_rate}, grmul={self.grmul}, "
            f"n_layers={self.n_layers}, out_channels={self.out_channels}"
        )
