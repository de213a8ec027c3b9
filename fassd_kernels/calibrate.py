"""Quantisation after training: convolutions in bytes, with ranges of calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fassd_kernels.backends import AUTO, BackendError, backends, described, disabled, meant
from fassd_kernels.graphs.captured import Capturing
from fassd_kernels.graphs.ranges import Quantization
from fassd_kernels.graphs.steps import repeatable
from fassd_kernels.modules.fused import Fused
from fassd_kernels.modules.quantized import QuantizedNetwork

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of models that can be quantised."""


def check_quantizable(model: nn.Module, backend: str) -> None:
    """Raise an error if convolutions of a model cannot compute in bytes.

    Raises:
        TypeError: it is of another type than `TYPES`, or holds accelerated modules.
        BackendError: it is not on a CPU, or its kernels are missing.
    """
    name = type(model).__name__
    for part in model.modules():
        if isinstance(part, (Fused, Capturing)):
            raise TypeError(
                f"dtype=torch.int8 takes a plain model; {name} holds a {type(part).__name__}, "
                "which is accelerated already"
            )
    for tensor in model.parameters():
        if tensor.is_floating_point() and tensor.dtype not in TYPES:
            names = ", ".join(map(str, TYPES))
            raise TypeError(f"dtype=torch.int8 takes a model of {names}; {name} has {tensor.dtype}")
        if not tensor.is_cpu:
            raise BackendError(
                f"dtype=torch.int8 has kernels for the CPU alone; {name} is on {tensor.device}"
            )
    if disabled():
        return
    if meant(backend) not in (AUTO, "cpu"):
        raise BackendError(f"dtype=torch.int8 runs on backend cpu, not on {described(backend)}")
    if not backends()["cpu"].available:
        raise BackendError(f"dtype=torch.int8 needs backend cpu: {backends()['cpu'].reason}")


def quantized(model: nn.Module, backend: str, is_network: bool) -> nn.Module:
    """Let `model` itself become one whose convolutions can compute in bytes."""
    if is_network:
        network: Any = model
        network.__class__ = QuantizedNetwork
        network.backend = backend
        return cast(nn.Module, network)
    return model  # which is captured as it is in float


def calibrate(model: nn.Module, inputs: Iterable[Any]) -> None:
    """Measure the ranges of a quantised model's maps, which then computes in bytes.

    Args:
        model: result of `quantized`.
        inputs: calibration inputs, as for `accelerate`.

    Raises:
        TypeError: `inputs` is not iterable, or something in it is not a tensor.
        ValueError: there are none, or the model cannot compute one.
    """
    captured = [part for part in model.modules() if isinstance(part, Capturing)]
    for graphs in captured:
        graphs.quantize(Quantization())
    modes = {part: part.training for part in model.modules()}
    count = 0
    try:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", enabled=False), repeatable():
            for each in each_of(inputs):
                observe(model, each, f"calibration[{count}]")
                count += 1
    finally:
        for part, training in modes.items():
            part.training = training
    if not count:
        raise ValueError("calibration is empty; expected at least one input of the model")
    for graphs in captured:
        assert graphs.quantization is not None
        graphs.quantization.measured()
        graphs.quantize(graphs.quantization)


def each_of(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, Tensor) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"calibration is a {type(inputs).__name__}; expected an iterable of input tensors"
        )
    return inputs


def observe(model: nn.Module, found: Any, name: str) -> None:
    """Compute one calibration input."""
    tensors = found if isinstance(found, (tuple, list)) else [found]
    for each in tensors:
        if not isinstance(each, Tensor):
            raise TypeError(
                f"{name} holds a {type(each).__name__}; expected a tensor, or a tuple of all "
                "inputs of the model"
            )
    try:
        model(*tensors)
    except (ValueError, RuntimeError, TypeError) as error:
        shapes = ", ".join(str(tuple(each.shape)) for each in tensors)
        raise ValueError(f"{name}, of shape {shapes}: {error}") from error
