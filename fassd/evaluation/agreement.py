"""Whether two outputs of a network agree, and the tolerances of every tool that asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

AGREEMENT_LIMIT = 99.0
"""Share of equal labels in per cent below which two candidates do not do the same work, so that
their speeds are not compared."""

DEMO_LIMIT = 99.9
"""Share of equal labels in per cent that `fassd demo` asks for."""

LABELS_LIMIT = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.99, "int8": 0.95}
"""Share of labels that have to be equal, by what an exported file computes in; trained weights."""

LOGITS_LIMIT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest difference of a logit over the largest logit; 8 bits are judged by labels alone."""


@dataclass(frozen=True)
class Agreement:
    """How far one output equals another.

    Attributes:
        labels: pixels whose largest score is the same class, in per cent.
        relative: largest difference of two scores, over the largest reference score; NaN or
            infinite where an output is; None of an output that holds labels alone.
    """

    labels: float
    relative: float | None

    @property
    def comparable(self) -> bool:
        """Whether the two do the same work, so that their speeds may be compared."""
        return self.labels >= AGREEMENT_LIMIT


def equal_labels(reference: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of labels (N, H, W) of any integer type that equal the reference's, in per cent.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != labels.shape:
        raise ValueError(
            f"labels must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    return 100 * (reference == labels.to(reference.device)).double().mean().item()


def agreement_of_scores(reference: torch.Tensor, logits: torch.Tensor) -> Agreement:
    """Compare logits (N, classes, H, W) with the reference's.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != logits.shape:
        raise ValueError(
            f"logits must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(logits.shape)}"
        )
    logits = logits.to(reference.device, reference.dtype)
    largest = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    difference = (logits - reference).abs().max() / largest
    return Agreement(equal_labels(reference.argmax(1), logits.argmax(1)), difference.item())


def agreement_of(reference: torch.Tensor, output: torch.Tensor) -> Agreement:
    """`agreement_of_scores`, of an output that may be labels, uint8 (N, H, W)."""
    if output.dtype == torch.uint8:
        return Agreement(equal_labels(reference.argmax(1).cpu(), output), None)
    return agreement_of_scores(reference, output)
