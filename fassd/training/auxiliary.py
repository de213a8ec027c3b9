"""Heads on the decoder's coarser stages, trained with the network and dropped afterwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fassd.models.layers import init_weights


class WithHeads(nn.Module):
    """A network, and a 1x1 convolution to logits on each stage of its decoder but the finest.

    The network itself is unchanged, and so is its state dict.

    Args:
        network: a network of the family, plain or accelerated.
        num_classes: number of channels of each head.

    Shape: input as for the network; output the network's logits and, coarse to fine, those of the
    heads at the sizes of their stages.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        blocks: Any = network.denseBlocksUp
        self.heads = nn.ModuleList(
            nn.Conv2d(_width(block), num_classes, 1) for block in blocks[:-1]
        ).apply(init_weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        blocks: Any = self.network.denseBlocksUp
        hooks = [
            block.register_forward_hook(lambda _, inputs, output: maps.append(output))
            for block in blocks[:-1]
        ]
        try:
            logits = self.network(x)
        finally:
            for hook in hooks:  # hooks stop modules from running fused, so they are removed again
                hook.remove()
        return logits, *(head(found) for head, found in zip(self.heads, maps, strict=True))


def _width(block: Any) -> int:
    """Number of channels of a decoder's HarDBlock, or of the ConvLayer in its place."""
    channels: int = block.conv.out_channels if hasattr(block, "conv") else block.out_channels
    return channels
