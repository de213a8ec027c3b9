"""hardblock: one launch per layer; no concatenation is written.

Layers of the result write their channels of it in place. There they begin wherever the channels
before them end, at addresses that no wide load can take; so what another layer reads again is
written a second time, in scratch, padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.hardblock import check_hardblock, is_output, sources_of
from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.program import Image, Program, cached, interleave


def hardblock(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.hardblock`; `padded` as in :mod:`program`."""

    def plan(program: Program) -> None:
        size = check_hardblock(input, weights, biases, packed)
        batch, _, height, width = size
        image = program.image(input)
        kernels, vectors = program.weights("hardblock", weights, packed, biases)
        out = program.result(size)
        layers, written = [image], 0
        for k, (kernel, bias) in enumerate(zip(kernels, vectors, strict=True), start=1):
            last = k == len(weights)
            own = None if last else program.scratch(batch, kernel.out_channels, height, width)
            target: Image | None = own
            if is_output(k, len(weights)):
                target = out.part(written, kernel.out_channels)
                written += kernel.out_channels
            assert target is not None
            plan_conv(
                program, [layers[i] for i in sources_of(k)], kernel, target, bias=bias,
                activation="relu", copy=own if target is not own else None,
                label=f"hardblock {k}",
            )  # fmt: skip
            layers.append(own or target)

    tensors = [input, *interleave(weights, packed, biases)]
    settings = (len(weights), len(biases), packed is not None)
    return cached("hardblock", tensors, settings, padded, plan)
