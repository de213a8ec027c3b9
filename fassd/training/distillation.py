"""A trained network, usually larger, whose probabilities are learnt along with the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fassd.io.palette import IGNORE, labels_by_name
from fassd.models import load
from fassd.models.layers import logits_of
from fassd.models.preprocess import OURS, Preprocessing, preprocessing_of
from fassd_kernels.accelerate import swap


class Teacher:
    """The network in a file of `fassd train`, which is not trained further.

    Args:
        file: path of its weights.
        class_names: names of the student's classes; the teacher has the same ones in any order.
        device: device on which it runs.
        fused: True runs it on fused kernels.
        preprocessing: normalisation of the student's pictures, converted to the teacher's.

    Raises:
        ValueError: the classes differ, or the file cannot be read as a network; the message names
            it.
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        file: str,
        class_names: Sequence[str],
        device: torch.device,
        fused: bool,
        preprocessing: Preprocessing = OURS,
    ) -> None:
        network = load(file).to(device)
        try:
            places = labels_by_name(network, class_names)
        except ValueError as error:
            raise ValueError(f"teacher {file}: {error}") from error
        self.pictures = preprocessing, preprocessing_of(network)
        self.network = swap(network, "auto", {}) if fused else network
        self.order = None if places is None else np.argsort(places).tolist()

    def per_picture(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean divergence of each picture's labelled pixels from the teacher's probabilities, (N,).

        The Kullback-Leibler divergence of Hinton et al., "Distilling the Knowledge in a Neural
        Network", 2015, at temperature 1; 0 for a picture without a labelled pixel.

        Args:
            images: (N, 3, H, W), normalised for the student.
            logits: the student's logits, (N, C, H, W).
            labels: (N, H, W) integers, `IGNORE` where a pixel has no label.
        """
        with torch.no_grad():
            target = logits_of(self.network(renormalized(images, *self.pictures)))
        if self.order is not None:
            target = target[:, self.order]
        counted = labels != IGNORE
        losses = []
        for *pair, where in zip(logits, target, counted, strict=True):
            rows = (part.movedim(0, -1)[where] for part in pair)
            found, wanted = (row.log_softmax(1, dtype=torch.float32) for row in rows)
            total = F.kl_div(found, wanted, reduction="sum", log_target=True)
            losses.append(total / max(1, len(found)))
        return torch.stack(losses)


def renormalized(images: Tensor, own: Preprocessing, other: Preprocessing) -> Tensor:
    """Convert pictures, (N, 3, H, W), to another normalisation, if it differs."""
    if own == other:
        return images
    mean, std, new_mean, new_std = (
        images.new_tensor(values)[:, None, None]
        for values in (own.mean, own.std, other.mean, other.std)
    )
    colors = images * std + mean
    return ((colors if own.channels == other.channels else colors.flip(1)) - new_mean) / new_std
