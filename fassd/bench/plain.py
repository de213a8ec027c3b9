"""PyTorch's own way of computing the subjects: modules of its operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fassd.models import create_model
from fassd.models.layers import ConvLayer, resize

CLASSES = 19
LOGITS_REDUCTION = 4
"""Ratio of the picture's sides to the finest map's."""

MEAN = tuple(255 * value for value in (0.406, 0.456, 0.485))
STD = tuple(255 * value for value in (0.225, 0.224, 0.229))


def part_of_network(path: str) -> nn.Module:
    return create_model("fassd_net").get_submodule(path)


class Normalize(nn.Module):
    """The operator `normalize` as usually written in PyTorch.

    It computes in float32, or in float64 once it was moved to that, and then casts.

    Shape: (N, H, W, 3) uint8 RGB to (N, 3, H, W) BGR of the dtype it was moved to, channels_last.
    """

    mean: Tensor
    std: Tensor
    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", MEAN), ("std", STD), ("like", ())):
            self.register_buffer(name, torch.tensor(value))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalize:
        super()._apply(fn, recurse)
        wide = torch.promote_types(self.like.dtype, torch.float32)
        self.mean, self.std = (
            torch.tensor(values, dtype=wide, device=self.like.device) for values in (MEAN, STD)
        )
        return self

    def forward(self, image: Tensor) -> Tensor:
        pixels = (image.flip(-1).to(self.mean) - self.mean) / self.std
        return pixels.to(self.like).permute(0, 3, 1, 2)


class NormalizeConv(nn.Module):
    """`normalize` and the first layer of FASSD-Net.

    Shape: (N, H, W, 3) uint8 RGB to (N, O, h, w) of the layer's type, channels_last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.layer = part_of_network("base.0")

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(self.normalize(image))


class UpsampleConv(nn.Module):
    """The decoder's 1x1 on [`low` upsampled, `skip`].

    Shape: (N, C, h, w) and (N, D, H, W) to (N, O, H, W).
    """

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        up = resize(low, (skip.shape[2], skip.shape[3]))
        return self.layer(torch.cat([up, skip], 1))


class PlainUpsample(nn.Module):
    """Logits (N, C, h, w) to the picture's size."""

    def forward(self, logits: Tensor) -> Tensor:
        return resize(logits, picture_size(logits))


class UpsampleArgmax(PlainUpsample):
    """Logits (N, C, h, w) to labels (N, H, W) of the picture's size."""

    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits).argmax(1)


class UpsampleConfidence(PlainUpsample):
    """Logits (N, C, h, w) to labels and margins, uint8 (N, 2, H, W), of the picture's size.

    It computes in float32, or in float64 once it is moved there: in 16 bits PyTorch would round the
    enlarged logits, and margins with them.
    """

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.tensor(()))

    def forward(self, logits: Tensor) -> Tensor:
        wide = torch.promote_types(self.like.dtype, torch.float32)
        logits = super().forward(logits.to(wide))
        best = logits.softmax(1).topk(2, 1).values
        levels = (255 * (best[:, 0] - best[:, 1]) + 0.5).floor()
        return torch.stack([logits.argmax(1), levels], 1).to(torch.uint8)


def picture_size(logits: Tensor) -> tuple[int, int]:
    return LOGITS_REDUCTION * logits.shape[2], LOGITS_REDUCTION * logits.shape[3]


class Labelled(nn.Module):
    """A network followed by the class of every pixel.

    Shape: (N, 3, H, W) to labels (N, H, W), integers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).argmax(1)


def depthwise() -> nn.Module:
    """A depthwise 3x3 as in MobileNetV4, at an eighth of the picture's sides."""
    conv = nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(96), nn.ReLU())


def decoder_join(level: int) -> nn.Module:
    layer = part_of_network(f"conv1x1_up.{level}")
    assert isinstance(layer, ConvLayer)
    return UpsampleConv(layer)


def dilated_pair(level: int) -> nn.Module:
    """The 3x1 and 1x3 of an MDA."""
    mda: Any = part_of_network(f"mda.{level}")
    return nn.Sequential(mda.parallel_ddconv3x1, mda.parallel_ddconv1x3)
