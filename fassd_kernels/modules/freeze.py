"""Weights as constants, for programs that are exported and run without Python."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fassd_kernels.modules.fused import Fused

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model, inputs: Sequence[Any]) -> Model:
    """A copy of an accelerated model that ``torch.export`` traces with its packed weights.

    Otherwise a traced module folds and lays out its weights on every call. A program that is
    exported from the copy holds them as constants; the C++ CPU kernels read those on every CPU, at
    full speed on the instruction set that they were packed for.

    >>> frozen = freeze(accelerate(model), (batch,))
    >>> program = torch.export.export(frozen, (batch,))

    Args:
        model: what :func:`accelerate` gave, in eval mode; later changes to it do not show.
        inputs: of a call, by which the modules learn what to pack for; of any size.

    Returns:
        The copy; called without a tracer it does what `model` does. Its programs keep the weights
        of now: freeze again after weights were loaded or edited.

    Raises:
        ValueError: if `model` is in training mode.
    """
    if model.training:
        raise ValueError("freeze: the model is in training mode; call model.eval() first")
    frozen = copy.deepcopy(model)
    with torch.no_grad():
        frozen(*inputs)
    for module in frozen.modules():
        if isinstance(module, Fused) and module._packed is not None:
            packed = {name: own(value) for name, value in module._packed.packed.items()}
            module._frozen = (module._packed.dtype, packed)
    return frozen


def own(value: Any) -> Any:
    """Tensors as copies that no cache shares; anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone()  # keeps the strides
    return [own(each) for each in value] if isinstance(value, list) else value
