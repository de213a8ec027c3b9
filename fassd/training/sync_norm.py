"""Batch norm over the micro-batches of all processes, on any device.

`torch.nn.SyncBatchNorm` runs on GPUs only; elsewhere this module replaces it, so that training with
many processes can be compared with a single process on any machine.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fassd.models.encoder import Encoder


class _Sum(torch.autograd.Function):
    """The sum over processes, available in all of them; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class AnyDeviceSyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are over the pictures of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        channels = x.to(torch.promote_types(x.dtype, torch.float32))
        count = channels.new_tensor([x.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([channels.sum((0, 2, 3)), count]))
        total = sums[-1]
        if total == 1:
            raise ValueError(f"batch norm needs more than one value per channel, got {x.shape}")
        mean = sums[:-1] / total
        centered = channels - mean[:, None, None]
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / total
        self._track(mean.detach(), variance.detach(), total.detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result = centered * scale[:, None, None] + self.bias[:, None, None]
        return result.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Update the running statistics as `torch.nn.BatchNorm2d` does, variance unbiased."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (total / (total - 1)), momentum)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm2d of `model` use all processes' pictures; parameters and keys stay.

    Raises:
        ValueError: the device is not a GPU and a batch norm of timm's, with an activation inside,
            cannot be replaced.
    """
    if not dist.is_initialized():
        return model
    if device.type == "cuda":
        return converted(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = AnyDeviceSyncBatchNorm
        elif isinstance(module, nn.BatchNorm2d) and type(module) is not AnyDeviceSyncBatchNorm:
            raise ValueError(
                f"sync_bn: on a device of type {device.type}, a {type(module).__name__} of the "
                "encoder cannot be synchronised"
            )
    return model


def converted(model: nn.Module) -> nn.Module:
    """Return `model` with `torch.nn.SyncBatchNorm`s, and timm's own, in place of batch norms."""
    if any(isinstance(part, Encoder) for part in model.modules()):
        from timm.layers import convert_sync_batchnorm

        # PyTorch's converter would lose the activations inside.
        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
