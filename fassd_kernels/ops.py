"""Registration of the operators with PyTorch: schema, fast path, fake kernel, autograd.

After ``import fassd_kernels``, each operator is ``torch.ops.fassd_kernels.NAME`` (and
``fassd_kernels.ops.NAME``). PyTorch's dispatcher chooses by device: on a CPU the compiled kernels;
on a GPU the CUDA kernels, or Triton's if those cannot run, or else the reference.

Backends of a GPU can also be called by name, each in its own namespace
(``torch.ops.fassd_kernels_cuda.NAME``, ``torch.ops.fassd_kernels_triton.NAME``), as the fused
modules do: there results may be padded, so that each pixel starts at a whole vector for the next
kernel to load.
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

from fassd_kernels import fakes
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
# Only in the C++ extension: operators for training on a CPU (fassd_kernels.modules.training, and
# the loss of fassd.training), which have gradients of their own instead of a reference's.
TRAINING = (
    "batch_norm_act",
    "batch_norm_act_backward",
    "upsample_backward",
    "pixel_losses",
    "pixel_losses_backward",
)
# Likewise, operators for pictures in strips (fassd_kernels.modules.strips).
STRIPS = (
    "upsample_rows",
    "upsample_argmax_rows",
    "upsample_confidence_rows",
    "upsample_conv1x1_rows",
)
# Likewise, operators on quantised images; reference.quantized defines them.
QUANTIZED = (
    "quantize",
    "quantized_conv_act",
    "pack_quantized_weight",
    "quantized_upsample",
    "quantized_sum",
    "conv_act_quantized",
)
SCHEMAS = {name: row.schema for name, row in OPERATORS.items()}


def load_extension(name: str) -> str | None:
    """Import ``fassd_kernels.<name>``; return None, or the reason why that is impossible."""
    try:
        importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        return str(error)
    return None


# --- fake kernels: shape, dtype and layout of the result, and the same errors ---------------------


def fake(row: Operator, namespace: str) -> Callable[..., Tensor]:
    """The allocation of an operator: images are channels_last, whatever the inputs' strides."""
    # Results at the end of a network are dense, whatever the backend.
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
    """Make Inductor, once it is imported, call an operator although it has a decomposition.

    Inductor does that by default, too; but if the environment variable ``CI`` is set, it regards
    the decomposition as a mistake and raises.
    """
    if "torch._inductor.lowering" not in sys.modules:
        return  # importing it takes a second, which only a compiler should cost
    import torch._inductor.lowering as lowering

    if overload in lowering.lowerings:
        return
    tag = torch._library.utils.get_layout_constraint_tag(overload, with_default=True)
    constraint = lowering.tag_to_layout_constraint(tag)
    lowering.make_fallback(overload, layout_constraint=constraint, warn=False)


# --- the compiled extensions ----------------------------------------------------------------------


def load_cpu_extension() -> tuple[str | None, str, Any]:
    """Import the extension with the operators of the CPU.

    Returns:
        The reason why it cannot be used, or None if it can; the instruction set of its kernels; and
        its function that sums up memory, as a foreign function.
    """
    reason = load_extension("_C")
    if reason is not None:
        return reason, "", None
    try:
        path = importlib.import_module(f"{__package__}._C").__file__
        # PyDLL keeps the interpreter's lock during the call, which ends before another thread could
        # wake up.
        function = ctypes.PyDLL(path).fassd_kernels_checksum
        for name in (*OPERATORS, *TRAINING, *STRIPS, *QUANTIZED):
            getattr(torch.ops.fassd_kernels, name)
        # Called once: the operator returns a string, which torch.jit.trace rejects.
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

# Reasons why the compiled extensions are not available; None if they are. A torch without CUDA
# lacks the symbols that _C_cuda needs, so loading it is not even tried.
CPU_MISSING, CPU_CAPABILITY, _CHECKSUM = load_cpu_extension()
CUDA_MISSING = load_extension("_C_cuda") if torch.version.cuda else "torch has no CUDA"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_TRITON_LIBRARY = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")
_CUDA_LIBRARY = torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")


def held_memory() -> int:
    """Bytes of activations and scratch that the C++ CPU kernels hold, including cached ones."""
    return torch.ops.fassd_kernels.held_memory() if CPU_MISSING is None else 0


def release_memory() -> int:
    """Free the memory that the C++ CPU kernels cache and do not use; returns its bytes.

    They cache up to 1.25 times the memory used recently, for the next picture. On Linux, memory
    that the C library keeps is freed as well; it is not counted.
    """
    return torch.ops.fassd_kernels.release_memory() if CPU_MISSING is None else 0


def pieces_of(tensors: Sequence[Tensor]) -> Any:
    """The memory of tensors on the CPU: an array of addresses and numbers of bytes.

    It is valid as long as the tensors keep their storages, sizes and strides. It includes the
    values that a view leaves out.

    Raises:
        RuntimeError: the storage of a tensor is smaller than the tensor.
    """
    pieces: list[int] = []
    for tensor in tensors:
        check_storage("checksum", "a tensor", tensor)
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        pieces += tensor.data_ptr(), size
    return (ctypes.c_int64 * len(pieces))(*pieces)


def checksum(pieces: Any) -> int | None:
    """A number that changes if the values in pieces of memory do, except once in 2^64 cases.

    Args:
        pieces: result of `pieces_of`.

    Returns:
        The number; None if the C++ extension is not built.
    """
    return _CHECKSUM and _CHECKSUM(pieces, len(pieces) // 2)


# --- registration ---------------------------------------------------------------------------------


def register() -> None:
    for name, row in OPERATORS.items():
        qualified = f"{NAMESPACE}::{name}"
        if not torch._C._dispatch_has_kernel(qualified):
            _LIBRARY.define(row.schema)
        elif CPU_MISSING is not None:  # built from other sources, which may compute something else
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
    for name in QUANTIZED if CPU_MISSING is None else ():
        if name != "pack_quantized_weight":  # whose result depends on the CPU
            shaped = getattr(fakes, name)
            torch.library.register_fake(f"{NAMESPACE}::{name}", shaped, lib=_LIBRARY)


def complete(row: Operator, namespace: str, library: torch.library.Library) -> None:
    """Register the rest of an operator beside its kernels: fake kernel, autocast, gradient."""
    name = row.name
    if not row.packs:  # whose result the backend defines
        shaped = fake(row, namespace)
        torch.library.register_fake(f"{namespace}::{name}", shaped, lib=library)
        # For `torch.onnx.export`; `torch.compile` and `torch.export` keep the operator whole.
        torch._decomp.register_decomposition(overload(row, namespace))(standard(row))
        # With free sizes, PyTorch would trace this instead of the fake kernel: for half a minute,
        # and to a result that is not padded.
        torch._decomp.register_decomposition(overload(row, namespace), type="meta")(shaped)
    if row.multiplies:
        call = getattr(getattr(torch.ops, namespace), name)
        library.impl(name, casting(call, "cpu"), "AutocastCPU")
        library.impl(name, casting(call, "cuda"), "AutocastCUDA")
    if row.has_gradient:
        register_gradient(row, namespace, library)


def standard(row: Operator) -> Callable[..., Tensor]:
    """The reference of an operator, with the arguments that any backend's operator takes."""

    @functools.wraps(row.reference)
    def call(*arguments: Any, **keywords: Any) -> Tensor:
        return row.reference(**row.bind(arguments, keywords))

    return call


def not_on_gpu(row: Operator) -> Callable[..., Tensor]:
    """The function that a CUDA operator runs for tensors that are not on a GPU: it raises."""

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = row.bind(arguments, keywords)
        row.check(**bound)  # errors in the arguments come first
        device = row.first_image(bound).device
        raise RuntimeError(
            f"{row.name}: the cuda backend takes tensors on an NVIDIA GPU, not on {device}"
        )

    return call


def through_triton(row: Operator) -> Callable[..., Tensor]:
    """An operator on Triton's kernels, or an error that gives the reason why that is impossible."""

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = row.bind(arguments, keywords)
        image = row.first_image(bound)
        if isinstance(image, Tensor):
            why = availability.refusal(image.device, row.dtype(bound))
            if why:
                row.check(**bound)  # errors in the arguments come first
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
    """An image with contiguous pixels: padded ones are copied."""
    if image.dim() != 4 or image.is_contiguous(memory_format=torch.channels_last):
        return image
    return image.contiguous(memory_format=torch.channels_last)


OLDEST_CUDA_GPU = (7, 5)
OLDEST_BFLOAT16_GPU = (8, 0)
CUDA_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def cuda_refusal(device: torch.device, dtype: torch.dtype | None) -> str:
    """The reason why the CUDA kernels cannot run on a GPU and type; empty if they can."""
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
    """True if code for `architectures` runs on a GPU: of the same major version and no later minor
    one, or, as PTX, of any earlier version."""
    for text in architectures:
        major, minor = (int(n) for n in re.findall(r"\d+", text)[:2])
        same = major == capability[0] and minor <= capability[1]
        if same or (text.endswith("+PTX") and (major, minor) <= capability):
            return capability >= OLDEST_CUDA_GPU
    return False


@functools.cache
def triton_operator(row: Operator) -> Callable[..., Tensor]:
    """A function of :mod:`fassd_kernels.triton`, which is imported on first use."""
    return getattr(importlib.import_module(f"{__package__}.triton.{row.family}"), row.name)


register()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """The function that runs operator `name` on `backend`, a name that has been checked.

    The C++ backend of the CPU is called through the ``torch.ops`` entry that dispatches by device;
    the reference is called directly.
    """
    if backend == "reference":
        return OPERATORS[name].reference
    function = getattr(getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)), name)
    if backend == "cuda" and OPERATORS[name].multiplies and tf32_requested():
        return functools.partial(function, allow_tf32=True)
    return function


def packer(backend: str) -> Callable[..., Tensor]:
    """The function that lays out weights for `backend`."""
    return getattr(torch.ops, NAMESPACES.get(backend, NAMESPACE)).pack_weight


globals().update({name: getattr(torch.ops.fassd_kernels, name) for name in OPERATORS})
if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Look up an operator by its name."""
