"""The definition of every operator, in plain PyTorch.

Every backend equals these functions on every shape, dtype and memory layout, within rounding
(float64 runs of these functions decide). They are differentiable by ordinary autograd, run on any
device, and are used where no compiled backend is available.

Images are N x C x H x W; weights O x I x kH x kW; padding is always "same" (``dilation * (k // 2)``
on each side of an axis of kernel size k), so that a stride of 1 keeps the size. Results
are laid out channels_last, whatever the layout of the inputs.
"""

from fassd_kernels.reference.aspp import aspp
from fassd_kernels.reference.asymmetric_conv import asymmetric_conv
from fassd_kernels.reference.conv_act import conv_act
from fassd_kernels.reference.dapf import dapf
from fassd_kernels.reference.grouped_conv import grouped_conv_act
from fassd_kernels.reference.hardblock import hardblock
from fassd_kernels.reference.max_pool import max_pool
from fassd_kernels.reference.mda import mda
from fassd_kernels.reference.normalize import normalize
from fassd_kernels.reference.normalize_conv_act import normalize_conv_act
from fassd_kernels.reference.pack_weight import pack_weight
from fassd_kernels.reference.upsample import upsample, upsample_argmax, upsample_confidence
from fassd_kernels.reference.upsample_conv1x1 import upsample_conv1x1

__all__ = [
    "aspp",
    "asymmetric_conv",
    "conv_act",
    "dapf",
    "grouped_conv_act",
    "hardblock",
    "max_pool",
    "mda",
    "normalize",
    "normalize_conv_act",
    "pack_weight",
    "upsample",
    "upsample_argmax",
    "upsample_confidence",
    "upsample_conv1x1",
]
