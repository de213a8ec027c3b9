"""Arithmetic of training: what a device computes in, what to avoid there, how it repeats."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ONEDNN_BLOCK = 16  # channels


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bfloat16 where it computes in that, else float32.

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
    """Let convolutions of odd widths run in NCHW where oneDNN's gradient is wrong.

    On a CPU in bfloat16 and channels_last, the weight gradient of a dilated convolution whose
    channels are no multiple of 16 reads memory that nobody wrote (PyTorch 2.13; seen with
    MALLOC_PERTURB_: up to half of the values). MDA's 3x1 and 1x3 are such. That of a strided 1x1 of
    such inputs, as in RepVGG's stem, writes beyond its memory, in float32 too (seen with
    MALLOC_CHECK_). NCHW is sound, and everything else stays channels_last: all of FASSD-Net in NCHW
    takes 1.15 to 1.3 times as long.
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
    """PyTorch's deterministic algorithms inside the block, if they are wanted."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        # cuBLAS asks for it before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]
