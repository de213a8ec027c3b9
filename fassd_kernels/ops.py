"""Registration of the operators with PyTorch: schema, fast path, fake kernel, autograd.

After ``import fassd_kernels``, each operator is ``torch.ops.fassd_kernels.NAME`` (and
``fassd_kernels.ops.NAME``). PyTorch's dispatcher chooses by device: the compiled extension
registers its kernels under ``CPU`` and ``CUDA``; where it has none for CUDA, Triton's run, and
where these cannot, the reference.

Triton's are also ``torch.ops.fassd_kernels_triton.NAME``, for whoever asks for them by name, and
for the fused modules: there results may be padded, their pixels whole vectors apart, for the next
kernel to load.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fassd_kernels import reference
from fassd_kernels.autocast import casting, is_tensors
from fassd_kernels.checks import FLOATING
from fassd_kernels.reference.aspp import check_aspp
from fassd_kernels.reference.asymmetric_conv import check_asymmetric_conv
from fassd_kernels.reference.conv_act import check_conv_act
from fassd_kernels.reference.dapf import check_dapf
from fassd_kernels.reference.hardblock import check_hardblock
from fassd_kernels.reference.mda import check_mda
from fassd_kernels.reference.normalize import check_normalize
from fassd_kernels.reference.pack_weight import check_pack_weight
from fassd_kernels.reference.upsample import check_upsample, check_upsample_argmax
from fassd_kernels.reference.upsample_conv1x1 import check_upsample_conv1x1
from fassd_kernels.triton import availability
from fassd_kernels.triton.layout import empty_image

NAMESPACE = "fassd_kernels"
TRITON_NAMESPACE = "fassd_kernels_triton"


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


# --- fake kernels: shape, dtype and layout of the result, and the same refusals -------------------

CHECKS: dict[str, Callable[..., tuple[int, ...]]] = {
    "conv_act": check_conv_act,
    "asymmetric_conv": check_asymmetric_conv,
    "dapf": check_dapf,
    "aspp": check_aspp,
    "hardblock": check_hardblock,
    "mda": check_mda,
    "upsample_conv1x1": check_upsample_conv1x1,
    "upsample": check_upsample,
    "upsample_argmax": check_upsample_argmax,
    "normalize": check_normalize,
}


# Results that a network gives out; they are never padded.
DENSE = ("upsample", "normalize")


def fake(name: str, padded: bool = False) -> Callable[..., Tensor]:
    """What an operator allocates: images are channels_last, whatever the inputs' strides."""
    check = CHECKS[name]

    def kernel(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        size = check(first, *arguments, **keywords)
        like = first[0] if is_tensors(first) else first
        if name == "upsample_argmax":
            return like.new_empty(size, dtype=torch.uint8)
        dtype = keywords.get("dtype", like.dtype)
        return empty_image(size, dtype, like.device, padded and name not in DENSE)

    return kernel


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


def save_positional_arguments(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """:func:`save_arguments` for an operator without keyword arguments."""
    save_arguments(ctx, inputs, {}, output)


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

WITHOUT_GRADIENT = ("upsample_argmax", "normalize", "pack_weight")
# Those that multiply by weights; resizing keeps its input's type.
AUTOCAST = (
    "conv_act",
    "asymmetric_conv",
    "dapf",
    "aspp",
    "hardblock",
    "mda",
    "upsample_conv1x1",
)

# Why the compiled extensions are not there; None where they are. A torch without CUDA lacks the
# symbols that _C_cuda needs, so it is not even tried there.
CPU_MISSING = load_extension("_C")
CUDA_MISSING = load_extension("_C_cuda") if torch.version.cuda else "torch has no CUDA"
# What csrc/cuda implements.
CUDA_OPERATORS = frozenset({"normalize"})
# The instruction set of the C++ kernels, asked once: the operator returns a string, which
# torch.jit.trace would not let pass.
CPU_CAPABILITY = torch.ops.fassd_kernels.cpu_capability() if CPU_MISSING is None else ""
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")


def held_memory() -> int:
    """Bytes of activations and scratch that the C++ CPU kernels hold, kept ones included."""
    return torch.ops.fassd_kernels.held_memory() if CPU_MISSING is None else 0


def release_memory() -> int:
    """Give back what the C++ CPU kernels keep between calls and do not use; returns the bytes.

    They keep up to 1.25 times of what was in use lately, for the next picture.
    """
    return torch.ops.fassd_kernels.release_memory() if CPU_MISSING is None else 0


def register() -> None:
    for name, schema in SCHEMAS.items():
        if CPU_MISSING is not None:
            _LIBRARY.define(schema)
        _LIBRARY.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        if CUDA_MISSING is not None or name not in CUDA_OPERATORS:
            _LIBRARY.impl(name, on_gpu(name), "CUDA")
        complete(name, NAMESPACE, _LIBRARY)
        _TRITON_LIBRARY.define(schema)
        _TRITON_LIBRARY.impl(name, through_triton(name), "CompositeExplicitAutograd")
        complete(name, TRITON_NAMESPACE, _TRITON_LIBRARY)


def complete(name: str, namespace: str, library: torch.library.Library) -> None:
    """Register what an operator has besides its kernels: fake kernel, autocast, gradient."""
    qualified = f"{namespace}::{name}"
    if name in CHECKS:  # not pack_weight: its result is the backend's own affair
        kernel = fake(name, padded=namespace == TRITON_NAMESPACE)
        torch.library.register_fake(qualified, kernel, lib=library)
    if name in AUTOCAST:
        call = getattr(getattr(torch.ops, namespace), name)
        library.impl(name, casting(call, "cpu"), "AutocastCPU")
        library.impl(name, casting(call, "cuda"), "AutocastCUDA")
    if name not in WITHOUT_GRADIENT:
        torch.library.register_autograd(
            qualified,
            backward_through(getattr(reference, name)),
            setup_context=(save_arguments if "*" in SCHEMAS[name] else save_positional_arguments),
            lib=library,
        )


def through_triton(name: str) -> Callable[..., Tensor]:
    """An operator on Triton's kernels, or an error that says why that cannot be."""
    check = check_pack_weight if name == "pack_weight" else CHECKS[name]

    def call(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        image = first[0] if is_tensors(first) and first else first
        dtype = keywords.get("dtype", getattr(image, "dtype", None))
        if isinstance(image, Tensor):
            why = availability.refusal(image.device, dtype)
            if why:
                check(first, *arguments, **keywords)  # what is wrong in itself comes first
                raise RuntimeError(f"{name}: {why}")
        return triton_operator(name)(first, *arguments, **keywords, padded=True)

    return call


def on_gpu(name: str) -> Callable[..., Tensor]:
    """An operator on a GPU that csrc/cuda has no kernel for: Triton's, or else the reference."""
    fallback = getattr(reference, name)

    def call(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        image = first[0] if is_tensors(first) and first else first
        if isinstance(image, Tensor):
            dtype = keywords.get("dtype", image.dtype)
            why = availability.refusal(image.device, dtype)
            if not why:
                return triton_operator(name)(first, *arguments, **keywords)
            if dtype in FLOATING and name != "pack_weight":
                availability.say_fallback(name, why)
        return fallback(first, *arguments, **keywords)

    return call


def triton_operator(name: str) -> Callable[..., Tensor]:
    """A function of :mod:`fassd_kernels.triton`, imported when it is first wanted."""
    from fassd_kernels.triton.operators import OPERATORS

    return OPERATORS[name]


register()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that runs operator `name` on `backend`, a name that has been checked.

    The C++ backends are reached through the same ``torch.ops`` entry, which dispatches by device;
    the reference is called as it stands.
    """
    if backend == "reference":
        return getattr(reference, name)
    namespace = TRITON_NAMESPACE if backend == "triton" else NAMESPACE
    return getattr(getattr(torch.ops, namespace), name)


def packer(backend: str) -> Callable[..., Tensor]:
    """What lays weights out for `backend`."""
    namespace = TRITON_NAMESPACE if backend == "triton" else NAMESPACE
    return getattr(torch.ops, namespace).pack_weight


conv_act = torch.ops.fassd_kernels.conv_act
asymmetric_conv = torch.ops.fassd_kernels.asymmetric_conv
dapf = torch.ops.fassd_kernels.dapf
aspp = torch.ops.fassd_kernels.aspp
hardblock = torch.ops.fassd_kernels.hardblock
mda = torch.ops.fassd_kernels.mda
upsample_conv1x1 = torch.ops.fassd_kernels.upsample_conv1x1
pack_weight = torch.ops.fassd_kernels.pack_weight
upsample = torch.ops.fassd_kernels.upsample
upsample_argmax = torch.ops.fassd_kernels.upsample_argmax
normalize = torch.ops.fassd_kernels.normalize
