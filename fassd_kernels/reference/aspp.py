"""The whole ASPP module (atrous spatial pyramid pooling), batch norms folded."""

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
from fassd_kernels.reference.conv_act import conv_act, empty_result


@follows_autocast
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
    size = check_aspp(input, weights, biases, packed, dilations=dilations)
    if input.numel() == 0:
        return empty_result(size, [input, *weights, *biases])
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


def check_aspp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
) -> tuple[int, int, int, int]:
    """Check the arguments of :func:`aspp` and return the shape of its result."""
    op = "aspp"
    check_images(op, [("input", input)])
    check_positive(op, "dilations", dilations)
    count = 3 + len(dilations)
    for name, tensors in (("weights", weights), ("biases", biases)):
        check(
            len(tensors) == count,
            f"{op}: {name} has {len(tensors)} tensors; expected {count}",
        )
    check_packed(op, packed, count, input)
    check(
        weights[0].dim() == 4,
        f"{op}: weights[0] has shape {shape(weights[0])}; "
        "expected four dimensions, O x I x kH x kW",
    )
    width = weights[0].shape[0]
    for i in range(count):
        fuse = i == count - 1
        kernel = (3, 3) if 0 < i <= len(dilations) else (1, 1)
        in_channels = width * (count - 1) if fuse else input.shape[1]
        check_weight(op, f"weights[{i}]", weights[i], in_channels, input, [kernel])
        check(
            fuse or weights[i].shape[0] == width,
            f"{op}: weights[{i}] has {weights[i].shape[0]} output channels; expected {width}, "
            "as weights[0]",
        )
        check_vector(op, f"biases[{i}]", biases[i], weights[i].shape[0], input)
    return input.shape[0], weights[-1].shape[0], input.shape[2], input.shape[3]
