"""Bilinear resizing, to an image or straight to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.checks import MAX_LABELS, check, check_images, check_size, shape
from fassd_kernels.reference.conv_act import channels_last, empty_result


def upsample(input: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Bilinear resize.

    Args:
        input: N x C x H x W, H and W at least 1.
        size: height and width of the result, each at least 1, larger or smaller than the input's.
        align_corners: whether the centres of the corner pixels lie on each other, or their outer
            edges, as of :func:`torch.nn.functional.interpolate`.

    Returns:
        N x C x size in the input's dtype, channels_last.

    Raises:
        RuntimeError: if a shape or dtype is not as above; the message names the argument.
    """
    result = check_upsample(input, size, align_corners=align_corners)
    if input.shape[0] == 0 or input.shape[1] == 0:
        return empty_result(result, [input])
    mode: dict[str, Any] = {"mode": "bilinear", "align_corners": align_corners}
    return channels_last(F.interpolate(input, tuple(size), **mode))


def upsample_argmax(input: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """The label of the largest channel of :func:`upsample`.

    Args:
        input: N x C x H x W logits, C from 1 to 256, H and W at least 1.
        size: height and width of the label map, each at least 1.
        align_corners: as of :func:`upsample`.

    Returns:
        N x size, uint8. The first of equal channels wins, and NaN counts as the largest, as in
        :func:`torch.argmax`.

    Raises:
        RuntimeError: if a shape or dtype is not as above; the message names the argument.
    """
    check_upsample_argmax(input, size, align_corners=align_corners)
    if input.shape[0] == 0:
        return input.new_empty((0, *size), dtype=torch.uint8)
    return upsample(input, size, align_corners=align_corners).argmax(1).to(torch.uint8)


def check_upsample(
    input: Tensor, size: Sequence[int], op: str = "upsample", *, align_corners: bool = True
) -> tuple[int, int, int, int]:
    """Check the arguments of :func:`upsample` and return the shape of its result."""
    check_images(op, [("input", input)])
    check_size(op, size)
    check(
        input.shape[2] >= 1 and input.shape[3] >= 1,
        f"{op}: input has shape {shape(input)}; expected height and width of at least 1",
    )
    return input.shape[0], input.shape[1], size[0], size[1]


def check_upsample_argmax(
    input: Tensor, size: Sequence[int], *, align_corners: bool = True
) -> tuple[int, int, int]:
    """Check the arguments of :func:`upsample_argmax` and return the shape of its result."""
    op = "upsample_argmax"
    batch, channels, height, width = check_upsample(input, size, op)
    check(
        channels >= 1 and channels <= MAX_LABELS,
        f"{op}: input has {channels} channels; expected 1 to {MAX_LABELS}, labels are uint8",
    )
    return batch, height, width
