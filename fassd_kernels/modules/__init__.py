"""Drop-in modules that run the fused operators.

Each is a subclass of a module of :mod:`fassd.models`: same constructor, parameters, state dict and
gradients.
"""

from fassd_kernels.modules.aspp import FusedASPP
from fassd_kernels.modules.asymmetric_conv import FusedAsymmetricConv2d
from fassd_kernels.modules.conv import FusedConv2d, FusedConvLayer
from fassd_kernels.modules.dapf import FusedDAPF
from fassd_kernels.modules.fused import Fused
from fassd_kernels.modules.hardblock import FusedHarDBlock
from fassd_kernels.modules.mda import FusedMDA
from fassd_kernels.modules.network import FusedNetwork

__all__ = [
    "Fused",
    "FusedASPP",
    "FusedAsymmetricConv2d",
    "FusedConv2d",
    "FusedConvLayer",
    "FusedDAPF",
    "FusedHarDBlock",
    "FusedMDA",
    "FusedNetwork",
]
