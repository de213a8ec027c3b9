"""dapf in three launches: the 1x1 branch, all asymmetric branches, the 1x1 that projects.

The branches lie side by side in one scratch image, each padded to whole vectors, which the last
convolution reads as a virtual concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.dapf import check_dapf
from fassd_kernels.triton.asymmetric_conv import Branch, plan_asymmetric
from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.program import Program, cached, interleave


def dapf(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.dapf`; `padded` as in :mod:`program`."""

    def plan(program: Program) -> None:
        size = check_dapf(input, weights, biases, packed, dilations=dilations)
        image = program.image(input)
        kernels, vectors = program.weights("dapf", weights, packed, biases)
        out = program.result(size)
        width = weights[0].shape[0]
        branches = program.side_by_side(size, [width] * (1 + len(dilations)))
        plan_conv(
            program, [image], kernels[0], branches[0], bias=vectors[0], activation="relu",
            label="dapf 1x1",
        )  # fmt: skip
        if dilations:
            pairs = [
                Branch(
                    kernels[1 + 2 * i],
                    kernels[2 + 2 * i],
                    dilation,
                    (vectors[1 + 2 * i], vectors[2 + 2 * i]),
                )
                for i, dilation in enumerate(dilations)
            ]
            plan_asymmetric(program, image, pairs, branches[1:], "relu", "dapf branches")
        plan_conv(
            program, branches, kernels[-1], out, bias=vectors[-1], activation="relu",
            label="dapf project",
        )  # fmt: skip

    tensors = [input, *interleave(weights, packed, biases)]
    settings = (len(weights), packed is not None, tuple(dilations))
    return cached("dapf", tensors, settings, padded, plan)
