"""Operators under autocast: they compute in autocast's type, like PyTorch's convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fassd_kernels.checks import check_storage


def autocasts(device_type: str) -> bool:
    """True if autocast is enabled for tensors of this device type."""
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def is_tensors(argument: Any) -> bool:
    return isinstance(argument, list | tuple) and all(isinstance(x, Tensor) for x in argument)


def convert(tensor: Tensor, dtype: torch.dtype, op: str, name: str) -> Tensor:
    """``tensor.to(dtype)``; an error names the tensor if its storage was freed."""
    if tensor.dtype == dtype:
        return tensor
    check_storage(op, name, tensor)
    return tensor.to(dtype)


def cast(argument: Any, dtype: torch.dtype) -> Any:
    """A floating tensor, or a list of them, as `dtype`; float64 and everything else unchanged."""
    if isinstance(argument, Tensor):
        eligible = argument.is_floating_point() and argument.dtype != torch.float64
        return convert(argument, dtype, "autocast", "a tensor") if eligible else argument
    return [cast(x, dtype) for x in argument] if is_tensors(argument) else argument


def casting(function: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    """`function` with arguments cast to autocast's type, and with autocast off inside."""

    def cast_and_call(*arguments: Any, **keywords: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return function(
                *(cast(argument, dtype) for argument in arguments),
                **{name: cast(argument, dtype) for name, argument in keywords.items()},
            )

    return cast_and_call


def follows_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a reference operator, whose first argument determines the device."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Tensor:
        first = next(iter((*arguments, *keywords.values())), None)
        image = first[0] if is_tensors(first) and first else first
        if isinstance(image, Tensor) and autocasts(image.device.type):
            return casting(function, image.device.type)(*arguments, **keywords)
        return function(*arguments, **keywords)

    return wrapper
