"""Arithmetic of training: precision on a device, gradients to avoid there, determinism."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ONEDNN_BLOCK = 16  # channels


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" on a device: bfloat16 if it has such arithmetic, else float32.

    A CPU without bfloat16 arithmetic converts back and forth: FASSD-Net takes a minute per frame.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bfloat16" if fast else "float32"
    return "float32"


def avoid_unsound_gradients(model: nn.Module, device: torch.device, precision: str) -> None:
    """Run convolutions of odd widths in NCHW where oneDNN's gradient is wrong.

    On a CPU in bfloat16 and channels_last, the weight gradient of a dilated convolution whose
    channels are not a multiple of 16 reads uninitialised memory (PyTorch 2.13; seen with
    MALLOC_PERTURB_: up to half of the values). MDA's 3x1 and 1x3 are such convolutions. The weight
    gradient of a strided 1x1 with such inputs, as in RepVGG's stem, writes out of bounds, in
    float32 too (seen with MALLOC_CHECK_). NCHW is sound, and everything else stays channels_last:
    all of FASSD-Net in NCHW takes 1.15 to 1.3 times as long.
    """
    if device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_unsound(module, precision):
            module.weight.data = module.weight.data.contiguous()
            module.register_forward_pre_hook(_in_nchw)


def _is_unsound(module: nn.Conv2d, precision: str) -> bool:
    odd = module.in_channels % ONEDNN_BLOCK != 0
    if module.kernel_size == (1, 1):
        return odd and max(module.stride) > 1
    odd = odd or module.out_channels % ONEDNN_BLOCK != 0
    return odd and max(module.dilation) > 1 and precision == "bfloat16"


def _in_nchw(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    (x,) = inputs
    return (x.contiguous(),)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use PyTorch's deterministic algorithms inside the block, if `wanted`."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        # cuBLAS requires this before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]
