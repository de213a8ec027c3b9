"""The harmonic dense block, batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_images,
    check_packed,
    check_vector,
    check_weight,
    checked,
)
from fassd_kernels.reference.conv_act import channels_last, conv_act


def check_hardblock(input, weights, biases, packed):
    """Check the arguments of :func:`hardblock` and return the shape of its result."""
    op = "hardblock"
    check_images(op, [("input", input)])
    check(len(weights) > 0, f"{op}: weights is an empty list; expected at least one tensor")
    check(
        len(biases) == len(weights),
        f"{op}: biases has {len(biases)} tensors; expected {len(weights)}",
    )
    check_packed(op, packed, len(weights), input)
    widths, channels = [input.shape[1]], 0
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        in_channels = sum(widths[source] for source in sources_of(k))
        check_weight(op, f"weights[{k - 1}]", weight, in_channels, input, [(3, 3)])
        check_vector(op, f"biases[{k - 1}]", bias, weight.shape[0], input)
        widths.append(weight.shape[0])
        channels += weight.shape[0] if is_output(k, len(weights)) else 0
    return input.shape[0], channels, input.shape[2], input.shape[3]


@follows_autocast
@checked(check_hardblock)
def hardblock(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
) -> Tensor:
    """3x3 convolutions with ReLU; layer k (from 1) reads the layers k - 2^n where 2^n divides k.

    Layer 0 is the input. No other backend writes the concatenations: layers of the result write
    their channels in place, and are read there.

    Args:
        input: N x C x H x W image.
        weights: weight of each layer, O_k x (sum of the channels of its inputs) x 3 x 3.
        biases: vector of O_k values for each layer.
        packed: results of :func:`pack_weight` for each weight, or None.

    Returns:
        N x (sum of O_k over the odd layers and the last) x H x W: these layers concatenated, in the
        input's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    outputs = [input]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        sources = [outputs[source] for source in sources_of(k)]
        outputs.append(conv_act(sources, weight, bias, activation="relu"))
    result = [outputs[k] for k in range(1, len(outputs)) if is_output(k, len(weights))]
    return channels_last(torch.cat(result, 1))


def sources_of(layer: int) -> list[int]:
    """Layers that a layer (from 1) reads, in the order of their concatenation; 0 is the input."""
    return [layer - (1 << n) for n in range(layer.bit_length()) if layer % (1 << n) == 0]


def is_output(layer: int, layers: int) -> bool:
    """True if a layer (from 1) is part of the result of a block with `layers` layers."""
    return layer % 2 == 1 or layer == layers
