"""The loss: cross entropy of each picture's hardest pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd.io.palette import IGNORE


class CrossEntropy(nn.Module):
    """Mean cross entropy over each picture's labelled pixels, then over pictures that have any.

    A label behind the C classes stands for a group of them (`fassd.data.groups`): the loss of its
    pixels is the negative logarithm of the group's summed probability.

    Args:
        ignore_index: label of pixels that do not count.
        groups: the classes of the labels C, C + 1, ...

    Shape: logits (N, C, H, W), floating, computed in float32 (float64 stays); labels (N, H, W),
    integers; the result is a scalar, 0 with zero gradients if no pixel is labelled.
    """

    def __init__(self, ignore_index: int = IGNORE, *, groups: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.groups = [list(group) for group in groups]

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = self.per_picture(logits, labels)
        return losses.sum() / labelled_pictures(labels, self.ignore_index).clamp_min(1)

    def per_picture(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture, (N,); 0 for one without a labelled pixel."""
        losses = pixel_losses(logits, labels, self.ignore_index, self.groups)
        counted = (labels != self.ignore_index).flatten(1).sum(1)
        return losses.flatten(1).sum(1) / counted.clamp_min(1)


class BootstrappedCrossEntropy(CrossEntropy):
    """Cross entropy over the hardest pixels, picture by picture.

    Of each picture count the pixels whose loss exceeds `threshold`, or, if these are not more than
    `min_pixels`, the `min_pixels` pixels of the largest loss; their mean is the picture's loss, and
    the mean over pictures the batch's. As FASSD-Net and FC-HarDNet were trained (after Wu et al.,
    "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016), but for two
    cases in which that gives an error or a wrong weight:

    * a picture with fewer than `min_pixels` labelled pixels counts with all those it has (the
      original fails on small pictures and averages ignored pixels in as zeros);
    * a picture without a labelled pixel is left out of the mean over pictures (the original counts
      it as a loss of 0).

    Args:
        min_pixels: K, at least 1.
        threshold: of the loss, in nats; at least 0.
        ignore_index, groups: as of `CrossEntropy`.

    Raises:
        ValueError: a setting outside its range, or shapes that do not fit.
    """

    def __init__(
        self,
        min_pixels: int = 4096,
        threshold: float = 0.3,
        ignore_index: int = IGNORE,
        *,
        groups: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(ignore_index, groups=groups)
        if min_pixels < 1:
            raise ValueError(f"min_pixels must be at least 1, got {min_pixels}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.min_pixels = min_pixels
        self.threshold = threshold

    def per_picture(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture, (N,); 0 for one without a labelled pixel."""
        losses = pixel_losses(logits, labels, self.ignore_index, self.groups)
        hardest = [
            hardest_mean(loss[label != self.ignore_index], self.min_pixels, self.threshold)
            for loss, label in zip(losses, labels, strict=True)
        ]
        return torch.stack(hardest)

    def extra_repr(self) -> str:
        return (
            f"min_pixels={self.min_pixels}, threshold={self.threshold}, "
            f"ignore_index={self.ignore_index}"
        )


def hardest_mean(losses: Tensor, min_pixels: int, threshold: float) -> Tensor:
    """Mean of the losses above `threshold`, or of the `min_pixels` largest if those are more.

    Losses are at least 0, in any shape; without any the mean is 0.
    """
    losses = losses.flatten()
    if losses.numel() == 0:
        return losses.sum()
    hard = losses > threshold
    if int(hard.sum()) > min_pixels:
        return losses[hard].mean()
    return losses.topk(min(min_pixels, losses.numel()), sorted=False).values.mean()


def pixel_losses(
    logits: Tensor, labels: Tensor, ignore_index: int, groups: Sequence[list[int]] = ()
) -> Tensor:
    """Cross entropy of each pixel, (N, H, W) in float32 or float64; 0 where it is to be ignored.

    Label C + n of logits (N, C, H, W) stands for the classes groups[n].

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            "expected logits (N, C, H, W) and labels (N, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labels = labels.long()
    if not groups:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    log = logits.log_softmax(1)
    grouped = (labels >= logits.shape[1]) & (labels != ignore_index)
    alone = labels.masked_fill(grouped, ignore_index)
    losses = F.nll_loss(log, alone, ignore_index=ignore_index, reduction="none")
    # Few pixels are of groups: gathered, they take little beside the softmax of all.
    rows = log.movedim(1, -1)[grouped]
    classes = labels[grouped] - logits.shape[1]
    allowed = torch.zeros(len(groups), logits.shape[1], dtype=torch.bool, device=logits.device)
    for row, group in zip(allowed, groups, strict=True):
        row[group] = True
    summed = rows.masked_fill(~allowed[classes], -torch.inf).logsumexp(1)
    return losses.masked_scatter(grouped, -summed)


def labelled_pictures(labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """How many of the pictures (N, H, W) have a labelled pixel, as a float scalar."""
    return (labels != ignore_index).flatten(1).any(1).sum().float()
