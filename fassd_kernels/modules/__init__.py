"""Drop-in modules that run the fused operators.

Each *is a* module of :mod:`fassd.models`: same constructor, parameters, state dict and gradients.
"""

from fassd_kernels.modules.dapf import FusedDAPF
from fassd_kernels.modules.fused import Fused
from fassd_kernels.modules.mda import FusedMDA

__all__ = ["Fused", "FusedDAPF", "FusedMDA"]
