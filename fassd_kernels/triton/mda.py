"""mda in four launches: reduce, the square branch, the asymmetric one, and the tail.

The batch norm and PReLU before the first convolution, and those on the branches' sum before the
last, are applied to what the convolutions load: neither result is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.mda import check_mda
from fassd_kernels.triton.asymmetric_conv import Branch, plan_asymmetric
from fassd_kernels.triton.conv_act import Prologue, plan_conv
from fassd_kernels.triton.program import Program, cached, interleave


def mda(
    input: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    slopes: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilation: int,
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.mda`; `padded` as in :mod:`program`."""

    def plan(program: Program) -> None:
        batch, channels, height, rows = check_mda(
            input, weights, scales, shifts, slopes, packed, dilation=dilation
        )
        image = program.image(input)
        kernels, _ = program.weights("mda", weights, packed, [None] * len(weights))
        scale = [program.need(vector) for vector in scales]
        shift = [program.need(vector) for vector in shifts]
        slope = [program.need(vector) for vector in slopes]
        out = program.result((batch, channels, height, rows))
        width = weights[0].shape[0]
        reduced = program.scratch(batch, width, height, rows)
        square = program.scratch(batch, width, height, rows)
        asymmetric = program.scratch(batch, width, height, rows)
        plan_conv(
            program, [image], kernels[0], reduced, bias=shift[1], slope=slope[1],
            activation="prelu", prologue=Prologue(scale[0], shift[0], slope[0]),
            label="mda reduce",
        )  # fmt: skip
        plan_conv(
            program, [reduced], kernels[1], square, bias=shift[2], slope=slope[2],
            activation="prelu", label="mda square",
        )  # fmt: skip
        pair = Branch(kernels[2], kernels[3], dilation, (shift[3], shift[4]), (slope[3], slope[4]))
        plan_asymmetric(program, reduced, [pair], [asymmetric], "prelu", "mda asymmetric")
        plan_conv(
            program, [square], kernels[4], out, residual=image, addend=asymmetric,
            prologue=Prologue(scale[1], shift[5], slope[5]), label="mda tail",
        )  # fmt: skip

    tensors = [input, *interleave(weights, packed), *scales, *shifts, *slopes]
    counts = (len(weights), len(scales), len(shifts), len(slopes), packed is not None)
    return cached("mda", tensors, (dilation, *counts), padded, plan)
