"""Weights as constants, for programs that are exported to run without Python."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from fassd_kernels.modules.fused import Fused, own
from fassd_kernels.modules.quantized import QuantizedNetwork

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model, inputs: Sequence[Any]) -> Model:
    """Copy an accelerated model so that ``torch.export`` traces its packed weights as constants.

    A traced module would otherwise fold and lay out its weights on every call. A program exported
    from the copy stores them as constants; the C++ CPU kernels can read those on every CPU, at full
    speed with the instruction set that they were packed for.

    >>> frozen = freeze(accelerate(model), (batch,))
    >>> program = torch.export.export(frozen, (batch,))

    Args:
        model: result of :func:`accelerate`, in eval mode; later changes to it have no effect. Of
            those in int8 only a FASSD-Net is traced in bytes, and others in float.
        inputs: inputs of a call, from which the modules learn what to pack for; of any size. A
            program for int8 takes as many images.

    Returns:
        The copy; called without a tracer it acts like `model`. Its programs keep the present
        weights: freeze again after loading or editing weights.

    Raises:
        ValueError: `model` is in training mode.
    """
    if model.training:
        raise ValueError("freeze: the model is in training mode; call model.eval() first")
    frozen = copy.deepcopy(model)
    if isinstance(frozen, QuantizedNetwork):
        frozen.freeze(*inputs)
        return frozen
    with torch.no_grad():
        frozen(*inputs)
    for module in frozen.modules():
        if isinstance(module, Fused) and module._packed is not None:
            known = module._packed
            packed, narrow = ({k: own(v) for k, v in each.items()} for each in known[-2:])
            module._frozen = (known.dtype, packed, narrow)
    return frozen
