"""Registration of the operators with PyTorch: schema, fast path, fake kernel, autograd.

After ``import fassd_kernels``, each operator is ``torch.ops.fassd_kernels.NAME`` (and
``fassd_kernels.ops.NAME``). PyTorch's dispatcher chooses by device: the compiled extension
registers its kernels under ``CPU`` and ``CUDA``; where it has none, the reference runs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fassd_kernels import reference
from fassd_kernels.autocast import casting, is_tensors
from fassd_kernels.reference.asymmetric_conv import check_asymmetric_conv
from fassd_kernels.reference.conv_act import check_conv_act, pair
from fassd_kernels.reference.dapf import check_dapf
from fassd_kernels.reference.mda import check_mda
from fassd_kernels.reference.normalize import check_normalize
from fassd_kernels.reference.upsample import check_upsample, check_upsample_argmax
from fassd_kernels.reference.upsample_conv1x1 import check_upsample_conv1x1

NAMESPACE = "fassd_kernels"


def read_schemas() -> dict[str, str]:
    """Operator name -> schema, from ``schemas.def``, which the C++ sources include too."""
    text = (Path(__file__).parent / "schemas.def").read_text()
    schemas = [" ".join(s.split()) for s in re.findall(r'OPERATOR\(R"\((.*?)\)"\)', text, re.S)]
    return {schema.partition("(")[0]: schema for schema in schemas}


SCHEMAS = read_schemas()


def load_extension(name: str) -> str | None:
    """Import ``fassd_kernels.<name>``; return None, or the reason why that is not possible."""
    try:
        importlib.import_module(f"fassd_kernels.{name}")
    except ImportError as error:
        return str(error)
    return None


def image_like(like: Tensor, size: Sequence[Any]) -> Tensor:
    """What every operator that returns an image allocates: channels_last, not `like`'s strides."""
    return torch.empty(
        tuple(size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


# --- fake kernels: shape, dtype and layout of the result, and the same refusals -------------------


def fake_conv_act(
    inputs, weight, bias=None, slope=None, residual=None, *, stride=1, dilation=1, activation="none"
):
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    size = check_conv_act(inputs, weight, bias, stride, dilation, activation, slope, residual)
    return image_like(inputs[0], size)


def fake_asymmetric_conv(
    input,
    vertical_weight,
    horizontal_weight,
    vertical_bias=None,
    horizontal_bias=None,
    vertical_slope=None,
    horizontal_slope=None,
    *,
    dilation=1,
    activation="relu",
):
    size = check_asymmetric_conv(
        input,
        vertical_weight,
        horizontal_weight,
        vertical_bias,
        horizontal_bias,
        dilation,
        activation,
        vertical_slope,
        horizontal_slope,
    )
    return image_like(input, size)


def fake_dapf(input, weights, biases, *, dilations):
    return image_like(input, check_dapf(input, weights, biases, dilations))


def fake_mda(input, weights, scales, shifts, slopes, *, dilation):
    return image_like(input, check_mda(input, weights, scales, shifts, slopes, dilation))


def fake_upsample_conv1x1(low, skip, weight, bias=None, slope=None, *, activation="none"):
    size = check_upsample_conv1x1(low, skip, weight, bias, activation, slope)
    return image_like(skip[0], size)


def fake_upsample(input, size):
    return image_like(input, check_upsample("upsample", input, size))


def fake_upsample_argmax(input, size):
    return input.new_empty(check_upsample_argmax(input, size), dtype=torch.uint8)


def fake_normalize(image, *, mean, std, dtype):
    size = check_normalize(image, mean, std, dtype)
    return torch.empty(size, dtype=dtype, device=image.device, memory_format=torch.channels_last)


# --- autograd -------------------------------------------------------------------------------------


def save_arguments(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Tensor) -> None:
    """Save the tensors among an operator's arguments, and how to put them together again."""
    tensors: list[Tensor] = []
    layout: list[Any] = []  # per argument: (first, count), index, or the value itself
    for argument in inputs:
        if isinstance(argument, Tensor):
            layout.append(("tensor", len(tensors)))
            tensors.append(argument)
        elif is_tensors(argument):
            layout.append(("tensors", len(tensors), len(argument)))
            tensors.extend(argument)
        else:
            layout.append(("value", argument))
    ctx.save_for_backward(*tensors)
    ctx.layout = layout
    ctx.keywords = keyword_only_inputs


def restore_arguments(ctx: Any) -> list[Any]:
    saved = ctx.saved_tensors
    arguments: list[Any] = []
    for kind, *where in ctx.layout:
        if kind == "tensor":
            arguments.append(saved[where[0]])
        elif kind == "tensors":
            arguments.append(list(saved[where[0] : where[0] + where[1]]))
        else:
            arguments.append(where[0])
    return arguments


def backward_through(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The backward of an operator: recompute the reference `function` and differentiate that.

    One rule serves every operator, its gradients are the reference's by construction, and they
    can be differentiated again. It costs one more forward; the modules do not meet that cost,
    because in training mode batch statistics forbid folding and they run the reference anyway.
    """

    def backward(ctx: Any, grad: Tensor) -> Any:
        arguments = restore_arguments(ctx)
        wanted: list[Tensor] = []

        def want(argument: Any) -> Any:
            if isinstance(argument, Tensor) and argument.requires_grad:
                # A view, so that one tensor passed twice gets two gradients, not their sum twice.
                wanted.append(argument.view_as(argument))
                return wanted[-1]
            return [want(x) for x in argument] if is_tensors(argument) else argument

        with torch.enable_grad():
            output = function(*map(want, arguments), **ctx.keywords)
        create_graph = torch.is_grad_enabled()
        gradients = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph))

        def collect(argument: Any) -> Any:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return next(gradients)
            return [collect(x) for x in argument] if is_tensors(argument) else None

        # One gradient per argument that the call spelled out; defaults at the end are not counted.
        return tuple(collect(argument) for argument in arguments[: len(ctx.needs_input_grad)])

    return backward


# --- registration ---------------------------------------------------------------------------------

FAKES: dict[str, Callable[..., Tensor]] = {
    "conv_act": fake_conv_act,
    "asymmetric_conv": fake_asymmetric_conv,
    "dapf": fake_dapf,
    "mda": fake_mda,
    "upsample_conv1x1": fake_upsample_conv1x1,
    "upsample": fake_upsample,
    "upsample_argmax": fake_upsample_argmax,
    "normalize": fake_normalize,
}
WITHOUT_GRADIENT = ("upsample_argmax", "normalize")
# Those that multiply by weights; resizing keeps its input's type.
AUTOCAST = ("conv_act", "asymmetric_conv", "dapf", "mda", "upsample_conv1x1")

# Why the compiled extensions are not there; None where they are. A torch without CUDA lacks the
# symbols that _C_cuda needs, so it is not even tried there.
CPU_MISSING = load_extension("_C")
CUDA_MISSING = load_extension("_C_cuda") if torch.version.cuda else "torch has no CUDA"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register() -> None:
    for name, schema in SCHEMAS.items():
        if CPU_MISSING is not None:
            _LIBRARY.define(schema)
        function = getattr(reference, name)
        qualified = f"{NAMESPACE}::{name}"
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, FAKES[name], lib=_LIBRARY)
        if name in AUTOCAST:
            call = getattr(torch.ops.fassd_kernels, name)
            _LIBRARY.impl(name, casting(call, "cpu"), "AutocastCPU")
            _LIBRARY.impl(name, casting(call, "cuda"), "AutocastCUDA")
        if name not in WITHOUT_GRADIENT:
            torch.library.register_autograd(
                qualified,
                backward_through(function),
                setup_context=(save_arguments if "*" in schema else save_positional_arguments),
                lib=_LIBRARY,
            )


def save_positional_arguments(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """:func:`save_arguments` for an operator without keyword arguments."""
    save_arguments(ctx, inputs, {}, output)


register()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that runs operator `name` on `backend`, a name that has been checked.

    Every compiled backend is reached through the same ``torch.ops`` entry, which dispatches by
    device; the reference is called as it stands.
    """
    return getattr(reference if backend == "reference" else torch.ops.fassd_kernels, name)


conv_act = torch.ops.fassd_kernels.conv_act
asymmetric_conv = torch.ops.fassd_kernels.asymmetric_conv
dapf = torch.ops.fassd_kernels.dapf
mda = torch.ops.fassd_kernels.mda
upsample_conv1x1 = torch.ops.fassd_kernels.upsample_conv1x1
upsample = torch.ops.fassd_kernels.upsample
upsample_argmax = torch.ops.fassd_kernels.upsample_argmax
normalize = torch.ops.fassd_kernels.normalize
