"""Training on a CPU: batch norm with its activation, and resizing, as operators with gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fassd.models.layers import COMPUTING, Activation, apply_norm_act, interpolate
from fassd_kernels import ops
from fassd_kernels.autocast import autocasts
from fassd_kernels.checks import FLOATING
from fassd_kernels.modules.snapshot import has_hooks, hooked_globally


@contextlib.contextmanager
def kernels_used(wanted: bool) -> Iterator[None]:
    """Within the block this thread computes `resize` and `norm_act` as below, if `wanted`."""
    before = COMPUTING.resize, COMPUTING.norm_act
    wanted = wanted and ops.CPU_MISSING is None
    COMPUTING.resize, COMPUTING.norm_act = (resize, norm_act) if wanted else (None, None)
    try:
        yield
    finally:
        COMPUTING.resize, COMPUTING.norm_act = before


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing, with a gradient that is added up row by row.

    For an image of any floating type on the CPU in channels_last without gaps; PyTorch computes all
    others. It can be differentiated once.
    """
    plain = type(x) is Tensor and x.is_cpu and x.dtype in FLOATING and x.dim() == 4
    if not plain or x.numel() == 0 or not x.is_contiguous(memory_format=torch.channels_last):
        return interpolate(x, size)
    return cast(Tensor, _Resize.apply(x, size))


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size, ctx.dtype = x.shape[2:], x.dtype
        return cast(Tensor, torch.ops.fassd_kernels.upsample(x, size))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.to(ctx.dtype).contiguous(memory_format=torch.channels_last)
        return torch.ops.fassd_kernels.upsample_backward(gradient, ctx.size), None


def norm_act(x: Tensor, norm: nn.Module, activation: Activation) -> Tensor:
    """``activation(norm(x))`` which reads and writes the image 8 times, backward included, not 13.

    For a float32, float16, bfloat16 or float64 image without gaps, channels_last or contiguous, on
    the CPU; for a `BatchNorm2d` in training mode that tracks its statistics with a momentum; and
    for ReLU or PReLU. PyTorch computes all others, and modules with hooks. It can be differentiated
    once; statistics and sums are in float32 (float64 for float64). The result has the layout of the
    input.
    """
    form = fusible(x, norm, activation)
    if form is None:
        return apply_norm_act(x, norm, activation)
    layer: Any = norm
    y, statistics = _NormAct.apply(x, layer.weight, layer.bias, form.slope, layer.eps, form.name)
    with torch.no_grad():
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
        for running, found in ((layer.running_mean, 0), (layer.running_var, 2)):
            running.lerp_(statistics[found].to(running.dtype), layer.momentum)
    return y


class FusibleActivation(NamedTuple):
    """An activation in the operator's terms."""

    name: str
    slope: Tensor | None = None


def fusible(x: Tensor, norm: nn.Module, activation: Activation) -> FusibleActivation | None:
    """The activation of a pair that the operator computes; None for other pairs."""
    if type(x) is not Tensor or not x.is_cpu or x.dtype not in FLOATING or x.dim() != 4:
        return None
    # PyTorch reports the error for a single value per channel.
    if x.numel() <= x.shape[1] or not any(map(lies_in(x), LAYOUTS)):
        return None
    if type(norm) is not nn.BatchNorm2d or not norm.training or is_watched(norm):
        return None
    if norm.momentum is None or norm.running_mean is None or norm.num_features != x.shape[1]:
        return None
    half = x.dtype.itemsize == 2
    if any(
        v.dtype != x.dtype and not (half and v.dtype == torch.float32) for v in vectors_of(norm)
    ):
        return None
    if activation == "relu":
        return FusibleActivation("relu")
    if is_watched(activation):
        return None
    if type(activation) is nn.ReLU:
        return FusibleActivation("relu")
    if type(activation) is not nn.PReLU or len(activation.weight) not in (1, norm.num_features):
        return None
    # Under autocast, PReLU returns its own type; otherwise slopes must have the image's.
    cast = autocasts("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if cast else activation.weight.dtype
    return FusibleActivation("prelu", activation.weight) if dtype == x.dtype else None


LAYOUTS = (torch.channels_last, torch.contiguous_format)


def lies_in(x: Tensor) -> Callable[[torch.memory_format], bool]:
    return lambda layout: x.is_contiguous(memory_format=layout)


def vectors_of(norm: nn.Module) -> Iterator[Tensor]:
    """Floating parameters and statistics of a batch norm."""
    return (v for v in (*norm.parameters(), *norm.buffers()) if v.is_floating_point())


def is_watched(module: nn.Module) -> bool:
    """True if something observes the calls of a module."""
    return has_hooks(module) or hooked_globally()


class _NormAct(torch.autograd.Function):
    """The operator; the statistics that it also returns have no gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        slope: Tensor | None,
        eps: float,
        activation: str,
    ) -> tuple[Tensor, Tensor]:
        y, statistics = torch.ops.fassd_kernels.batch_norm_act(
            x, weight, bias, slope, eps, activation
        )
        ctx.save_for_backward(x, statistics, weight, bias, slope)
        ctx.activation = activation
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, *vectors = ctx.saved_tensors
        layout = next(filter(lies_in(x), LAYOUTS))
        gradient = gradient.to(x.dtype).contiguous(memory_format=layout)
        result, sums = torch.ops.fassd_kernels.batch_norm_act_backward(
            gradient, x, statistics, *vectors, ctx.activation
        )
        found = [
            None if vector is None else total.to(vector.dtype)
            for vector, total in zip(vectors, sums, strict=True)
        ]
        if found[2] is not None and len(vectors[2]) == 1:
            found[2] = sums[2].sum(0, keepdim=True).to(vectors[2].dtype)
        return result, *found, None, None
