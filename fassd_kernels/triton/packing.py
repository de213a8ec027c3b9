"""Weights in the order in which the kernels read them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.checks import check_place

OUT_CHANNELS = 16  # rows of weights are padded to multiples of it: vectors, least width of a dot


def pack(weight: Tensor) -> Tensor:
    """O x I x kH x kW to [kH * kW][I][O rounded up], one dimension, zeros behind the last O.

    Rows of one input channel, with adjacent output channels: any chunk of input channels is a block
    of whole rows, wherever an input of the virtual concatenation begins. At the end
    follow as many zeros as pad a row, so that the length gives the number of output channels.
    """
    padding = -weight.shape[0] % OUT_CHANNELS
    rows = F.pad(weight.detach().permute(2, 3, 1, 0), (0, padding))
    return F.pad(rows.flatten(), (0, padding))


def packed_elements(weight: Tensor) -> int:
    """Number of elements in the result of :func:`pack`."""
    padding = -weight.shape[0] % OUT_CHANNELS
    return math.prod(weight.shape[1:]) * (weight.shape[0] + padding) + padding


def check_packed_weight(op: str, name: str, weight: Tensor, packed: Tensor | None) -> None:
    """Refuse a tensor that :func:`pack` did not make from such a weight.

    Raises:
        RuntimeError: the message says what came and what is expected.
    """
    if packed is None or packed.numel() == 0:
        return
    check_place(op, "packed", packed, weight)
    expected = packed_elements(weight)
    torch._check(
        packed.dim() == 1
        and packed.numel() == expected
        and packed.dtype == weight.dtype
        and packed.device == weight.device
        and packed.is_contiguous(),
        lambda: (
            f"{op}: packed weights of {name} are not what pack_weight gives: {tuple(packed.shape)} "
            f"of {packed.dtype} on {packed.device}; expected ({expected},) of {weight.dtype} on "
            f"{weight.device}"
        ),
    )
