"""The pair 3x1 and 1x3 through one fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fassd.models import AsymmetricConv2d
from fassd_kernels import ops
from fassd_kernels.autocast import convert
from fassd_kernels.modules.fused import Fused, Packed, Plan, is_traced
from fassd_kernels.modules.parts import dilation_of, mismatch, reference_of


class FusedAsymmetricConv2d(Fused, AsymmetricConv2d):
    """A :class:`fassd.models.AsymmetricConv2d` by :func:`fassd_kernels.reference.asymmetric_conv`.

    Same constructor, ``FusedAsymmetricConv2d(in_channels, out_channels, dilation=1,
    activation="relu")``, parameters, state dict and gradients; see :class:`Fused` for when it
    fuses. With a residual, which that operator does not take, it runs two
    :func:`fassd_kernels.reference.conv_act`. ``from_reference`` accepts any module with the
    attributes ``conv3x1``, ``acti3x1``, ``conv1x3``, ``norm`` and ``acti1x3``.
    """

    operator = "asymmetric_conv"
    lead = "conv3x1"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        first = getattr(module, "acti3x1", None)
        activation = "prelu" if isinstance(first, nn.PReLU) else "relu"
        dilation = dilation_of(module, "conv3x1")
        return mismatch(module, reference_of(AsymmetricConv2d, 1, 1, dilation, activation))

    def convolutions(self) -> list[tuple[Any, Any]]:
        return [(self.conv3x1, None), (self.conv1x3, self.norm)]

    def pack(self, dtype: torch.dtype) -> Packed:
        folded = super().pack(dtype)
        packed: Packed = {"dilation": self.conv3x1.dilation[0], "activation": "relu"}
        for index, name in enumerate(("vertical", "horizontal")):
            packed[f"{name}_weight"] = folded["weights"][index]
            packed[f"{name}_bias"] = folded["biases"][index]
        activations: tuple[Any, ...] = self.acti3x1, self.acti1x3
        if isinstance(activations[0], nn.PReLU):  # a PReLU may have one slope for all channels
            packed["activation"] = "prelu"
            for name, acti in zip(("vertical", "horizontal"), activations, strict=True):
                slope = acti.weight.to(dtype)
                packed[f"{name}_slope"] = slope.expand(self.conv1x3.out_channels)
        return packed

    def plan(self, packed: Packed) -> list[Plan]:
        d = packed["dilation"]
        return [
            (packed["vertical_weight"], (1, 1), (d, 1)),
            (packed["horizontal_weight"], (1, 1), (1, d)),
        ]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Run the pair: N x C x H x W to N x O x H x W, channels_last when fused."""
        prepared = self.prepare(x)
        if prepared is None:
            if not is_traced():
                self.repack()  # as in `Fused.forward`
            return AsymmetricConv2d.forward(self, x, residual)
        x, packed = prepared
        if residual is None:
            return self.run(x, packed)
        residual = convert(residual, x.dtype, type(self).__name__, "the residual")
        d = packed["dilation"]
        plans = packed.get("packed") or (None, None)
        for name, dilation, plan, added in (
            ("vertical", [d, 1], plans[0], None),
            ("horizontal", [1, d], plans[1], residual),
        ):
            own = ("weight", "bias", "slope")
            arguments = {
                **{key: packed.get(f"{name}_{key}") for key in own},
                "residual": added,
                "packed": plan,
                "dilation": dilation,
                "activation": packed["activation"],
            }
            backend = self.backend_for(x, [x], arguments, "conv_act")
            x = ops.operator("conv_act", backend)([x], **arguments)
        return x
