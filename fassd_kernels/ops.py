"""Registration of the operators with PyTorch: schema, fast path, fake kernel, autograd.

After ``import fassd_kernels``, each operator is ``torch.ops.fassd_kernels.NAME`` (and
``fassd_kernels.ops.NAME``). PyTorch's dispatcher chooses by device: on a CPU the compiled kernels;
on a GPU the CUDA kernels, where these cannot, Triton's, and where these cannot either, the
reference.

Backends of a GPU are also reached by name, each in a namespace of its own
(``torch.ops.fassd_kernels_cuda.NAME``, ``torch.ops.fassd_kernels_triton.NAME``), which is what the
fused modules do: there results may be padded, their pixels whole vectors apart, for the next kernel
to load.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fassd_kernels import reference
from fassd_kernels.autocast import casting, is_tensors
from fassd_kernels.checks import FLOATING, check_storage
from fassd_kernels.reference.aspp import check_aspp
from fassd_kernels.reference.asymmetric_conv import check_asymmetric_conv
from fassd_kernels.reference.conv_act import check_conv_act
from fassd_kernels.reference.dapf import check_dapf
from fassd_kernels.reference.hardblock import check_hardblock
from fassd_kernels.reference.mda import check_mda
from fassd_kernels.reference.normalize import check_normalize
from fassd_kernels.reference.normalize_conv_act import check_normalize_conv_act
from fassd_kernels.reference.pack_weight import check_pack_weight
from fassd_kernels.reference.upsample import check_upsample, check_upsample_argmax
from fassd_kernels.reference.upsample_conv1x1 import check_upsample_conv1x1
from fassd_kernels.triton import availability
from fassd_kernels.triton.layout import empty_image
from fassd_kernels.triton.program import tf32_requested

NAMESPACE = "fassd_kernels"
TRITON_NAMESPACE = "fassd_kernels_triton"
CUDA_NAMESPACE = "fassd_kernels_cuda"
EMULATED_NAMESPACE = "fassd_kernels_cuda_emulated"
# Backends whose results may be padded, and the namespaces of their operators.
NAMESPACES = {
    "cuda": CUDA_NAMESPACE,
    "triton": TRITON_NAMESPACE,
    "cuda-emulated": EMULATED_NAMESPACE,
}
# The library of the CUDA kernels compiled for a CPU (tests/cuda_emulation), if any: the backend
# cuda-emulated, for tests.
EMULATION = os.environ.get("FASSD_KERNELS_EMULATION", "")


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
    "normalize_conv_act": check_normalize_conv_act,
}


# Results that a network gives out; they are never padded.
DENSE = ("upsample", "normalize")


def type_of(name: str, image: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """The floating type that a call computes in; None where there is no tensor to tell."""
    if name == "normalize":
        return keywords.get("dtype")
    if name == "normalize_conv_act":
        image = arguments[0] if arguments else keywords.get("weight")
    return getattr(image, "dtype", None)


def fake(name: str, namespace: str) -> Callable[..., Tensor]:
    """What an operator allocates: images are channels_last, whatever the inputs' strides."""
    check = CHECKS[name]
    padded = namespace != NAMESPACE

    def kernel(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        keep_whole(getattr(getattr(torch.ops, namespace), name).default)
        keywords.pop("allow_tf32", None)
        size = check(first, *arguments, **keywords)
        like = first[0] if is_tensors(first) else first
        if name == "upsample_argmax":
            return like.new_empty(size, dtype=torch.uint8)
        dtype = type_of(name, like, arguments, keywords)
        return empty_image(size, dtype, like.device, padded and name not in DENSE)

    return kernel


def keep_whole(overload: Any) -> None:
    """Tell Inductor, once it is imported, to call an operator although it has a decomposition.

    Otherwise Inductor calls it too, by a fallback of its own; but where the environment variable
    ``CI`` is set, it takes the decomposition for a mistake and raises.
    """
    if "torch._inductor.lowering" not in sys.modules:
        return  # its import takes a second, which only a compiler should ask for
    import torch._inductor.lowering as lowering

    if overload in lowering.lowerings:
        return
    tag = torch._library.utils.get_layout_constraint_tag(overload, with_default=True)
    constraint = lowering.tag_to_layout_constraint(tag)
    lowering.make_fallback(overload, layout_constraint=constraint, warn=False)


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
    # The reference has no use for how a kernel may multiply.
    ctx.keywords = {k: v for k, v in keyword_only_inputs.items() if k != "allow_tf32"}


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
        check_storage("backward", "the gradient", grad)
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
    "normalize_conv_act",
)

# Why the compiled extensions are not there; None where they are. A torch without CUDA lacks the
# symbols that _C_cuda needs, so it is not even tried there.
CPU_MISSING = load_extension("_C")
CUDA_MISSING = load_extension("_C_cuda") if torch.version.cuda else "torch has no CUDA"
# The instruction set of the C++ kernels, asked once: the operator returns a string, which
# torch.jit.trace would not let pass.
CPU_CAPABILITY = torch.ops.fassd_kernels.cpu_capability() if CPU_MISSING is None else ""
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")
_CUDA_LIBRARIES = {CUDA_NAMESPACE: torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")}
if EMULATION:
    _CUDA_LIBRARIES[EMULATED_NAMESPACE] = torch.library.Library(EMULATED_NAMESPACE, "FRAGMENT")
    torch.ops.load_library(EMULATION)


def held_memory() -> int:
    """Bytes of activations and scratch that the C++ CPU kernels hold, kept ones included."""
    return torch.ops.fassd_kernels.held_memory() if CPU_MISSING is None else 0


def release_memory() -> int:
    """Give back what the C++ CPU kernels keep between calls and do not use; returns the bytes.

    They keep up to 1.25 times of what was in use lately, for the next picture.
    """
    return torch.ops.fassd_kernels.release_memory() if CPU_MISSING is None else 0


def pieces_of(tensors: Sequence[Tensor]) -> Any:
    """Where the values of tensors on the CPU lie: an array of addresses and numbers of bytes.

    It is right as long as the tensors keep their storages, sizes and strides. Of a view that leaves
    values out, these are in it too.

    Raises:
        RuntimeError: a tensor's storage is smaller than the tensor.
    """
    pieces: list[int] = []
    for tensor in tensors:
        check_storage("checksum", "a tensor", tensor)
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        pieces += tensor.data_ptr(), size
    return (ctypes.c_int64 * len(pieces))(*pieces)


def checksum(pieces: Any) -> int | None:
    """A number that differs where the values in pieces of memory do, but for one time in 2^64.

    Args:
        pieces: of `pieces_of`.

    Returns:
        The number; None where the C++ extension is not built.
    """
    return _CHECKSUM and _CHECKSUM(pieces, len(pieces) // 2)


def load_checksum() -> Any:
    """The function of the C++ extension that sums up memory, called by its address."""
    if CPU_MISSING is not None:
        return None
    # The one that PyDLL gives keeps the interpreter's lock: it is done before another thread wakes.
    library = ctypes.PyDLL(importlib.import_module("fassd_kernels._C").__file__)
    function = library.fassd_kernels_checksum
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    function.restype = ctypes.c_uint64
    return function


_CHECKSUM = load_checksum()


def register() -> None:
    for name, schema in SCHEMAS.items():
        if CPU_MISSING is not None:
            _LIBRARY.define(schema)
        _LIBRARY.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        _LIBRARY.impl(name, on_gpu(name), "CUDA")
        complete(name, NAMESPACE, _LIBRARY)
        _TRITON_LIBRARY.define(schema)
        _TRITON_LIBRARY.impl(name, through_triton(name), "CompositeExplicitAutograd")
        complete(name, TRITON_NAMESPACE, _TRITON_LIBRARY)
        for namespace, library in _CUDA_LIBRARIES.items():
            library.define(cuda_schema(name))
            library.impl(name, not_on_gpu(name), "CompositeExplicitAutograd")
            complete(name, namespace, library)


def cuda_schema(name: str) -> str:
    """The schema of a CUDA kernel: where it multiplies, it may be allowed to round to TF32."""
    if name not in AUTOCAST:
        return SCHEMAS[name]
    arguments, _, result = SCHEMAS[name].rpartition(") -> ")
    comma = ", " if "*" in arguments else ", *, "
    return f"{arguments}{comma}bool allow_tf32=False) -> {result}"


def not_on_gpu(name: str) -> Callable[..., Tensor]:
    """What a CUDA kernel's operator does with tensors that it has no kernel for."""
    check = check_pack_weight if name == "pack_weight" else CHECKS[name]

    def call(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        keywords.pop("allow_tf32", None)
        check(first, *arguments, **keywords)  # what is wrong in itself comes first
        image = first[0] if is_tensors(first) else first
        raise RuntimeError(
            f"{name}: the cuda backend takes tensors on an NVIDIA GPU, not on {image.device}"
        )

    return call


def complete(name: str, namespace: str, library: torch.library.Library) -> None:
    """Register what an operator has besides its kernels: fake kernel, autocast, gradient."""
    qualified = f"{namespace}::{name}"
    if name in CHECKS:  # not pack_weight: its result is the backend's own affair
        torch.library.register_fake(qualified, fake(name, namespace), lib=library)
        # What `torch.onnx.export` makes of it; `torch.compile` and `torch.export` keep it whole.
        overload = getattr(getattr(torch.ops, namespace), name).default
        torch._decomp.register_decomposition(overload)(standard(name))
    if name in AUTOCAST:
        call = getattr(getattr(torch.ops, namespace), name)
        library.impl(name, casting(call, "cpu"), "AutocastCPU")
        library.impl(name, casting(call, "cuda"), "AutocastCUDA")
    if name not in WITHOUT_GRADIENT:
        torch.library.register_autograd(
            qualified,
            backward_through(getattr(reference, name)),
            setup_context=(
                save_arguments if "*" in schema_of(name, namespace) else save_positional_arguments
            ),
            lib=library,
        )


def standard(name: str) -> Callable[..., Tensor]:
    """The reference of an operator, with all that any backend's operator takes."""
    function = getattr(reference, name)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Tensor:
        keywords.pop("allow_tf32", None)
        return function(*arguments, **keywords)

    return call


def schema_of(name: str, namespace: str) -> str:
    return cuda_schema(name) if namespace in _CUDA_LIBRARIES else SCHEMAS[name]


def through_triton(name: str) -> Callable[..., Tensor]:
    """An operator on Triton's kernels, or an error that says why that cannot be."""
    check = check_pack_weight if name == "pack_weight" else CHECKS[name]

    def call(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        image = first[0] if is_tensors(first) and first else first
        dtype = type_of(name, image, arguments, keywords)
        if isinstance(image, Tensor):
            why = availability.refusal(image.device, dtype)
            if why:
                check(first, *arguments, **keywords)  # what is wrong in itself comes first
                raise RuntimeError(f"{name}: {why}")
        return triton_operator(name)(first, *arguments, **keywords, padded=True)

    return call


def on_gpu(name: str) -> Callable[..., Tensor]:
    """An operator on a GPU: the CUDA kernel, or else Triton's, or else the reference."""
    fallback = getattr(reference, name)

    def call(first: Any, *arguments: Any, **keywords: Any) -> Tensor:
        image = first[0] if is_tensors(first) and first else first
        if isinstance(image, Tensor):
            dtype = type_of(name, image, arguments, keywords)
            if CUDA_MISSING is None and not cuda_refusal(image.device, dtype):
                return dense(operator(name, "cuda")(first, *arguments, **keywords))
            why = availability.refusal(image.device, dtype)
            if not why:
                return triton_operator(name)(first, *arguments, **keywords)
            if dtype in FLOATING and name != "pack_weight":
                availability.say_fallback(name, why)
        return fallback(first, *arguments, **keywords)

    return call


def dense(image: Tensor) -> Tensor:
    """An image whose pixels follow each other: what was padded is copied."""
    if image.dim() != 4 or image.is_contiguous(memory_format=torch.channels_last):
        return image
    return image.contiguous(memory_format=torch.channels_last)


OLDEST_CUDA_GPU = (7, 5)
OLDEST_BFLOAT16_GPU = (8, 0)
CUDA_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def cuda_refusal(device: torch.device, dtype: torch.dtype | None) -> str:
    """Why the CUDA kernels cannot run on a GPU and type; empty if they can."""
    if dtype not in CUDA_TYPES:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in CUDA_TYPES)
        return f"the cuda backend takes {names}, not {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if not runs_on(compiled_architectures(), capability):
        built = ", ".join(compiled_architectures())
        return f"{name} is of compute capability {shown(capability)}; compiled for {built}"
    if dtype == torch.bfloat16 and capability < OLDEST_BFLOAT16_GPU:
        return f"bfloat16 needs compute capability 8.0; {name} has {shown(capability)}"
    return ""


def shown(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


@functools.cache
def compiled_architectures() -> tuple[str, ...]:
    """Compute capabilities that ``_C_cuda`` was compiled for; ``+PTX`` serves later ones too."""
    path = Path(__file__).with_name("_build.json")
    record = json.loads(path.read_text()) if path.exists() else {}
    found = re.split(r"[;\s]+", record.get("architectures", ""))
    return tuple(arch for arch in found if arch) or (f"{shown(OLDEST_CUDA_GPU)}+PTX",)


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for `architectures` runs on a GPU: of the same major version and no later minor
    one, or, as PTX, of any earlier version."""
    for text in architectures:
        major, minor = (int(n) for n in re.findall(r"\d+", text)[:2])
        same = major == capability[0] and minor <= capability[1]
        if same or (text.endswith("+PTX") and (major, minor) <= capability):
            return capability >= OLDEST_CUDA_GPU
    return False


def triton_operator(name: str) -> Callable[..., Tensor]:
    """A function of :mod:`fassd_kernels.triton`, imported when it is first wanted."""
    from fassd_kernels.triton.operators import OPERATORS

    return OPERATORS[name]


register()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that runs operator `name` on `backend`, a name that has been checked.

    The C++ backend of the CPU is reached through the ``torch.ops`` entry that dispatches by device;
    the reference is called as it stands.
    """
    if backend == "reference":
        return getattr(reference, name)
    function = getattr(getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)), name)
    if backend.startswith("cuda") and name in AUTOCAST and tf32_requested():
        return functools.partial(function, allow_tf32=True)
    return function


def packer(backend: str) -> Callable[..., Tensor]:
    """What lays weights out for `backend`."""
    return getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)).pack_weight


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
normalize_conv_act = torch.ops.fassd_kernels.normalize_conv_act
