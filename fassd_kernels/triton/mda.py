"""mda in four launches: reduce, the square branch, the asymmetric one, and the tail.

The batch norm and PReLU before the first convolution, and those on the branches' sum before the
last, are applied when the convolutions load their inputs: neither result is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from fassd_kernels.triton.asymmetric_conv import Branch, plan_asymmetric
from fassd_kernels.triton.conv_act import Prologue, plan_conv
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import Argument, Program, planned


@planned
def mda(
    program: Program,
    size: Size,
    input: Argument,
    weights: Sequence[Argument],
    scales: Sequence[Argument],
    shifts: Sequence[Argument],
    slopes: Sequence[Argument],
    packed: Sequence[Argument] | None,
    dilation: int,
) -> None:
    batch, _, height, rows = size
    image = program.image(input)
    kernels = program.weights(weights, packed)
    scale, shift, slope = map(program.vectors, (scales, shifts, slopes))
    out = program.result(size)
    width = weights[0].shape[0]
    reduced, square, asymmetric = (program.scratch(batch, width, height, rows) for _ in range(3))
    plan_conv(
        program, [image], kernels[0], reduced, bias=shift[1], slope=slope[1], activation="prelu",
        prologue=Prologue(scale[0], shift[0], slope[0]), label="mda reduce",
    )  # fmt: skip
    plan_conv(
        program, [reduced], kernels[1], square, bias=shift[2], slope=slope[2], activation="prelu",
        label="mda square",
    )  # fmt: skip
    pair = Branch(kernels[2], kernels[3], dilation, (shift[3], shift[4]), (slope[3], slope[4]))
    plan_asymmetric(program, reduced, [pair], [asymmetric], "prelu", "mda asymmetric")
    plan_conv(
        program, [square], kernels[4], out, residual=image, addend=asymmetric,
        prologue=Prologue(scale[1], shift[5], slope[5]), label="mda tail",
    )  # fmt: skip
