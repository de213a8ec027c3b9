"""hardblock: one launch per layer; no concatenation is written.

Layers of the result write their channels in place. There they begin wherever the channels before
them end, at addresses that do not allow wide loads; so a layer that is read again is written a
second time, to scratch, padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from fassd_kernels.reference.hardblock import is_output, sources_of
from fassd_kernels.triton.conv_act import plan_conv
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import Argument, Image, Program, planned


@planned
def hardblock(
    program: Program,
    size: Size,
    input: Argument,
    weights: Sequence[Argument],
    biases: Sequence[Argument],
    packed: Sequence[Argument] | None,
) -> None:
    batch, _, height, width = size
    layers, written = [program.image(input)], 0
    kernels, vectors = program.weights(weights, packed), program.vectors(biases)
    out = program.result(size)
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
            activation="relu", copy=own if target is not own else None, label=f"hardblock {k}",
        )  # fmt: skip
        layers.append(own or target)
