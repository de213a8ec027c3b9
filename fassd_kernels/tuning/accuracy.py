"""The accuracy of a kernel's result, relative to the reference in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Tolerated `relative_error` of a whole operator; for labels, the share of all pixels.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.uint8: 1e-3}


def exactly(argument: Any) -> Any:
    """Floating tensors, or lists of them, in float64."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return [exactly(x) for x in argument] if isinstance(argument, list | tuple) else argument


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference|| / ||reference||, in float64; not finite if the output is not.

    For labels, the share that differs; if the reference is the scores that they were made from, the
    relative error of the labels' scores to the highest ones.

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
    """The scores of the labelled classes in `scores` (N, C, H, W), not finite for a class that does
    not exist; and the highest scores. Both are (N, H, W).
    """
    best = scores.amax(1)
    if labels.shape != best.shape:
        return labels, best
    known = labels < scores.shape[1]  # not below 0: they are argmaxes, or bytes
    chosen = scores.gather(1, (labels * known).long()[:, None])[:, 0]
    return chosen.masked_fill(~known, float("nan")), best
