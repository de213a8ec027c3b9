"""upsample_conv1x1 in two launches: `low` is convolved at its own size, then, in the epilogue of
the convolution of `skip`, enlarged and added: neither the upsampled image nor the concatenation is
written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.upsample_conv1x1 import check_upsample_conv1x1
from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.packing import check_packed_weight
from fassd_kernels.triton.program import Program, cached


def upsample_conv1x1(
    low: Sequence[Tensor],
    skip: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    packed: Sequence[Tensor] | None = None,
    *,
    activation: str = "none",
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.upsample_conv1x1`; `padded` as in :mod:`program`."""
    packs: Sequence[Tensor | None] = (None, None)
    if packed is not None and len(packed) == 2:  # of another number, the check below tells
        packs = packed

    def plan(program: Program) -> None:
        size = check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation=activation)
        lows = [program.image(x) for x in low]
        skips = [program.image(x) for x in skip]
        first = sum(x.shape[1] for x in low)
        parts = (weight[:, :first], weight[:, first:])
        for name, part, given in zip(("low", "skip"), parts, packs, strict=True):
            check_packed_weight("upsample_conv1x1", name, part, given)
        low_weight = program.weight(weight, packs[0], 0, first)
        skip_weight = program.weight(weight, packs[1], first)
        biases, slopes = program.vector(bias), program.vector(slope)
        out = program.result(size)
        if out.pixels == 0:
            return
        batch, channels = size[:2]
        raised = program.scratch(batch, channels, *low[0].shape[2:])
        plan_conv(program, lows, low_weight, raised, label="upsample_conv1x1 low")
        plan_conv(
            program, skips, skip_weight, out, bias=biases, slope=slopes, activation=activation,
            residual=raised, resized=True, label="upsample_conv1x1 skip",
        )  # fmt: skip

    tensors = [*low, *skip, weight, packs[0], weight, packs[1], bias, slope]
    settings = (len(low), len(skip), activation, None if packed is None else len(packed))
    return cached("upsample_conv1x1", tensors, settings, padded, plan)
