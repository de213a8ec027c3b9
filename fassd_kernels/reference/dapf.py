"""The whole DAPF module (dilated asymmetric pyramidal fusion), batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_images,
    check_packed,
    check_positive,
    check_vector,
    check_weight,
    shape,
)
from fassd_kernels.reference.asymmetric_conv import asymmetric_conv
from fassd_kernels.reference.conv_act import conv_act


@follows_autocast
def dapf(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
) -> Tensor:
    """``relu(project(cat(relu(1x1), asymmetric_conv(d) for d in dilations)))``.

    Args:
        input: N x C x H x W image.
        weights: 1x1 of the first branch (M x C x 1 x 1); for each dilation a 3x1 (M x C x 3 x 1)
            and a 1x3 (M x M x 1 x 3); the projecting 1x1 (O x M*(1+len(dilations)) x 1 x 1).
        biases: one vector per weight, in the same order.
        packed: results of :func:`pack_weight` for each weight at its dilation, or None.
        dilations: dilations of the asymmetric branches, each at least 1; (12, 24, 36) in the paper.

    Returns:
        N x O x H x W in the input's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    check_dapf(input, weights, biases, packed, dilations=dilations)
    branches = [conv_act([input], weights[0], biases[0], activation="relu")]
    for i, dilation in enumerate(dilations):
        vertical, horizontal = 1 + 2 * i, 2 + 2 * i
        branch = asymmetric_conv(
            input,
            weights[vertical],
            weights[horizontal],
            biases[vertical],
            biases[horizontal],
            dilation=dilation,
            activation="relu",
        )
        branches.append(branch)
    return conv_act(branches, weights[-1], biases[-1], activation="relu")


def check_dapf(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:
    """Check the arguments of :func:`dapf` and return the shape of its result."""
    op = "dapf"
    check_images(op, [("input", input)])
    check_positive(op, "dilations", dilations)
    count = 2 + 2 * len(dilations)
    for name, tensors in (("weights", weights), ("biases", biases)):
        check(
            len(tensors) == count,
            f"{op}: {name} has {len(tensors)} tensors; "
            f"expected {count} for {len(dilations)} dilations",
        )
    check_packed(op, packed, count, input)
    check(
        weights[0].dim() == 4,
        f"{op}: weights[0] has shape {shape(weights[0])}; "
        "expected four dimensions, O x I x kH x kW",
    )
    width = weights[0].shape[0]
    for i in range(count):
        project = i == count - 1
        vertical = not project and i % 2 == 1
        horizontal = not project and i > 0 and i % 2 == 0
        in_channels = input.shape[1]
        if project:
            in_channels = width * (1 + len(dilations))
        elif horizontal:
            in_channels = width
        kernel = (3, 1) if vertical else (1, 3) if horizontal else (1, 1)
        check_weight(op, f"weights[{i}]", weights[i], in_channels, input, [kernel])
        check(
            project or weights[i].shape[0] == width,
            f"{op}: weights[{i}] has {weights[i].shape[0]} output channels; expected {width}, "
            "as weights[0]",
        )
        check_vector(op, f"biases[{i}]", biases[i], weights[i].shape[0], input)
    return input.shape[0], weights[-1].shape[0], input.shape[2], input.shape[3]
