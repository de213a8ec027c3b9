"""The network in its deployed form: on request with preprocessing and argmax inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fassd.models.info import temperature_of
from fassd.models.layers import logits_of
from fassd.models.preprocess import preprocessing_of
from fassd_kernels.reference.upsample import Measure, certainty_levels

Pictures: TypeAlias = Sequence[npt.NDArray[np.uint8]]


class Deployed(nn.Module):
    """The module that exporters trace.

    Args:
        network: network from normalised pictures, usually BGR (N, 3, H, W), to logits; plain, or of
            `fassd_kernels`.
        preprocess: True takes uint8 RGB (N, H, W, 3), or as many bands, instead.
        output: kind of result: "logits", float32 whatever the network computes in, "labels", uint8
            (N, H, W), or "labels+confidence", both uint8 (N, H, W).
        measure: measure of the confidence.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, *, preprocess: bool, output: str, measure: Measure | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.output, self.measure = output, measure
        self.pictures = preprocessing_of(network)
        for name in ("mean", "std"):
            self.register_buffer(name, levels(getattr(self.pictures, name)))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self._result(image)
        if self.measure is None:
            return found
        return found[:, 0].to(torch.uint8), found[:, 1].to(torch.uint8)

    def _result(self, image: Tensor) -> Tensor:
        network: Any = self.network
        labels = self.output != "logits"
        colors = self.pictures.bands is None
        if self.preprocess and labels and colors and hasattr(network, "label_pictures"):
            own = self.pictures
            return network.label_pictures(image, own.mean_levels, own.std_levels, self.measure)
        dtype = next(network.parameters()).dtype
        batch = image
        if self.preprocess:
            batch = normalized(image, self.mean, self.std, self.pictures.channels)
        batch = batch.to(dtype)
        if labels and hasattr(network, "predict_labels"):
            return network.predict_labels(batch, self.measure)
        logits = logits_of(network(batch))
        if not labels:
            return logits.float()
        found = logits.argmax(1).float()  # TensorRT makes bytes of floats alone, at the end
        if self.measure is None:
            return found.to(torch.uint8)
        levels = certainty_levels(logits, self.measure, temperature_of(network))
        return torch.stack([found, levels], 1)


def levels(values: Sequence[float]) -> Tensor:
    """Means or deviations of channels on the scale of bytes, (channels, 1, 1) float32."""
    return torch.tensor([255 * value for value in values])[:, None, None]


def normalized(pictures: Tensor, mean: Tensor, std: Tensor, channels: str = "BGR") -> Tensor:
    """`fassd.models.normalize`, of uint8 RGB (N, H, W, 3), or bands, by `levels`, to channels in an
    order."""
    # Floats first: TensorRT takes bytes as an input, and nowhere behind it.
    batch = pictures.float()
    batch = batch.flip(3) if channels == "BGR" else batch
    return (batch.permute(0, 3, 1, 2) - mean) / std


def denormalized(batch: Tensor, mean: Tensor, std: Tensor, channels: str = "BGR") -> Tensor:
    """The pictures of normalised batches, exactly: each value is one of 256 levels."""
    pictures = (batch * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return pictures.flip(3) if channels == "BGR" else pictures


def free_sides(preprocess: bool, size: tuple[int, int] | None) -> tuple[dict[int, Any]] | None:
    """`dynamic_shapes` for exporters: height and width are free unless there is a size.

    Without names and bounds: for those `torch.onnx.export` would trace twice, to find the bounds.
    """
    if size is not None:
        return None
    height = 1 if preprocess else 2
    return ({height: torch.export.Dim.DYNAMIC, height + 1: torch.export.Dim.DYNAMIC},)


def example_input(shape: tuple[int, ...], preprocess: bool) -> Tensor:
    """A batch of noise to trace with."""
    generator = torch.Generator().manual_seed(0)
    if preprocess:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def groups(pictures: Pictures, batch: int) -> Iterator[list[npt.NDArray[np.uint8]]]:
    """Pictures of one size in whole batches, filled up with the first ones if necessary; pictures
    of several sizes one by one."""
    if len({picture.shape for picture in pictures}) > 1:
        yield from ([picture] for picture in pictures)
        return
    for first in range(0, len(pictures), batch):
        yield [pictures[i % len(pictures)] for i in range(first, first + batch)]
