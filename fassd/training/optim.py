"""Optimizers, their state, the learning rate over time, and the average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fassd.training.recipe import Recipe

Tensors = tuple[Tensor, ...] | list[Tensor]


def poly_learning_rate(
    step: int, base: float, total_steps: int, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """Learning rate of optimizer step `step`: base * (1 - (step + 1) / total) ** power.

    The authors' scheduler was advanced once before the first step, hence the 1: the first of their
    90,000 steps has 0.02 * (1 - 1/90000) ** 0.9, and the last one 0.

    Over the first `warmup_steps` a factor rises from near 0 to 1.

    Raises:
        ValueError: `step` is not in 0 .. total_steps - 1.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be from 0 to {total_steps - 1}, got {step}")
    rate = base * (1 - (step + 1) / total_steps) ** power
    return rate * min(1.0, (step + 1) / (warmup_steps + 1))


def cosine_learning_rate(step: int, base: float, total_steps: int, warmup_steps: int = 0) -> float:
    """Cosine instead of `poly_learning_rate`: base * (1 + cos(pi * (step + 1) / total)) / 2.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017, eq. 5, without restarts.

    Raises:
        ValueError: `step` is not in 0 .. total_steps - 1.
    """
    rate = poly_learning_rate(step, base, total_steps, 0.0, warmup_steps)
    return rate * (1 + math.cos(math.pi * (step + 1) / total_steps)) / 2


def create_optimizer(recipe: Recipe, model: nn.Module, encoder: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, for all parameters of `model`.

    The parameters of `encoder`, a part of it, form a group of their own if they have their own
    rate; "factor" in a group multiplies the learning rate.
    """
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "fused": True,
    }
    parameters: Any = model.parameters()
    if recipe.encoder_rate != 1:
        own = {id(parameter) for parameter in encoder.parameters()}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
        slower = {"params": list(encoder.parameters()), "factor": recipe.encoder_rate}
        parameters = [{"params": rest, "factor": 1.0}, slower]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **settings)
    return torch.optim.AdamW(parameters, betas=(recipe.momentum, 0.999), **settings)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, named "<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state.items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimizer's state from the result of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number_, entries in state.items():
        for name, value in entries.items():
            if value.shape == parameters[number_].shape:  # in the parameter's memory layout
                entries[name] = torch.empty_like(parameters[number_], dtype=value.dtype).copy_(
                    value
                )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and batch norm statistics, over fewer steps at the beginning."""

    def blend(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        steps = float(count)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, share)
        else:
            torch._foreach_copy_(averages, currents)

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(blend), use_buffers=True)
