"""The agreement of two outputs, and the tolerances of all tools that need one.

`Agreement` judges a network's labels and scores; `compare` judges the relative error of the output
of an operator, module or network before its speed counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fassd_kernels.tuning import accuracy

AGREEMENT_LIMIT = 99.0
"""Share of equal labels, in per cent, below which two candidates do not do the same work and their
speeds are not compared."""

EQUAL_LIMIT = 1e-5
"""Largest difference from a float64 score, relative to the largest score, up to which float32
outputs are called equal."""

DEMO_LIMIT = 99.9
"""Share of equal labels, in per cent, that `fassd demo` and networks in float32 must reach."""

LABELS_LIMIT = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.99, "int8": 0.95}
"""Required share of equal labels, by the precision of an exported file; with trained weights."""

LOGITS_LIMIT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest difference of a logit, over the largest logit; 8 bits are judged by labels only."""

TOLERANCES = {
    "modules": {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2},
    # Some fifty convolutions in a row: their rounding errors add up as the square root. A label
    # shows the error only where two scores are nearly equal, hence the smaller tolerance.
    "networks": {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 8e-2},
    # PyTorch interpolates at positions computed in float32: 1.3e-5 at 2048 columns.
    "operators": {"float32": 5e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2},
    # The share of labels that differ. PyTorch rounds upsampled logits to their dtype, and two
    # random logits are then often equal: 5e-4 of eager's labels differ in float16, 4e-3 in
    # bfloat16.
    "labels": {"float32": 1e-3, "tf32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2},
}
"""Largest relative error that counts as a match, by what is computed and in which precision; a
wrong result has an error near 1."""

TIGHT_FLOAT32 = {"operators": accuracy.TOLERANCES[torch.float32], "modules": 4e-6}
"""Tolerance of `pytest benchmarks/`, whose cases are smaller: ours reach 4e-7 and 5.9e-7."""


# --- labels and scores of a network ---------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Agreement of one output with another.

    Attributes:
        labels: share of pixels whose largest score is that of the same class, in per cent.
        relative: largest difference of two scores, over the largest reference score; NaN or
            infinite if an output is; None for an output that holds only labels.
    """

    labels: float
    relative: float | None

    def comparable(self, dtype: str = "float32") -> bool:
        """True if the two do the same work, so that their speeds may be compared.

        Args:
            dtype: precision of the output; in int8, `LABELS_LIMIT` says how many labels may differ.
        """
        return self.labels >= (100 * LABELS_LIMIT[dtype] if dtype == "int8" else AGREEMENT_LIMIT)


def equal_labels(reference: Tensor, labels: Tensor) -> float:
    """Share of labels (N, H, W) of any integer type that equal the reference's, in per cent.

    Args:
        reference: labels (N, H, W), or the scores (N, C, H, W) that they are computed from.
        labels: labels to compare with the reference.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.is_floating_point():
        reference = reference.argmax(1)
    if reference.shape != labels.shape:
        raise ValueError(
            f"labels must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    return 100 * (reference == labels.to(reference.device)).double().mean().item()


def agreement_of(
    reference: Tensor | Sequence[Tensor], output: Tensor | Sequence[Tensor]
) -> Agreement:
    """Compare an output, logits or labels (N, H, W), with the reference's logits (N, C, H, W).

    If a network has several outputs, such as maps at several strides, the one that agrees least
    counts.

    Raises:
        ValueError: the shapes or the numbers of outputs differ, or an output is not a tensor.
    """
    if isinstance(reference, (list, tuple)) and isinstance(output, (list, tuple)):
        if len(reference) != len(output):
            raise ValueError(f"expected {len(reference)} outputs, got {len(output)}")
        found = [agreement_of(*pair) for pair in zip(reference, output, strict=True)]
        differences = [each.relative for each in found if each.relative is not None]
        worst = next((each for each in differences if not isfinite(each)), max(differences))
        return Agreement(min(each.labels for each in found), worst)
    if not (isinstance(reference, Tensor) and isinstance(output, Tensor)):
        kinds = [type(each).__name__ for each in (reference, output)]
        raise ValueError(f"outputs must be tensors, or lists of them; got {' and '.join(kinds)}")
    if output.dtype == torch.uint8:
        return Agreement(equal_labels(reference, output), None)
    if reference.shape != output.shape:
        raise ValueError(
            f"logits must have the reference's shape {tuple(reference.shape)}, "
            f"got {tuple(output.shape)}"
        )
    output = output.to(reference.device, reference.dtype)
    largest = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    difference = (output - reference).abs().max() / largest
    return Agreement(equal_labels(reference, output.argmax(1)), difference.item())


# --- relative error -------------------------------------------------------------------------------


def compare(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], limit: float, record: dict[str, Any]
) -> None:
    """Put the larger relative error, and whether it is a match, into `record`.

    Adds ``rel_error`` (None where it is not finite), ``tolerance`` and ``match``.
    """
    errors = [accuracy.relative_error(*pair) for pair in zip(outputs, expected, strict=True)]
    finite = all(isfinite(error) for error in errors)
    record.update(
        rel_error=max(errors) if finite else None,
        tolerance=limit,
        match=finite and max(errors) <= limit,
    )
