"""Batch norm over the micro-batches of all processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from fassd.models.encoder import Encoder


def synchronized(model: nn.Module) -> nn.Module:
    """The model with `torch.nn.SyncBatchNorm`s, and timm's own, in place of batch norms.

    They run on GPUs only. A single process needs none.
    """
    if not dist.is_initialized():
        return model
    if any(isinstance(part, Encoder) for part in model.modules()):
        from timm.layers import convert_sync_batchnorm

        # PyTorch's converter would lose the activations inside.
        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
