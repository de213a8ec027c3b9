"""dapf in three launches: the 1x1 branch, all asymmetric branches, the 1x1 that projects.

The branches are adjacent in one scratch image, each padded to whole vectors, which the last
convolution reads as a virtual concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

from fassd_kernels.triton.asymmetric_conv import Branch, plan_asymmetric
from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import Argument, Program, planned


@planned
def dapf(
    program: Program,
    size: Size,
    input: Argument,
    weights: Sequence[Argument],
    biases: Sequence[Argument],
    packed: Sequence[Argument] | None,
    dilations: Sequence[int],
) -> None:
    image = program.image(input)
    kernels, vectors = program.weights(weights, packed), program.vectors(biases)
    out = program.result(size)
    branches = program.side_by_side(size, [weights[0].shape[0]] * (1 + len(dilations)))
    plan_conv(
        program, [image], kernels[0], branches[0], bias=vectors[0], activation="relu",
        label="dapf 1x1",
    )  # fmt: skip
    pairs = [
        Branch(kernels[i], kernels[i + 1], dilation, (vectors[i], vectors[i + 1]))
        for i, dilation in zip(range(1, len(kernels), 2), dilations, strict=False)
    ]
    if pairs:
        plan_asymmetric(program, image, pairs, branches[1:], "relu", "dapf branches")
    plan_conv(
        program, branches, kernels[-1], out, bias=vectors[-1], activation="relu",
        label="dapf project",
    )  # fmt: skip
