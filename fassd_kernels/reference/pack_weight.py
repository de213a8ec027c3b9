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
    """Lay out a weight as the backend's kernels read it: the `packed` of the other operators.

    Its content is up to the backend; the C++ one blocks weights and transforms those of 3x3
    kernels. It is valid for this weight, stride and dilation. The C++ one may be stored: read with
    another instruction set, or by another version of its layout, it is packed anew in each call.

    Args:
        weight: O x I x kH x kW weight, with a 3x3, 3x1, 1x3 or 1x1 kernel.
        stride, dilation: stride and dilation of the convolution that uses it.

    Returns:
        A tensor of one dimension; empty if the backend needs none, as here.

    Raises:
        RuntimeError: the weight, stride or dilation is not as described above.
    """
    return weight.new_empty(0)
