"""Steps of graphs that compute with bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fassd_kernels.graphs.ranges import Grid
from fassd_kernels.graphs.steps import Packing, Read
from fassd_kernels.modules.fused import kept
from fassd_kernels.packing import batch_norm_affine

OPS = torch.ops.fassd_kernels

LARGEST = 127
"""Largest weight; -128 is not used."""

TINY = 1e-30
"""Least largest weight of an output: of one without weights other than 0."""


class Quantize(nn.Module):
    """An image to bytes."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, image: Tensor) -> Tensor:
        return OPS.quantize(image, *self.grid)


class QuantizedUpsample(nn.Module):
    """A resized image of bytes."""

    def forward(self, image: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
        return OPS.quantized_upsample(image, size, align_corners)


class QuantizedStep(Packing):
    """A fused convolution of bytes.

    Attributes:
        sources: grid and number of channels of each of its images.
        residual: grid of the residual, None if that is no image of bytes.
        result: grid of the result, None for one of the model's type.
    """

    operator = "quantized_conv_act"

    def __init__(
        self,
        *arguments: Any,
        sources: Sequence[tuple[Grid, int]],
        residual: Grid | None,
        result: Grid | None,
    ) -> None:
        super().__init__(*arguments)
        self.sources, self.residual, self.result = sources, residual, result

    def pack(self, read: Read) -> None:
        found = self.fold(read)
        weight, slope = found["weight"].double(), found["slope"]
        dtype = found["weight"].dtype
        counts = torch.tensor([channels for _, channels in self.sources])
        scales, zeros = (
            torch.tensor(each, dtype=torch.float64).repeat_interleave(counts)[:, None, None]
            for each in zip(*(grid for grid, _ in self.sources), strict=True)
        )
        weight = weight * scales
        factor = weight.abs().amax((1, 2, 3)).clamp_min(TINY) / LARGEST
        whole = (weight / factor[:, None, None, None]).round()
        # What the bytes of the value 0 add up to.
        bias = -factor * (whole * zeros).sum((1, 2, 3))
        if found["bias"] is not None:
            bias = bias + found["bias"].double()
        weight = whole.to(torch.int8)
        place = {name: self.options[name] for name in ("stride", "dilation")}
        tensors = {
            "weight": weight,
            "factor": kept(factor.float()),
            "bias": kept(bias.float()),
            "slope": None if slope is None else kept(slope.float()),
            "packed": OPS.pack_quantized_weight(weight, **place),
        }
        options = {
            "zeros": [grid.zero for grid, _ in self.sources],
            "dtype": dtype if self.result is None else torch.uint8,
            **self.options,
        }
        if self.result is not None:
            options |= self.result._asdict()
        if self.residual is not None:
            options |= {f"residual_{name}": x for name, x in self.residual._asdict().items()}
        self.tensors = {**tensors, **options}

    def forward(self, images: Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
        """`act(conv(cat(images)) + bias + residual)`, or its means of 2 x 2 pixels."""
        return OPS.quantized_conv_act(images, **self.tensors, residual=residual)


class StepToBytes(Packing):
    """A fused convolution of values whose result is written as bytes."""

    operator = "conv_act"

    def __init__(self, *arguments: Any, result: Grid) -> None:
        super().__init__(*arguments)
        self.result = result

    def forward(self, images: Sequence[Tensor], residual: None = None) -> Tensor:
        """`act(conv(cat(images)) + bias)`."""
        place = {name: self.options[name] for name in ("stride", "dilation", "activation")}
        return OPS.conv_act_quantized(images, **self.tensors, **place, **self.result._asdict())


class QuantizedSum(Packing):
    """The sum of one or two images, a batch norm and an activation, to bytes.

    Attributes:
        grids: grids of the images, None for those of another type; that of the result.
    """

    operator = "quantized_sum"

    def __init__(self, norm: Any, slope: Any, activation: str, grids: Sequence[Any]) -> None:
        super().__init__(None, None, norm, slope, (1, 1), (1, 1), activation)
        self.grids = grids

    def pack(self, read: Read) -> None:
        factor, bias = batch_norm_affine(self.batch_norm(read))
        *grids, result = [grid or Grid(1.0, 0) for grid in self.grids]
        factors = torch.stack([factor * grid.scale for grid in grids])
        bias = bias - factor * sum(grid.scale * grid.zero for grid in grids)
        slope = self.slopes(read, factor)
        self.tensors = {
            "factors": factors.float(),
            "bias": bias.float(),
            "slope": None if slope is None else slope.float(),
            "activation": self.options["activation"],
            **result._asdict(),
        }

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """`act(norm(sum(images)))`."""
        return OPS.quantized_sum(images, **self.tensors)
