"""The loss: cross entropy of each picture's hardest pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fassd.io.palette import IGNORE
from fassd_kernels.backends import AUTO, meant
from fassd_kernels.ops import CPU_MISSING


class CrossEntropy(nn.Module):
    """Mean cross entropy over each picture's labelled pixels, then over pictures with such pixels.

    Labels from C on stand for groups of classes (`fassd.data.groups`): the loss of such a pixel is
    the negative logarithm of the group's summed probability.

    Args:
        ignore_index: label of pixels that do not count.
        groups: classes of each of the labels C, C + 1, ...
        weights: factor of the loss of each label's pixels, groups included; None weighs all alike.
            The mean divides by the number of pixels, not by their weights.

    Shape: logits (N, C, H, W), floating, computed in float32 (float64 stays); labels (N, H, W),
    integers; the result is a scalar, 0 with zero gradients if no pixel is labelled.
    """

    weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = IGNORE,
        *,
        groups: Sequence[Sequence[int]] = (),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.groups = [list(group) for group in groups]
        table = None if weights is None else torch.ones(IGNORE + 1)
        if table is not None and weights is not None:
            table[: len(weights)] = torch.tensor(weights)
        self.register_buffer("weights", table, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = self.per_picture(logits, labels)
        return losses.sum() / labelled_pictures(labels, self.ignore_index).clamp_min(1)

    def per_picture(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture, (N,); 0 for one without a labelled pixel."""
        losses = self.per_pixel(logits, labels)
        counted = (labels != self.ignore_index).flatten(1).sum(1)
        return losses.flatten(1).sum(1) / counted.clamp_min(1)

    def per_pixel(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted loss of each pixel, (N, H, W); 0 for those that do not count."""
        losses = pixel_losses(logits, labels, self.ignore_index, self.groups)
        return losses if self.weights is None else losses * self.weights[labels.long()]


class BootstrappedCrossEntropy(CrossEntropy):
    """Cross entropy over the hardest pixels, picture by picture.

    In each picture the pixels whose loss exceeds `threshold` count, or, if there are not more than
    `min_pixels` of them, the `min_pixels` pixels with the largest loss. Their mean is the picture's
    loss, and the mean over pictures is the batch's. FASSD-Net and FC-HarDNet were trained in this
    way (after Wu et al., "Bridging Category-level and Instance-level Semantic Image Segmentation",
    2016), except for two cases in which the original fails or weighs wrongly:

    * in a picture with fewer than `min_pixels` labelled pixels, all of these count (the original
      fails on small pictures and averages ignored pixels in as zeros);
    * a picture without a labelled pixel is left out of the mean over pictures (the original counts
      it as a loss of 0).

    Args:
        min_pixels: smallest number of pixels that count, at least 1 (K in the paper).
        threshold: loss above which pixels count, in nats; at least 0.
        ignore_index, groups, weights: as in `CrossEntropy`; the threshold applies to weighted
            losses.

    Raises:
        ValueError: a setting is outside its range, or shapes do not match.
    """

    def __init__(
        self,
        min_pixels: int = 4096,
        threshold: float = 0.3,
        ignore_index: int = IGNORE,
        *,
        groups: Sequence[Sequence[int]] = (),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_index, groups=groups, weights=weights)
        if min_pixels < 1:
            raise ValueError(f"min_pixels must be at least 1, got {min_pixels}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.min_pixels = min_pixels
        self.threshold = threshold

    def per_picture(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture, (N,); 0 for one without a labelled pixel."""
        losses = self.per_pixel(logits, labels)
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


class RegionLoss(CrossEntropy):
    """A base loss, plus terms that weigh each class of a picture alike, however small it is.

    In each picture, over the classes and groups that label its pixels: the mean of 1 - Dice, with
    summed probabilities (Milletari et al., "V-Net", 3DV 2016, eq. 1, without squares), and the
    Lovász extension of 1 - IoU (Berman et al., "The Lovász-Softmax loss", CVPR 2018, eq. 11).

    Args:
        base: loss that the terms are added to.
        dice, lovasz: weights of the two terms; at least 0.
    """

    def __init__(self, base: CrossEntropy, dice: float = 0.0, lovasz: float = 0.0) -> None:
        super().__init__(base.ignore_index, groups=base.groups)
        for name, value in (("dice", dice), ("lovasz", lovasz)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.base, self.dice, self.lovasz = base, dice, lovasz

    def per_picture(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture, (N,); 0 for one without a labelled pixel."""
        pairs = zip(logits, labels, strict=True)
        return self.base.per_picture(logits, labels) + torch.stack([self._terms(*p) for p in pairs])

    def _terms(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The terms of one picture's logits (C, H, W) and labels (H, W)."""
        counted = labels != self.ignore_index
        rows = logits.movedim(0, -1)[counted]
        probabilities = rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(1)
        labelled = labels[counted].long()
        kinds = labelled.bincount().nonzero()[:, 0]
        places = torch.zeros(len(labelled) and int(kinds[-1]) + 1, dtype=torch.long).to(kinds)
        places[kinds] = torch.arange(len(kinds), device=kinds.device)
        truth = places[labelled]
        allowed = probabilities.new_zeros(logits.shape[0], len(kinds))
        for column, kind in enumerate(kinds.tolist()):
            single = kind < logits.shape[0]
            allowed[kind if single else self.groups[kind - logits.shape[0]], column] = 1
        found = probabilities @ allowed  # of each pixel, for each label
        total = probabilities.sum() * 0
        if self.dice:
            right = found.gather(1, truth[:, None])[:, 0]
            both = found.new_zeros(len(kinds)).index_add(0, truth, right)
            sizes = truth.bincount(minlength=len(kinds))
            total = total + self.dice * (1 - 2 * both / (found.sum(0) + sizes)).sum()
        if self.lovasz:
            for column in range(len(kinds)):
                own = (truth == column).to(found.dtype)
                total = total + self.lovasz * _lovasz(found[:, column], own)
        return total / max(1, len(kinds))


def _lovasz(found: Tensor, right: Tensor) -> Tensor:
    """The Lovász extension of 1 - IoU: errors, largest first, by what each adds to 1 - IoU."""
    errors, order = (right - found).abs().sort(descending=True)
    ordered = right[order]
    both = right.sum() - ordered.cumsum(0)
    either = right.sum() + (1 - ordered).cumsum(0)
    lost = 1 - both / either
    return errors @ lost.diff(prepend=lost.new_zeros(1))


def hardest_mean(losses: Tensor, min_pixels: int, threshold: float) -> Tensor:
    """Mean of the losses above `threshold`, or of the `min_pixels` largest if those are more.

    Losses are at least 0, in any shape; the mean of none is 0.
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
    """Cross entropy of each pixel, (N, H, W) in float32 or float64; 0 for ignored pixels.

    Label C + n of logits (N, C, H, W) stands for the classes groups[n].

    Raises:
        ValueError: shapes do not match.
    """
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            "expected logits (N, C, H, W) and labels (N, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    labels, classes = labels.long(), logits.shape[1]
    allowed = torch.zeros(len(groups), classes, dtype=torch.bool, device=logits.device)
    for row, group in zip(allowed, groups, strict=True):
        row[group] = True
    if _is_compiled_for(logits):
        arguments = logits, labels.contiguous(), allowed, ignore_index
        return cast(Tensor, _CompiledLosses.apply(*arguments))
    log = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    grouped = (labels >= classes) & (labels != ignore_index)
    alone = labels.masked_fill(grouped, ignore_index)
    losses = F.nll_loss(log, alone, ignore_index=ignore_index, reduction="none")
    if not groups:
        return losses
    others = ~allowed[labels[grouped] - classes]
    summed = log.movedim(1, -1)[grouped].masked_fill(others, -torch.inf).logsumexp(1)
    return losses.masked_scatter(grouped, -summed)


class _CompiledLosses(torch.autograd.Function):
    """The same by operators of the C++ extension, for logits with the classes of a pixel adjacent.

    The full-size logits are the largest tensor of a training step: they are read in place, and with
    bootstrapping the gradients of the few pixels that count are computed alone.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.ignore_index = arguments
        ctx.save_for_backward(*tensors)
        return cast(Tensor, torch.ops.fassd_kernels.pixel_losses(*arguments))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        result = torch.ops.fassd_kernels.pixel_losses_backward(
            gradient.contiguous(), *ctx.saved_tensors, ctx.ignore_index
        )
        return result, None, None, None


def _is_compiled_for(logits: Tensor) -> bool:
    """True if the C++ operators take the logits: on a CPU, with pixels contiguous."""
    adjacent = logits.is_contiguous(memory_format=torch.channels_last)
    wanted = CPU_MISSING is None and meant(AUTO) in (AUTO, "cpu")
    return wanted and logits.is_cpu and adjacent and logits.numel() > 0


def labelled_pictures(labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Number of pictures in labels (N, H, W) with a labelled pixel, as a float scalar."""
    return (labels != ignore_index).flatten(1).any(1).sum().float()
