"""MDA through one fused operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from fassd.models import MDA
from fassd_kernels.modules.fused import Fused, Packed, Plan
from fassd_kernels.modules.parts import dilation_of, mismatch, reference_of
from fassd_kernels.packing import batch_norm_affine

# Submodules that hold a convolution, a batch norm and a PReLU, in the operator's order.
CONVOLUTIONS = ("conv3x3", "parallel_conv3x3", "parallel_ddconv3x1", "parallel_ddconv1x3")


class FusedMDA(Fused, MDA):
    """A :class:`fassd.models.MDA` that runs :func:`fassd_kernels.reference.mda` fused.

    Same constructor, ``FusedMDA(nIn, d)``, parameters, state dict and gradients; see :class:`Fused`
    for when it fuses. ``FusedMDA.from_reference(model.mda[0])`` makes one from a module.
    """

    operator = "mda"
    lead = "conv3x3.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        dilation = dilation_of(module, "parallel_ddconv3x1.conv")
        why = mismatch(module, reference_of(MDA, 2, dilation))
        bias = not why and cast(Any, module).conv1x1.conv.bias is not None
        return "conv1x1.conv has a bias; expected none" if bias else why

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
