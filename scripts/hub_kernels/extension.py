"""The extension that kernel-builder has made, under the name that this package asks for.

It holds both ``_C`` and, where it was built for CUDA, ``_C_cuda``.
"""

import sys
from types import ModuleType

import torch

from . import _ops

if __name__.endswith("_C_cuda") and not torch._C._dispatch_has_kernel_for_dispatch_key(
    "fassd_kernels_cuda::conv_act", "CUDA"
):
    raise ImportError("this variant was built without CUDA")

sys.modules[__name__] = next(
    value
    for value in vars(_ops).values()
    if isinstance(value, ModuleType) and value.__name__.startswith(f"{__package__}.")
)
