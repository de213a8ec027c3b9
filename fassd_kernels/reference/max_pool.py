"""The largest values of windows of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.checks import check, check_images, check_positive, checked, shape
from fassd_kernels.reference.conv_act import channels_last, pair


def check_max_pool(input, kernel, stride, padding):
    """Check the arguments of :func:`max_pool` and return the shape of its result."""
    op = "max_pool"
    check_images(op, [("input", input)])
    check(
        input.shape[2] >= 1 and input.shape[3] >= 1,
        f"{op}: input has shape {shape(input)}; expected height and width of at least 1",
    )
    sides, steps = pair("kernel", kernel, op), pair("stride", stride, op)
    around = pair("padding", padding, op)
    check_positive(op, "kernel", sides)
    check_positive(op, "stride", steps)
    check(
        all(0 <= p <= k // 2 for p, k in zip(around, sides, strict=True)),
        f"{op}: padding is {list(around)}; expected at least 0, at most half of kernel, "
        f"{list(sides)}",
    )
    room = [input.shape[2 + axis] + 2 * around[axis] - sides[axis] for axis in (0, 1)]
    check(
        room[0] >= 0 and room[1] >= 0,
        f"{op}: kernel is {list(sides)}; expected at most the padded input, whose shape is "
        f"{shape(input)}",
    )
    height, width = (left // step + 1 for left, step in zip(room, steps, strict=True))
    return input.shape[0], input.shape[1], height, width


@checked(check_max_pool)
def max_pool(
    input: Tensor, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """``F.max_pool2d(input, kernel, stride, padding)``; NaN counts as the largest value.

    Args:
        input: N x C x H x W image, H and W at least 1.
        kernel: height and width of a window, not larger than the padded input.
        stride: vertical and horizontal step, each at least 1.
        padding: rows and columns around the input that do not count, at most half of `kernel`.

    Returns:
        N x C x H' x W' in the input's dtype, H' = floor((H + 2 padding - kernel) / stride) + 1,
        channels_last.

    Raises:
        RuntimeError: an argument is not as described above; the message names it.
    """
    sides, steps = pair("kernel", kernel), pair("stride", stride)
    return channels_last(F.max_pool2d(input, sides, steps, pair("padding", padding)))
