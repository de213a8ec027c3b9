"""The whole ASPP module (atrous spatial pyramid pooling), batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import check_branches, checked
from fassd_kernels.reference.conv_act import conv_act


def check_aspp(input, weights, biases, packed, dilations):
    """Check the arguments of :func:`aspp` and return the shape of its result."""
    kernels = [(1, 1), *[(3, 3)] * len(dilations), (1, 1)]
    return check_branches("aspp", input, weights, biases, packed, dilations, kernels, len(kernels))


@follows_autocast
@checked(check_aspp)
def aspp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
) -> Tensor:
    """``relu(fuse(cat(relu(1x1), relu(3x3 at d) for d in dilations, relu(1x1 of the mean))))``.

    The branch of the mean is one value per picture and channel, repeated at every pixel.

    Args:
        input: N x C x H x W image.
        weights: 1x1 of the first branch (M x C x 1 x 1); for each dilation a 3x3 (M x C x 3 x 3);
            1x1 of the means (M x C x 1 x 1); the fusing 1x1 (O x M*(2+len(dilations)) x 1 x 1).
        biases: one vector per weight, in the same order.
        packed: results of :func:`pack_weight` for each weight at its dilation (for the last one,
            only its channels without those of the means), or None.
        dilations: dilations of the 3x3 convolutions, each at least 1.

    Returns:
        N x O x H x W in the input's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    branches = [conv_act([input], weights[0], biases[0], activation="relu")]
    for i, dilation in enumerate(dilations, start=1):
        branch = conv_act(
            [input], weights[i], biases[i], dilation=(dilation, dilation), activation="relu"
        )
        branches.append(branch)
    mean = input.mean((2, 3), keepdim=True)
    pooled = conv_act([mean], weights[-2], biases[-2], activation="relu")
    branches.append(pooled.expand(-1, -1, *input.shape[2:]))
    return conv_act(branches, weights[-1], biases[-1], activation="relu")
