"""Whether a kernel's result is right: the reference in float64 decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The `relative_error` of a whole operator; of labels, the share of all pixels.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.uint8: 1e-3}


def exactly(argument: Any) -> Any:
    """Floating tensors, or lists of them, in float64."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return [exactly(x) for x in argument] if isinstance(argument, list | tuple) else argument


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference|| / ||reference||, in float64; not finite where the output is not.

    Of labels, the share that differs; where the reference is the scores that they stand for, of
    the scores of the labels and the highest ones.

    Raises:
        RuntimeError: the shapes differ.
    """
    if not output.is_floating_point() and reference.is_floating_point():
        output, reference = scores_of(output, reference)
    if output.shape != reference.shape:
        raise RuntimeError(
            f"the output has shape {tuple(output.shape)}, expected is {tuple(reference.shape)}"
        )
    if not reference.is_floating_point():
        return float((output != reference).double().mean())
    exact = reference.double()
    return float((output.double() - exact).norm() / exact.norm())


def scores_of(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """What the labelled classes score in `scores` (N, C, H, W), not finite for a class that there
    is not; and what the best ones do. Both are (N, H, W).
    """
    best = scores.amax(1)
    if labels.shape != best.shape:
        return labels, best
    known = labels < scores.shape[1]  # 0 and more: they are argmaxes, or bytes
    chosen = scores.gather(1, (labels * known).long()[:, None])[:, 0]
    return chosen.masked_fill(~known, float("nan")), best
