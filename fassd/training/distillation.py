"""A trained network, larger as a rule, whose probabilities another one learns beside the labels."""

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
    """The network in a file of `fassd train`; it does not learn.

    Args:
        file: its weights.
        class_names: those of the network that learns; the teacher's are the same in any order.
        device: where it runs.
        fused: whether on fused kernels.
        preprocessing: of the network that learns, from which pictures are brought to the teacher's.

    Raises:
        ValueError: other classes, or a file that cannot be read as one; the message names it.
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

        Kullback and Leibler's, as of Hinton et al., "Distilling the Knowledge in a Neural Network",
        2015, at temperature 1; 0 for a picture without a labelled pixel.

        Args:
            images: (N, 3, H, W), as the network takes them that learns.
            logits: of the network that learns, (N, C, H, W).
            labels: (N, H, W).
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
    """Pictures, (N, 3, H, W), as another network takes them; the same where that is as it is."""
    if own == other:
        return images
    mean, std, new_mean, new_std = (
        images.new_tensor(values)[:, None, None]
        for values in (own.mean, own.std, other.mean, other.std)
    )
    colors = images * std + mean
    return ((colors if own.channels == other.channels else colors.flip(1)) - new_mean) / new_std
