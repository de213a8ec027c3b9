"""Replace a model's modules by fused ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar, cast, get_args

import torch
from torch import nn

from fassd.models import DAPF, MDA, AsymmetricConv2d, HarDBlock
from fassd.models.aspp import ASPP
from fassd.models.encoder import Encoder
from fassd.models.layers import ConvLayer
from fassd.models.network import FASSDNet
from fassd_kernels.backends import AUTO, check_available, disabled, say_disabled
from fassd_kernels.calibrate import calibrate, check_quantizable, quantized
from fassd_kernels.checks import FLOATING, MAX_LABELS
from fassd_kernels.graphs.captured import capture
from fassd_kernels.modules import (
    Fused,
    FusedASPP,
    FusedAsymmetricConv2d,
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
    FusedNetwork,
)
from fassd_kernels.modules.fused import transforming
from fassd_kernels.modules.network import OUTPUTS, RECORDED, Output
from fassd_kernels.modules.parts import is_as_written, is_ours
from fassd_kernels.modules.quantized import QuantizedNetwork
from fassd_kernels.modules.snapshot import replaced_forward
from fassd_kernels.reference.conv_act import channels_last
from fassd_kernels.reference.upsample import Measure

Model = TypeVar("Model", bound=nn.Module)

# Reference class -> the fused class that replaces it.
FUSED: dict[type[nn.Module], type[Fused]] = {
    DAPF: FusedDAPF,
    MDA: FusedMDA,
    HarDBlock: FusedHarDBlock,
    ASPP: FusedASPP,
    ConvLayer: FusedConvLayer,
    AsymmetricConv2d: FusedAsymmetricConv2d,
}


def accelerate(
    model: Model,
    dtype: torch.dtype | None = None,
    backend: str = AUTO,
    inplace: bool = False,
    output: Output = "logits",
    measure: Measure = "margin",
    calibration: Iterable[Any] | None = None,
) -> Model:
    """Replace modules of `model` by fused ones.

    Modules (`ConvLayer`, `AsymmetricConv2d`, `HarDBlock`, `DAPF`, `MDA`, `ASPP`) are found by class
    or, in other projects' classes, by their attributes; such a module is only replaced if the fused
    one gives the same numbers on a test input. A :class:`fassd.models.FASSDNet` becomes a
    :class:`FusedNetwork`, in which modules are also fused with their neighbours. Subclasses of
    these, and modules with their own ``forward``, are kept, but modules inside them are replaced.
    Any other module with several convolutions and without replaced modules is captured: in eval
    mode its graphs run on the fused operators (:class:`fassd_kernels.graphs.captured.Captured`).
    State dict, parameters, mode and hooks are kept. In training mode the result trains like the
    original. The C++ kernels own the memory of their results, which therefore cannot be resized in
    place (``out=``, ``resize_``).

    Args:
        model: any module; a network of :mod:`fassd.models`, one by the original authors, a wrapper.
        dtype: float32, float16, bfloat16 or float64, to which the model is converted; floating
            inputs are then converted as well, and the output has this type. None keeps the model's
            types. int8 keeps them as well, but convolutions compute in bytes on a CPU, except the
            first and the last one.
        backend: ``auto``, or the name of a backend from :func:`fassd_kernels.backends` to require.
        inplace: True changes `model` itself. False leaves it unchanged, and changes a deep copy.
        output: ``logits``, or ``labels`` for uint8 labels (N, H, W) instead, in eval mode, for a
            FASSDNet with at most 256 classes; the full-size logits are then never written.
            ``labels+confidence`` for uint8 (N, 2, H, W), labels and their certainty on a scale of
            255.
        measure: measure of certainty for ``labels+confidence``: the largest ``probability``, its
            ``margin`` over the second largest, or ``entropy`` (1 minus its ratio to that of equal
            probabilities).
        calibration: for int8, inputs like those that the model will get, of any number and size: an
            iterable of tensors, or of tuples for a model of several inputs. They are computed once,
            in float, and the ranges of all maps measured.

    Returns:
        The model with fused modules; a fused module if `model` itself is one of those above. With
        `inplace`, that is another object which shares everything with `model`.

    Raises:
        TypeError: `dtype` is not one of the above, `model` is not a module, or labels are requested
            from a model that is not a FASSDNet; `calibration` is missing for int8, or is given for
            another type.
        ValueError: `output` or `measure` is not one of the above, or there are over 256 classes;
            `calibration` is empty, or the model cannot compute it.
        BackendError: `backend` is unknown or not available; the message says why.

    Warns:
        RuntimeWarning: if there was nothing to swap or to capture; at its first call, if a captured
            module cannot be captured whole; once, if ``FASSD_KERNELS_DISABLE=1`` lets modules
            compute by plain PyTorch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if dtype is not None and dtype not in (*FLOATING, torch.int8):
        names = ", ".join(str(accepted) for accepted in (*FLOATING, torch.int8))
        raise TypeError(f"dtype is {dtype}; expected None or one of {names}")
    if (dtype == torch.int8) != (calibration is not None):
        raise TypeError(
            "dtype=torch.int8 needs calibration, an iterable of inputs"
            if calibration is None
            else f"calibration is for dtype=torch.int8; dtype is {dtype}"
        )
    check_output(model, output, measure)
    say_disabled()
    check_available(backend)
    if dtype == torch.int8:
        check_quantizable(model, backend)
    if not inplace:
        model = copy.deepcopy(model)
    done: dict[nn.Module, nn.Module | None] = {}
    if dtype == torch.int8:
        fused = quantized(model, backend, is_network(model))
    else:
        fused = swap(model if dtype is None else model.to(dtype), backend, done)
    if isinstance(fused, FusedNetwork):
        fused.output, fused.measure = output, measure
        fused.casts_input = dtype is not None
    elif dtype is not None:
        fused.register_forward_pre_hook(cast_inputs, with_kwargs=True)
    captured = isinstance(fused, QuantizedNetwork) or capture(fused)
    if not any(done.values()) and not captured:
        warnings.warn(
            f"accelerate: {type(model).__name__} has no module that can be fused; "
            "nothing was swapped",
            RuntimeWarning,
            stacklevel=2,
        )
    elif not disabled():
        # The fused modules return channels_last. Convolutions that were not replaced do the same
        # with such inputs, so that nothing between them is converted.
        first = next(m for m in fused.modules() if isinstance(m, (Fused, nn.Conv2d)))
        lays_out = isinstance(fused, QuantizedNetwork) or (
            isinstance(fused, FusedNetwork) and isinstance(fused.base, Encoder)
        )
        if not isinstance(first, Fused) and first.weight.is_cpu and not lays_out:
            fused.register_forward_pre_hook(lay_out_inputs, with_kwargs=True)
    if calibration is not None and not disabled():
        calibrate(fused, calibration)
    return cast(Model, fused)  # or a fused subclass of it


def check_output(model: nn.Module, output: str, measure: str) -> None:
    for what, asked, known in (
        ("output", output, OUTPUTS),
        ("measure", measure, get_args(Measure)),
    ):
        if asked not in known:
            raise ValueError(f"{what} is {asked!r}; expected one of {', '.join(known)}")
    if output != "logits":
        if not is_network(model):
            name = type(model).__name__
            raise TypeError(
                f"output={output!r} needs a fassd.models.FASSDNet itself, whose methods are its "
                f"class's; model is a {name}"
            )
        classes: Any = model.num_classes
        if classes > MAX_LABELS:
            raise ValueError(
                f"output={output!r} gives uint8, for at most {MAX_LABELS} classes; "
                f"the model has {classes}"
            )


def is_network(module: nn.Module) -> bool:
    """True if a module is a FASSDNet that computes what its class does."""
    if type(module) not in (FASSDNet, FusedNetwork) or replaced_forward(module):
        return False
    written = all(is_as_written(FASSDNet, name) for name in ("forward", *RECORDED))
    return written and not any(name in module.__dict__ for name in RECORDED)


def swap(module: nn.Module, backend: str, done: dict[nn.Module, nn.Module | None]) -> nn.Module:
    """Return the replacement of `module`, after replacing inside it; `done` caches by module."""
    if module not in done:
        done[module] = fuse(module, backend)
        if done[module] is None:
            # named_children() would skip a module that is used in two places.
            for name, child in list(module._modules.items()):
                if child is not None:
                    module._modules[name] = swap(child, backend, done)
            if is_network(module) and not FusedNetwork.mismatch(module):
                done[module] = FusedNetwork.take_over(module, backend)
    return done[module] or module


def fuse(module: nn.Module, backend: str) -> Fused | None:
    """Make the fused module for `module`; None if there is none."""
    if isinstance(module, torch.jit.ScriptModule) or replaced_forward(module):
        return None
    if isinstance(module, Fused):
        return type(module).take_over(module, backend)
    for reference, fused_class in FUSED.items():
        known = type(module) is reference
        if not known and isinstance(module, reference):
            continue  # a subclass may compute something else
        if fused_class.mismatch(module):
            continue
        fused = fused_class.take_over(module, backend)
        if (known and is_as_published(module)) or same_numbers(module, fused):
            return fused
    return None


def is_as_published(module: nn.Module) -> bool:
    """True if all parts are of classes of this project or of PyTorch, and compute as those do."""
    kinds = set(map(type, module.modules()))
    return all(is_ours(kind) and is_as_written(kind) for kind in kinds)


def same_numbers(module: nn.Module, fused: Fused) -> bool:
    """True if a module of a foreign class computes the same as the fused one.

    Both are run in eval and in training mode (which reveals a dropout), on pictures of 40 x 40,
    where dilations up to 39 still reach pixels.
    """
    first = fused.get_submodule(fused.lead)
    assert isinstance(first, nn.Conv2d)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, first.in_channels, 40, 40, generator=generator).to(first.weight)
    try:
        return all(agree(module, fused, x, training) for training in (False, True))
    except Exception:  # its forward takes other arguments, or its parts do not match
        return False


def agree(module: nn.Module, fused: Fused, x: torch.Tensor, training: bool) -> bool:
    """True if copies of both give the same output for `x` in one mode."""
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
    """Forward pre-hook that converts floating tensors to the type of the module's parameters."""
    dtype = next(module.parameters()).dtype

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tuple(map(cast, inputs)), {name: cast(x) for name, x in keywords.items()}


def lay_out_inputs(
    module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook that converts images on a CPU to channels_last."""

    def lay_out(x: Any) -> Any:
        image = isinstance(x, torch.Tensor) and x.dim() == 4 and x.is_cpu and not transforming()
        return channels_last(x) if image else x

    return tuple(map(lay_out, inputs)), {name: lay_out(x) for name, x in keywords.items()}
