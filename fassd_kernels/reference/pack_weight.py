"""Weights in a backend's own order, made once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.checks import FLOATING, check, check_positive, check_weight, checked
from fassd_kernels.reference.conv_act import KERNELS, pair


def check_pack_weight(weight, stride, dilation):
    """Check the arguments of :func:`pack_weight`; the shape of its result is the backend's own."""
    op = "pack_weight"
    check(
        weight.dtype in FLOATING,
        f"{op}: weight has dtype {weight.dtype}; expected float32, float16, bfloat16 or float64",
    )
    channels = weight.shape[1] if weight.dim() == 4 else 1
    check_weight(op, "weight", weight, channels, weight, KERNELS)
    for name, values in (("stride", stride), ("dilation", dilation)):
        check_positive(op, name, pair(name, values, op))
    return ()


@checked(check_pack_weight, differentiable=False)
def pack_weight(
    weight: Tensor, *, stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1)
) -> Tensor:
    """What the other operators take as `packed`: a weight as the backend's kernels read it.

    Its content is the backend's own affair; the C++ one blocks and, for 3x3 kernels, transforms
    it. It serves for this weight, stride and dilation. The C++ one may be stored: where another
    instruction set, or another version of its layout, reads it, each call packs anew.

    Args:
        weight: O x I x kH x kW, the kernel 3x3, 3x1, 1x3 or 1x1.
        stride, dilation: of the convolution that it is for.

    Returns:
        A tensor of one dimension; empty where, as here, the backend has no use for one.

    Raises:
        RuntimeError: if the weight, stride or dilation is not as above.
    """
    return weight.new_empty(0)
