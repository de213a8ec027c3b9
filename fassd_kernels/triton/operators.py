"""The operators that this backend implements, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fassd_kernels.reference.pack_weight import check_pack_weight
from fassd_kernels.triton.aspp import aspp
from fassd_kernels.triton.asymmetric_conv import asymmetric_conv
from fassd_kernels.triton.conv_act import conv_act
from fassd_kernels.triton.dapf import dapf
from fassd_kernels.triton.hardblock import hardblock
from fassd_kernels.triton.mda import mda
from fassd_kernels.triton.normalize import normalize
from fassd_kernels.triton.normalize_conv_act import normalize_conv_act
from fassd_kernels.triton.packing import pack
from fassd_kernels.triton.upsample import upsample, upsample_argmax
from fassd_kernels.triton.upsample_conv1x1 import upsample_conv1x1


def pack_weight(
    weight: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.pack_weight`: one order for every stride and dilation."""
    check_pack_weight(weight, stride=stride, dilation=dilation)
    return pack(weight)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        conv_act,
        asymmetric_conv,
        dapf,
        aspp,
        hardblock,
        mda,
        upsample_conv1x1,
        pack_weight,
        upsample,
        upsample_argmax,
        normalize,
        normalize_conv_act,
    )
}
