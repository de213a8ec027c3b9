"""upsample_conv1x1 in two launches: `low` is convolved at its own size, and then enlarged and added
in the epilogue of the convolution of `skip`: neither the upsampled image nor the concatenation is
written."""

from __future__ import annotations

from collections.abc import Sequence

from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import Argument, Program, planned


@planned
def upsample_conv1x1(
    program: Program,
    size: Size,
    low: Sequence[Argument],
    skip: Sequence[Argument],
    weight: Argument,
    bias: Argument | None,
    slope: Argument | None,
    packed: Sequence[Argument] | None,
    activation: str,
) -> None:
    lows, skips = [program.image(x) for x in low], [program.image(x) for x in skip]
    first = sum(x.channels for x in lows)
    packs = packed if packed is not None else (None, None)
    low_weight = program.weight("low", weight, packs[0], 0, first)
    skip_weight = program.weight("skip", weight, packs[1], first)
    biases, slopes = program.vectors([bias, slope])
    out = program.result(size)
    if out.pixels == 0:
        return
    raised = program.scratch(*size[:2], *low[0].shape[2:])
    plan_conv(program, lows, low_weight, raised, label="upsample_conv1x1 low")
    plan_conv(
        program, skips, skip_weight, out, bias=biases, slope=slopes, activation=activation,
        residual=raised, resized=True, label="upsample_conv1x1 skip",
    )  # fmt: skip
