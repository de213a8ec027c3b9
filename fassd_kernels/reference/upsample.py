"""Bilinear resizing, to an image, or directly to labels and their certainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.checks import MAX_LABELS, check, check_images, check_size, checked, shape
from fassd_kernels.reference.conv_act import channels_last

Measure = Literal["probability", "margin", "entropy"]
"""Measure of a label's certainty, from the probabilities of its pixel."""


def check_upsample(input, size, align_corners):
    """Check the arguments of :func:`upsample` and return the shape of its result."""
    return check_resize("upsample", input, size)


def check_resize(op: str, input: Tensor, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Check an image and the size that it is given, and return the shape of the result."""
    check_images(op, [("input", input)])
    check_size(op, size)
    check(
        input.shape[2] >= 1 and input.shape[3] >= 1,
        f"{op}: input has shape {shape(input)}; expected height and width of at least 1",
    )
    return input.shape[0], input.shape[1], size[0], size[1]


@checked(check_upsample)
def upsample(input: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Bilinear resize.

    Args:
        input: N x C x H x W image, H and W at least 1.
        size: height and width of the result, each at least 1, larger or smaller than the input's.
        align_corners: True aligns the centres of the corner pixels, False their outer edges, as in
            :func:`torch.nn.functional.interpolate`.

    Returns:
        N x C x size in the input's dtype, channels_last.

    Raises:
        RuntimeError: a shape or dtype is not as described above; the message names the argument.
    """
    mode: dict[str, Any] = {"mode": "bilinear", "align_corners": align_corners}
    return channels_last(F.interpolate(input, tuple(size), **mode))


def check_labels(op: str, input: Tensor, size: Sequence[int]) -> tuple[int, int, int]:
    """Check logits that labels are made from, and return the labels' shape."""
    batch, channels, height, width = check_resize(op, input, size)
    check(
        channels >= 1 and channels <= MAX_LABELS,
        f"{op}: input has {channels} channels; expected 1 to {MAX_LABELS}, labels are uint8",
    )
    return batch, height, width


def check_upsample_argmax(input, size, align_corners):
    """Check the arguments of :func:`upsample_argmax` and return the shape of its result."""
    return check_labels("upsample_argmax", input, size)


@checked(check_upsample_argmax, differentiable=False)
def upsample_argmax(input: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """The label of the largest channel of :func:`upsample`.

    Args:
        input: N x C x H x W logits, C from 1 to 256, H and W at least 1.
        size: height and width of the label map, each at least 1.
        align_corners: alignment, as in :func:`upsample`.

    Returns:
        N x size, uint8. The first of equal channels wins, and NaN counts as the largest, as in
        :func:`torch.argmax`.

    Raises:
        RuntimeError: a shape or dtype is not as described above; the message names the argument.
    """
    if input.shape[0] == 0:
        return input.new_empty((0, *size), dtype=torch.uint8)
    return upsample(input, size, align_corners=align_corners).argmax(1).to(torch.uint8)


def check_upsample_confidence(input, size, measure, temperature, align_corners):
    """Check the arguments of :func:`upsample_confidence` and return the shape of its result."""
    op = "upsample_confidence"
    batch, height, width = check_labels(op, input, size)
    check(
        measure in get_args(Measure),
        f"{op}: measure is '{measure}'; expected one of {', '.join(get_args(Measure))}",
    )
    check(
        0 < temperature < math.inf,
        f"{op}: temperature is {temperature:g}; expected a finite number above 0",
    )
    return batch, 2, height, width


@checked(check_upsample_confidence, differentiable=False)
def upsample_confidence(
    input: Tensor,
    size: Sequence[int],
    *,
    measure: Measure = "margin",
    temperature: float = 1.0,
    align_corners: bool = True,
) -> Tensor:
    """The label of :func:`upsample_argmax`, and its certainty.

    Probabilities are the softmax of the logits over the temperature (Guo et al., *On calibration of
    modern neural networks*, 2017, equation 9). The certainty, from 0 to 1, is the largest of them
    (``probability``), its distance to the second largest (``margin``), or 1 minus the entropy over
    that of equal probabilities (``entropy``; 1 if there is one class).

    Args:
        input: N x C x H x W logits, C from 1 to 256, H and W at least 1.
        size: height and width of the result, each at least 1.
        measure: measure of certainty: ``probability``, ``margin`` or ``entropy``.
        temperature: divisor of the logits, above 0, finite.
        align_corners: alignment, as in :func:`upsample`.

    Returns:
        N x 2 x size, uint8, contiguous: the labels, and 255 times the certainty, rounded. If the
        largest logit is not finite, the certainty is 0.

    Raises:
        RuntimeError: an argument is not as described above; the message names it.
    """
    if input.shape[0] == 0:
        return input.new_empty((0, 2, *size), dtype=torch.uint8)
    logits = upsample(input, size, align_corners=align_corners)
    return confident_labels(logits, measure, temperature)


def confident_labels(logits: Tensor, measure: Measure, temperature: float = 1.0) -> Tensor:
    """Logits (N, C, H, W) to the labels and certainties of :func:`upsample_confidence`."""
    levels = certainty_levels(logits, measure, temperature)
    return torch.stack([logits.argmax(1), levels], 1).to(torch.uint8)


def certainty_levels(logits: Tensor, measure: Measure, temperature: float = 1.0) -> Tensor:
    """Logits (N, C, H, W) to 255 times the certainty, rounded, (N, H, W) floating."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    # The largest is subtracted first, so that dividing by very little gives a finite value or -inf.
    below = (logits - logits.amax(1, keepdim=True)) / min(max(temperature, 1e-30), 1e30)
    certainty = certainty_of(torch.softmax(below, 1), measure)
    return (255 * torch.nan_to_num(certainty, 0.0) + 0.5).floor()


def certainty_of(probabilities: Tensor, measure: Measure) -> Tensor:
    """Probabilities (N, C, ...) to a measure of certainty in [0, 1], (N, ...)."""
    classes = probabilities.shape[1]
    if measure == "entropy":
        entropy = torch.special.entr(probabilities).sum(1)
        return (1 - entropy / math.log(max(classes, 2))).clamp(0, 1)
    if measure == "probability" or classes == 1:
        return probabilities.amax(1)
    first, second = probabilities.topk(2, 1).values.unbind(1)
    return first - second
