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
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fassd_kernels.autocast import casting
from fassd_kernels.autograd import register_gradient
from fassd_kernels.checks import FLOATING, check_storage
from fassd_kernels.operators import OPERATORS, Operator
from fassd_kernels.triton import availability
from fassd_kernels.triton.layout import empty_image
from fassd_kernels.triton.program import tf32_requested

NAMESPACE = "fassd_kernels"
TRITON_NAMESPACE = "fassd_kernels_triton"
CUDA_NAMESPACE = "fassd_kernels_cuda"
# Backends whose results may be padded, and the namespaces of their operators.
NAMESPACES = {"cuda": CUDA_NAMESPACE, "triton": TRITON_NAMESPACE}
# Of the C++ extension alone: what training on a CPU calls (fassd_kernels.modules.training, and the
# loss of fassd.training), with gradients of its own in place of a reference's.
TRAINING = (
    "batch_norm_act",
    "batch_norm_act_backward",
    "upsample_backward",
    "pixel_losses",
    "pixel_losses_backward",
)
# Likewise, what pictures that are done in strips call (fassd_kernels.modules.strips).
STRIPS = ("upsample_rows", "upsample_argmax_rows", "upsample_conv1x1_rows")
SCHEMAS = {name: row.schema for name, row in OPERATORS.items()}


def load_extension(name: str) -> str | None:
    """Import ``fassd_kernels.<name>``; return None, or the reason why that is not possible."""
    try:
        importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        return str(error)
    return None


# --- fake kernels: shape, dtype and layout of the result, and the same refusals -------------------


def fake(row: Operator, namespace: str) -> Callable[..., Tensor]:
    """What an operator allocates: images are channels_last, whatever the inputs' strides."""
    # Results that a network gives out are dense, whatever the backend.
    padded = namespace != NAMESPACE and row.multiplies

    def kernel(*arguments: Any, **keywords: Any) -> Tensor:
        keep_whole(overload(row, namespace))
        call = row.bind(arguments, keywords)
        size = row.check(**call)
        like = row.first_image(call)
        if row.gives_labels:
            return like.new_empty(size, dtype=torch.uint8)
        return empty_image(size, row.dtype(call), like.device, padded)

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


# --- the compiled extensions ----------------------------------------------------------------------


def load_cpu_extension() -> tuple[str | None, str, Any]:
    """Import the extension with the operators of the CPU, and what it offers besides.

    Returns:
        Why it cannot be used, or None where it can; the instruction set of its kernels; its
        function that sums up memory, called by its address.
    """
    reason = load_extension("_C")
    if reason is not None:
        return reason, "", None
    try:
        path = importlib.import_module(f"{__package__}._C").__file__
        # The one that PyDLL gives keeps the interpreter's lock: it is done before another thread
        # wakes.
        function = ctypes.PyDLL(path).fassd_kernels_checksum
        for name in (*OPERATORS, *TRAINING, *STRIPS):
            getattr(torch.ops.fassd_kernels, name)
        # Asked once: the operator returns a string, which torch.jit.trace would not let pass.
        capability = torch.ops.fassd_kernels.cpu_capability()
    except AttributeError as error:
        return f"it was built from other sources than these, build it again: {error}", "", None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    function.restype = ctypes.c_uint64
    return None, capability, function


def overload(row: Operator, namespace: str) -> Any:
    """The one overload of a registered operator."""
    return getattr(getattr(torch.ops, namespace), row.name).default


# The names of the operators are the process's: a second copy of this package, the installed one
# beside one of the Hugging Face hub's, would end it.
# Triton's namespace is this file's alone; the other may be of the extension, loaded by its path.
if f"{__package__}._C" not in sys.modules and torch._C._dispatch_has_kernel(
    f"{TRITON_NAMESPACE}::{next(iter(OPERATORS))}"
):
    raise ImportError(
        f"{__package__}: another copy of fassd_kernels is loaded in this process, and has its "
        "operators registered; use one of the two"
    )

# Why the compiled extensions are not there; None where they are. A torch without CUDA lacks the
# symbols that _C_cuda needs, so it is not even tried there.
CPU_MISSING, CPU_CAPABILITY, _CHECKSUM = load_cpu_extension()
CUDA_MISSING = load_extension("_C_cuda") if torch.version.cuda else "torch has no CUDA"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")
_CUDA_LIBRARY = torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")


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


# --- registration ---------------------------------------------------------------------------------


def register() -> None:
    for name, row in OPERATORS.items():
        qualified = f"{NAMESPACE}::{name}"
        if not torch._C._dispatch_has_kernel(qualified):
            _LIBRARY.define(row.schema)
        elif CPU_MISSING is not None:  # kernels of other sources, which may compute something else
            _LIBRARY.impl(name, row.reference, "CPU")
        _LIBRARY.impl(name, row.reference, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, on_gpu(row), "CUDA")
        complete(row, NAMESPACE, _LIBRARY)
        _TRITON_LIBRARY.define(row.schema)
        _TRITON_LIBRARY.impl(name, through_triton(row), "CompositeExplicitAutograd")
        complete(row, TRITON_NAMESPACE, _TRITON_LIBRARY)
        _CUDA_LIBRARY.define(row.cuda_schema)
        _CUDA_LIBRARY.impl(name, not_on_gpu(row), "CompositeExplicitAutograd")
        complete(row, CUDA_NAMESPACE, _CUDA_LIBRARY)


def complete(row: Operator, namespace: str, library: torch.library.Library) -> None:
    """Register what an operator has besides its kernels: fake kernel, autocast, gradient."""
    name = row.name
    if not row.packs:  # whose result is the backend's own affair
        shaped = fake(row, namespace)
        torch.library.register_fake(f"{namespace}::{name}", shaped, lib=library)
        # What `torch.onnx.export` makes of it; `torch.compile` and `torch.export` keep it whole.
        torch._decomp.register_decomposition(overload(row, namespace))(standard(row))
        # Where sizes are free, PyTorch would trace that in place of the fake kernel: for half a
        # minute, and to a result that is not padded.
        torch._decomp.register_decomposition(overload(row, namespace), type="meta")(shaped)
    if row.multiplies:
        call = getattr(getattr(torch.ops, namespace), name)
        library.impl(name, casting(call, "cpu"), "AutocastCPU")
        library.impl(name, casting(call, "cuda"), "AutocastCUDA")
    if row.has_gradient:
        register_gradient(row, namespace, library)


def standard(row: Operator) -> Callable[..., Tensor]:
    """The reference of an operator, with all that any backend's operator takes."""

    @functools.wraps(row.reference)
    def call(*arguments: Any, **keywords: Any) -> Tensor:
        return row.reference(**row.bind(arguments, keywords))

    return call


def not_on_gpu(row: Operator) -> Callable[..., Tensor]:
    """What a CUDA kernel's operator does with tensors that it has no kernel for."""

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = row.bind(arguments, keywords)
        row.check(**bound)  # what is wrong in itself comes first
        device = row.first_image(bound).device
        raise RuntimeError(
            f"{row.name}: the cuda backend takes tensors on an NVIDIA GPU, not on {device}"
        )

    return call


def through_triton(row: Operator) -> Callable[..., Tensor]:
    """An operator on Triton's kernels, or an error that says why that cannot be."""

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = row.bind(arguments, keywords)
        image = row.first_image(bound)
        if isinstance(image, Tensor):
            why = availability.refusal(image.device, row.dtype(bound))
            if why:
                row.check(**bound)  # what is wrong in itself comes first
                raise RuntimeError(f"{row.name}: {why}")
        return triton_operator(row)(**bound, padded=True)

    return call


def on_gpu(row: Operator) -> Callable[..., Tensor]:
    """An operator on a GPU: the CUDA kernel, or else Triton's, or else the reference."""
    name = row.name

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = row.bind(arguments, keywords)
        image = row.first_image(bound)
        if isinstance(image, Tensor):
            dtype = row.dtype(bound)
            if CUDA_MISSING is None and not cuda_refusal(image.device, dtype):
                return dense(operator(name, "cuda")(**bound))
            why = availability.refusal(image.device, dtype)
            if not why:
                return triton_operator(row)(**bound)
            if dtype in FLOATING and not row.packs:
                availability.say_fallback(name, why)
        return row.reference(**bound)

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


@functools.cache
def triton_operator(row: Operator) -> Callable[..., Tensor]:
    """A function of :mod:`fassd_kernels.triton`, imported when it is first wanted."""
    return getattr(importlib.import_module(f"{__package__}.triton.{row.family}"), row.name)


register()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that runs operator `name` on `backend`, a name that has been checked.

    The C++ backend of the CPU is reached through the ``torch.ops`` entry that dispatches by device;
    the reference is called as it stands.
    """
    if backend == "reference":
        return OPERATORS[name].reference
    function = getattr(getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)), name)
    if backend == "cuda" and OPERATORS[name].multiplies and tf32_requested():
        return functools.partial(function, allow_tf32=True)
    return function


def packer(backend: str) -> Callable[..., Tensor]:
    """What lays weights out for `backend`."""
    return getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)).pack_weight


globals().update({name: getattr(torch.ops.fassd_kernels, name) for name in OPERATORS})
if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Each operator by its name."""
