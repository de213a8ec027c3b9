"""The whole DAPF module (dilated asymmetric pyramidal fusion), batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import check_branches, checked
from fassd_kernels.reference.asymmetric_conv import asymmetric_conv
from fassd_kernels.reference.conv_act import conv_act


def check_dapf(input, weights, biases, packed, dilations):
    """Check the arguments of :func:`dapf` and return the shape of its result."""
    kernels = [(1, 1), *[(3, 1), (1, 3)] * len(dilations)]
    return check_branches(
        "dapf", input, weights, biases, packed, dilations, kernels, 1 + len(dilations)
    )


@follows_autocast
@checked(check_dapf)
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
