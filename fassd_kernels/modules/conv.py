"""ConvLayer and the last 1x1, each through one fused operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fassd.models.layers import ConvLayer, Rows, resize
from fassd_kernels import ops
from fassd_kernels.autocast import convert
from fassd_kernels.modules.fused import Fused, Packed, Plan, is_traced
from fassd_kernels.modules.parts import missing_attribute, part_mismatch, same_padding_mismatch
from fassd_kernels.packing import fold


class SingleConvolution(Fused):
    """A module that is one convolution, through :func:`fassd_kernels.reference.conv_act`."""

    operator = "conv_act"
    activation: ClassVar[str] = "none"

    def pack(self, dtype: torch.dtype) -> Packed:
        ((conv, norm),) = self.convolutions()
        weight, bias = fold(conv, norm, dtype)
        return {
            "weight": weight,
            "bias": bias,
            "stride": list(conv.stride),
            "dilation": list(conv.dilation),
            "activation": type(self).activation,
        }

    def plan(self, packed: Packed) -> list[Plan]:
        return [(packed["weight"], packed["stride"], packed["dilation"])]

    def run(self, x: Tensor, packed: Packed, **more: Any) -> Tensor:
        arguments = {**only_packed(packed), **more}
        return ops.operator("conv_act", self.backend_for(x, [x], arguments))([x], **arguments)


def only_packed(packed: Packed) -> Packed:
    """The arguments of a convolution of a whole input, with its one packed weight, if it has one
    and not the two of `upsample_conv1x1`."""
    plans: Any = packed.get("packed") or ()
    arguments = {name: value for name, value in packed.items() if name != "low_channels"}
    return {**arguments, "packed": plans[0] if len(plans) == 1 else None}


class FusedConvLayer(SingleConvolution, ConvLayer):
    """A :class:`fassd.models.layers.ConvLayer` through :func:`fassd_kernels.reference.conv_act`.

    Same constructor, parameters, state dict and gradients; see :class:`Fused` for when it fuses.
    Three methods fuse it with its neighbours in a network.
    """

    activation = "relu"
    lead = "conv"
    # Number of channels of the upsampled part that weights are packed for; None: for a whole input.
    _low_channels: int | None = None

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        missing = missing_attribute(module, ("conv", "norm", "relu"))
        if missing:
            return missing
        parts: Any = module
        return (
            same_padding_mismatch("conv", parts.conv)
            or part_mismatch("norm", parts.norm, nn.BatchNorm2d)
            or part_mismatch("relu", parts.relu, nn.ReLU)
        )

    def convolutions(self) -> list[tuple[Any, Any]]:
        return [(self.conv, self.norm)]

    def pack(self, dtype: torch.dtype) -> Packed:
        low = self._low_channels
        return super().pack(dtype) | ({} if low is None else {"low_channels": low})

    def plan(self, packed: Packed) -> list[Plan]:
        weight, low = packed["weight"], packed.get("low_channels")
        if low is None:
            return [(weight, packed["stride"], packed["dilation"])]
        return [(part, (1, 1), (1, 1)) for part in (weight[:, :low], weight[:, low:])]

    def of_pictures(
        self, pictures: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> Tensor | None:
        """``self(normalize(pictures, mean, std))`` without writing the input; None if not fusible.

        Args:
            pictures: N x H x W x 3, uint8, RGB.
            mean, std: mean and deviation, as in :func:`fassd_kernels.reference.normalize`.
        """
        prepared = self.prepare(self.conv.weight)
        if prepared is None or self.conv.in_channels != 3:
            return None
        arguments = {**only_packed(prepared[1]), "mean": mean, "std": std}
        like = arguments["weight"]
        backend = self.backend_for(like, [pictures], arguments, "normalize_conv_act")
        return ops.operator("normalize_conv_act", backend)(pictures, **arguments)

    def pooled(self, x: Tensor) -> Tensor:
        """``avg_pool2d(self(x), 2)``, without writing the layer's own result."""
        prepared = self.prepare(x)
        if prepared is None:
            return F.avg_pool2d(self(x), 2)
        return self.run(*prepared, pool=2)

    def after_upsample(self, low: Tensor, skip: Tensor, rows: Rows | None = None) -> Tensor:
        """``self(cat([resize(low), skip], 1))``, without writing either argument of ``cat``.

        `rows` gives the position of strips, if the two are strips.
        """
        size = (skip.shape[2], skip.shape[3])
        if not is_traced() and self._low_channels != low.shape[1]:
            self._low_channels = low.shape[1]
            self.repack()
        prepared = self.prepare(low)
        if prepared is None or self.conv.kernel_size != (1, 1) or self.conv.stride != (1, 1):
            return self(torch.cat([resize(low, size, rows), skip], 1))
        low, packed = prepared
        fits = packed.get("low_channels") == low.shape[1]
        skip = convert(skip, low.dtype, type(self).__name__, "the skip")
        sizes = {"weight": packed["weight"], "activation": self.activation}
        backend = self.backend_for(low, [low, skip], sizes, "upsample_conv1x1")
        arguments = {
            "packed": packed.get("packed") if fits else None,
            "activation": self.activation,
        }
        function = ops.operator("upsample_conv1x1", backend)
        if rows is not None:
            if backend != "cpu":
                return self(torch.cat([resize(low, size, rows), skip], 1))
            function = torch.ops.fassd_kernels.upsample_conv1x1_rows
            arguments.update(slope=None, rows=rows)
        return function([low], [skip], packed["weight"], packed["bias"], **arguments)


class FusedConv2d(SingleConvolution, nn.Conv2d):
    """A 1x1 convolution with its bias, through :func:`fassd_kernels.reference.conv_act`."""

    lead = ""

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        return same_padding_mismatch("the module", module, cls)

    def convolutions(self) -> list[tuple[Any, Any]]:
        return [(self, None)]

    def run(self, x: Tensor, packed: Packed, **more: Any) -> Tensor:
        # Settings of its own are not compared on each call, as those of parts are.
        settings = {"stride": list(self.stride), "dilation": list(self.dilation)}
        return super().run(x, packed, **settings, **more)
