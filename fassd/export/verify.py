"""Comparison of an exported file with the network that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fassd.evaluation.agreement import LABELS_LIMIT, LOGITS_LIMIT, agreement_of
from fassd.export.exported import ExportedNetwork
from fassd.export.network import Pictures, groups
from fassd.models.preprocess import normalize, preprocessing_of
from fassd_kernels.reference.upsample import certainty_levels


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        labels: share of equal labels, for the picture where it is smallest.
        logits: largest difference of a logit over the largest logit, for the picture where it is
            largest; None if the file returns labels.
        pictures: number of pictures that were compared.
        labels_limit, logits_limit: required limits.
        certainty: mean difference of a certainty, 0 to 1, for the picture where it is largest; None
            if the file returns none. It may exceed the permitted share of different labels by a
            hundredth.
    """

    labels: float
    logits: float | None
    pictures: int
    labels_limit: float
    logits_limit: float | None
    certainty: float | None = None

    @property
    def passed(self) -> bool:
        near = self.logits is None or self.logits_limit is None or self.logits <= self.logits_limit
        # Certainties differ where labels or logits may.
        certain = self.certainty is None or self.certainty <= 1.01 - self.labels_limit
        return self.labels >= self.labels_limit and near and certain

    def __str__(self) -> str:
        logits = "" if self.logits is None else f", logits within {self.logits:.1e} of the largest"
        certain = ""
        if self.certainty is not None:
            certain = f", certainties within {100 * self.certainty:.2f}% on average"
        equal = f"{100 * self.labels:.3f}% of labels equal"
        return f"{equal}{logits}{certain} ({self.pictures} pictures)"

    @property
    def asked(self) -> str:
        """The limits, in words."""
        limit = "" if self.logits_limit is None else f" and logits within {self.logits_limit:g}"
        return f"at least {100 * self.labels_limit:g}% of labels equal{limit}"

    def to_json(self) -> dict[str, Any]:
        return {
            "labels_equal": self.labels,
            "max_relative_difference": self.logits,
            "mean_certainty_difference": self.certainty,
            "pictures": self.pictures,
            "labels_limit": self.labels_limit,
            "max_relative_difference_limit": self.logits_limit,
            "passed": self.passed,
        }


def verify(
    exported: ExportedNetwork,
    source: nn.Module,
    pictures: Pictures,
    *,
    labels_limit: float | None = None,
) -> Verification:
    """Compare labels, and logits if there are any, on pictures.

    Args:
        exported: file to verify.
        source: the plain network in float32, on the CPU, in eval mode.
        pictures: (H, W, 3) uint8 RGB, or as many bands, of sizes that the file takes.
        labels_limit: share of labels that have to be equal; by the file's dtype if not given.
    """
    dtype = exported.metadata.dtype
    found, certainties = [], [0.0]
    own = preprocessing_of(source)
    for group in groups(pictures, exported.metadata.batch):
        batch = torch.from_numpy(np.stack([normalize(picture, own) for picture in group]))
        image = torch.from_numpy(np.stack(group)) if exported.takes_pictures else batch
        with torch.inference_mode():
            result, logits = exported.run(image), source(batch)
            if exported.measure is not None:
                measure: Any = exported.measure
                right = certainty_levels(logits, measure, exported.metadata.temperature)
                certainties.append((result[:, 1] - right).abs().mean().item() / 255)
                result = result[:, 0]
            found.append(agreement_of(logits, result))
    differences = [each.relative for each in found if each.relative is not None]
    given = LABELS_LIMIT[dtype] if labels_limit is None else labels_limit
    return Verification(
        min(each.labels for each in found) / 100,
        max(differences) if differences else None,
        len(pictures),
        given,
        LOGITS_LIMIT.get(dtype) if differences else None,
        None if exported.measure is None else max(certainties),
    )
