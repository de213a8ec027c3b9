"""MDA through one fused operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fassd.models import MDA
from fassd_kernels.modules.fused import (
    Fused,
    Packed,
    Plan,
    conv_mismatch,
    described,
    is_plain,
    missing_attribute,
    norm_mismatch,
)
from fassd_kernels.packing import batch_norm_affine

# Submodules that hold a convolution, a batch norm and a PReLU, in the operator's order.
CONVOLUTIONS = {
    "conv3x3": (3, 3),
    "parallel_conv3x3": (3, 3),
    "parallel_ddconv3x1": (3, 1),
    "parallel_ddconv1x3": (1, 3),
}


class FusedMDA(Fused, MDA):
    """A :class:`fassd.models.MDA` that runs :func:`fassd_kernels.reference.mda` fused.

    Same constructor, ``FusedMDA(nIn, d)``, parameters, state dict and gradients; see :class:`Fused`
    for when it fuses. ``FusedMDA.from_reference(model.mda[0])`` makes one from a module.
    """

    operator = "mda"
    lead = "conv3x3.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        norms = ["bn_relu_1", *(f"{name}.bn_prelu" for name in CONVOLUTIONS), "bn_relu_2"]
        convs = [f"{name}.conv" for name in CONVOLUTIONS]
        names = [f"{norm}.{part}" for norm in norms for part in ("bn", "acti")]
        missing = missing_attribute(module, (*names, *convs, "conv1x1.conv"))
        if missing:
            return missing
        get = module.get_submodule
        vertical = get("parallel_ddconv3x1.conv")
        dilation = vertical.dilation[0] if isinstance(vertical, nn.Conv2d) else 1
        reasons = [conv_mismatch("conv1x1.conv", get("conv1x1.conv"), (1, 1), 1)]
        for name, kernel in CONVOLUTIONS.items():
            d = dilation if "dd" in name else 1
            reasons.append(conv_mismatch(f"{name}.conv", get(f"{name}.conv"), kernel, d))
        for norm in norms:
            reasons.append(norm_mismatch(f"{norm}.bn", get(f"{norm}.bn")))
            if not is_plain(get(f"{norm}.acti"), nn.PReLU):
                reasons.append(f"{norm}.acti is {described(get(f'{norm}.acti'))}; not PReLU")
        if get("conv1x1.conv").bias is not None:
            reasons.append("conv1x1.conv has a bias; expected none")
        return next(filter(None, reasons), "")

    def norms(self) -> list[Any]:
        """The six pairs of batch norm and PReLU, in the operator's order."""
        inner = [getattr(self, name).bn_prelu for name in CONVOLUTIONS]
        return [self.bn_relu_1, *inner, self.bn_relu_2]

    def batch_norms(self) -> Iterator[nn.Module]:
        return (norm.bn for norm in self.norms())

    def convolutions(self) -> list[tuple[Any, Any]]:
        parts = [getattr(self, name) for name in CONVOLUTIONS]
        return [*((part.conv, part.bn_prelu.bn) for part in parts), (self.conv1x1.conv, None)]

    def pack(self, dtype: torch.dtype) -> Packed:
        folded = super().pack(dtype)
        first, last = (batch_norm_affine(norm.bn) for norm in (self.bn_relu_1, self.bn_relu_2))
        return {
            "weights": folded["weights"],
            "scales": [first[0].to(dtype), last[0].to(dtype)],
            "shifts": [first[1].to(dtype), *folded["biases"][:-1], last[1].to(dtype)],
            # A PReLU may have one slope for all channels; the operator needs one for each.
            "slopes": [
                norm.acti.weight.to(dtype).expand(norm.bn.num_features) for norm in self.norms()
            ],
            "dilation": self.parallel_ddconv3x1.conv.dilation[0],
        }

    def plan(self, packed: Packed) -> list[Plan]:
        d = packed["dilation"]
        steps = ((1, 1), (1, 1), (d, 1), (1, d), (1, 1))
        return [(weight, (1, 1), s) for weight, s in zip(packed["weights"], steps, strict=True)]
