"""Fused kernels for the FASSD-Net family, behind drop-in modules.

>>> import fassd, fassd_kernels
>>> model = fassd.create_model("fassd_net").eval()
>>> fast = fassd_kernels.accelerate(model)  # same numbers, fused kernels
>>> print(fassd_kernels.backends())  # the available backends, and why others are not
"""

from fassd_kernels import ops
from fassd_kernels.accelerate import accelerate
from fassd_kernels.backends import Backend, BackendError, backends
from fassd_kernels.modules import (
    FusedASPP,
    FusedAsymmetricConv2d,
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
    FusedNetwork,
)
from fassd_kernels.modules.freeze import freeze
from fassd_kernels.ops import held_memory, release_memory
from fassd_kernels.runtime.graph import GraphRunner
from fassd_kernels.runtime.stream import Runner, Speed

__all__ = [
    "Backend",
    "BackendError",
    "FusedASPP",
    "FusedAsymmetricConv2d",
    "FusedConvLayer",
    "FusedDAPF",
    "FusedHarDBlock",
    "FusedMDA",
    "FusedNetwork",
    "GraphRunner",
    "Runner",
    "Speed",
    "accelerate",
    "backends",
    "freeze",
    "held_memory",
    "ops",
    "release_memory",
]
