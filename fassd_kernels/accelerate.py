"""Swap the fused modules into a model."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import nn

from fassd.models import DAPF, MDA
from fassd_kernels.backends import AUTO
from fassd_kernels.checks import FLOATING
from fassd_kernels.modules import Fused, FusedDAPF, FusedMDA

Model = TypeVar("Model", bound=nn.Module)

# Reference class -> the fused class that takes its place.
FUSED: dict[type[nn.Module], type[Fused]] = {DAPF: FusedDAPF, MDA: FusedMDA}


def accelerate(
    model: Model, dtype: torch.dtype | None = None, backend: str = AUTO, inplace: bool = False
) -> Model:
    """Swap fused modules in for the DAPF and MDA modules of `model`.

    Modules are found by class, or, in anybody else's classes, by having the same attributes; such
    a module is swapped only if the fused one gives the same numbers on a test input. State dict,
    parameters, mode and hooks stay; on a CPU, convolution weights are laid out channels_last. In
    training mode the result trains as the original does.

    Args:
        model: any module; a network of :mod:`fassd.models`, the original authors', a wrapper.
        dtype: convert the model to float32, float16, bfloat16 or float64; floating inputs are
            then converted on the way in, and the output has this type. None keeps its types.
        backend: ``auto``, or a name from :func:`fassd_kernels.backends` to insist on.
        inplace: change `model` itself. Otherwise it stays untouched, and a deep copy is changed.

    Returns:
        The model with fused modules; a fused module if `model` itself is a DAPF or MDA.

    Raises:
        TypeError: if `dtype` is not one of the above or `model` is not a module.
        BackendError: if `backend` is unknown or not available; the message says why.

    Warns:
        RuntimeWarning: if there was nothing to swap.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if dtype is not None and dtype not in FLOATING:
        names = ", ".join(str(accepted) for accepted in FLOATING)
        raise TypeError(f"dtype is {dtype}; expected None or one of {names}")
    if not inplace:
        model = copy.deepcopy(model)
    if dtype is not None:
        model.to(dtype)
    done: dict[nn.Module, Fused | None] = {}
    fused = swap(model, backend, done)
    if dtype is not None:
        fused.register_forward_pre_hook(cast_inputs, with_kwargs=True)
    if not any(done.values()):
        warnings.warn(
            f"accelerate: {type(model).__name__} has no DAPF or MDA; nothing was swapped",
            RuntimeWarning,
            stacklevel=2,
        )
    elif next(fused.parameters()).device.type == "cpu":
        # The fused modules answer in channels_last. Convolutions with such weights do so too, and
        # nothing between them is laid out anew: FASSD-Net at 1024x2048 takes 1.85 s on one AVX2
        # core instead of 2.15 (eager: 2.3).
        for parameter in fused.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return fused  # type: ignore[return-value]  # a Model, or the fused subclass of it


def swap(module: nn.Module, backend: str, done: dict[nn.Module, Fused | None]) -> nn.Module:
    """Return what takes `module`'s place, after swapping inside it; `done` remembers by module."""
    if module not in done:
        done[module] = fuse(module, backend)
        if done[module] is None:
            # Not named_children(), which passes over a module that stands in two places.
            for name, child in list(module._modules.items()):
                if child is not None:
                    module._modules[name] = swap(child, backend, done)
    return done[module] or module


def fuse(module: nn.Module, backend: str) -> Fused | None:
    """The fused module for `module`, or None if there is none."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, Fused):
        return type(module).take_over(module, backend)
    for reference, fused_class in FUSED.items():
        known = isinstance(module, reference)
        if known and type(module).forward is not reference.forward:
            continue  # a subclass that computes something else
        if fused_class.mismatch(module):
            continue
        fused = fused_class.take_over(module, backend)
        if (known and all(map(is_ours, module.modules()))) or same_numbers(module, fused):
            return fused
    return None


def is_ours(module: nn.Module) -> bool:
    """Whether a part is of a class of this project or of PyTorch, hence does what its name says."""
    return type(module).__module__.startswith(("fassd.models.", "torch.nn.modules."))


def same_numbers(module: nn.Module, fused: Fused) -> bool:
    """Whether a module of a foreign class computes what the fused one does.

    Tried in eval and in training mode (where a dropout would show), on pictures of 40 x 40, where
    dilations up to 39 still reach pixels.
    """
    first = fused.get_submodule(fused.lead)
    assert isinstance(first, nn.Conv2d)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, first.in_channels, 40, 40, generator=generator).to(first.weight)
    try:
        return all(agree(module, fused, x, training) for training in (False, True))
    except Exception:  # its forward takes something else, or its parts do not fit together
        return False


def agree(module: nn.Module, fused: Fused, x: torch.Tensor, training: bool) -> bool:
    """Whether copies of both give the same output for `x` in one mode."""
    twin, fused_twin = copy.deepcopy(module), copy.deepcopy(fused)
    fused_twin.backend = "reference"
    with torch.no_grad(), torch.random.fork_rng():
        expected, result = twin.train(training)(x), fused_twin.train(training)(x)
    if expected.shape != result.shape:
        return False
    tolerance = 1e-4 if x.dtype in (torch.float32, torch.float64) else 5e-2
    error = (result.double() - expected.double()).norm()
    return bool(error <= tolerance * expected.double().norm())


def cast_inputs(
    module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: convert floating tensors to the type of the module's parameters."""
    dtype = next(module.parameters()).dtype

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tuple(map(cast, inputs)), {name: cast(x) for name, x in keywords.items()}
