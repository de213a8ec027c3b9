"""What the conformance suite is made of: backends, calls, memory layouts, and the verdict.

A :class:`Call` is an operator's name and its arguments. A test makes one (``conformance.cases``),
and hands it to :func:`check` with a dtype and a memory layout, which runs it on a backend and
compares with the float64 run of the reference on the same, already rounded, inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fassd_kernels
from fassd_kernels import operators, reference
from fassd_kernels.operators import OPERATORS as TABLE
from fassd_kernels.triton.device import INTERPRETED
from fassd_kernels.triton.layout import empty_image

# The backend whose PTX is executed on the CPU (tests/ptx), if any: where PTX_SETTINGS says as on
# which GPU.
EXECUTED = os.environ.get("PTX_BACKEND", "cuda") if "PTX_SETTINGS" in os.environ else ""
if EXECUTED:
    importlib.import_module({"cuda": "ptx.host", "triton": "ptx.triton"}[EXECUTED]).install()

# A new backend is one line: its name in fassd_kernels.backends(), and the devices to run it on.
# Its operators and dtypes are what it says of itself.
DEVICES = {
    "reference": ("cpu", "cuda"),
    "cpu": ("cpu",),
    "cuda": ("cpu",) if EXECUTED == "cuda" else ("cuda",),
    "triton": ("cpu",) if INTERPRETED or EXECUTED == "triton" else ("cuda",),
}

# pack_weight computes nothing: test_packing.py.
OPERATORS = tuple(name for name, row in TABLE.items() if not row.packs)
MULTIPLYING = tuple(name for name, row in TABLE.items() if row.multiplies)
WITH_GRADIENT = tuple(name for name, row in TABLE.items() if row.has_gradient)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCES = {  # of ||out - ref|| / ||ref||
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
    torch.float64: 1e-12,
}
REQUIRE = "FASSD_KERNELS_REQUIRE"  # backends that must be there, separated by commas


# --- backends -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A backend on a device."""

    backend: fassd_kernels.Backend
    device: str

    def __str__(self) -> str:
        name = self.backend.name
        return name if self.device == DEVICES[name][0] else f"{name}@{self.device}"


@dataclass(frozen=True)
class Subject:
    """An operator on a target: what a test examines."""

    operator: str
    target: Target

    @property
    def device(self) -> str:
        return self.target.device

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(dtype for dtype in DTYPES if dtype in self.target.backend.dtypes)

    @property
    def exact(self) -> torch.dtype:
        """The type to be exact in: float64, where the backend takes it."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def half(self) -> torch.dtype:
        """A type for autocast."""
        return torch.bfloat16 if torch.bfloat16 in self.dtypes else torch.float16

    def __call__(self, call: Call) -> Tensor:
        assert call.operator == self.operator
        return call(fassd_kernels.ops.operator(self.operator, self.target.backend.name))

    def __str__(self) -> str:
        return f"{self.operator}-{self.target}"


def device_reason(device: str) -> str:
    """Why tensors cannot be put on `device`; empty if they can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return ""


def required_backends() -> list[str]:
    return [name.strip() for name in os.environ.get(REQUIRE, "").split(",") if name.strip()]


def targets(asked: Sequence[str], devices: Sequence[str]) -> list[Target]:
    """The backends to test, each on its devices.

    Args:
        asked: backends that must be tested; empty for every one that is available.
        devices: devices to restrict the run to; empty for all.

    Raises:
        pytest.UsageError: if a backend that was asked for, or that the environment variable
            ``FASSD_KERNELS_REQUIRE`` names, is not available: nothing passes unexamined.
    """
    known = {backend.name: backend for backend in fassd_kernels.backends()}
    for name in (*asked, *required_backends()):
        if name not in known or name not in DEVICES:
            raise missing(name, f"expected one of {', '.join(DEVICES)}")
        if not known[name].available:
            raise missing(name, known[name].reason)
    chosen = []
    for name in asked or DEVICES:
        places = [device for device in DEVICES[name] if not devices or device in devices]
        present = [device for device in places if not device_reason(device)]
        if name in asked and not present:
            raise missing(name, "; ".join(map(device_reason, places)) or f"not for {devices}")
        if name in known and known[name].available:
            chosen += [Target(known[name], device) for device in present]
    for device in devices:
        if all(target.device != device for target in chosen):
            why = device_reason(device) or "no backend runs on it"
            raise pytest.UsageError(f"device {device!r} is asked for: {why}")
    return chosen


def missing(name: str, reason: str) -> pytest.UsageError:
    return pytest.UsageError(f"backend {name!r} is required: {reason}")


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Without its check of every integer sum for overflow, Triton's interpreter is twice as fast.

    tests/triton_backend/test_every_line.py runs with the check.
    """
    if not INTERPRETED:
        yield
        return
    builder = interpreter.interpreter_builder
    checking = builder.options
    builder.options = dataclasses.replace(checking, sanitize_overflow=False)
    yield
    builder.options = checking


if INTERPRETED:
    interpreter = importlib.import_module("triton.runtime.interpreter")

    @functools.cache
    def builtins_of(module: Any) -> list[str]:
        is_builtin = interpreter.tl.core.is_builtin
        return [name for name, value in inspect.getmembers(module) if is_builtin(value)]

    def patch_builtins(module: Any, builder: Any, scope: Any) -> None:
        """As the interpreter does for each launch, which takes a quarter of its time to look."""
        for name in builtins_of(module):
            value = getattr(module, name)
            if interpreter.tl.core.is_builtin(value):
                interpreter._patch_attr(module, name, value, builder, scope)

    interpreter._patch_builtin = patch_builtins


# --- calls ----------------------------------------------------------------------------------------

IMAGES = (*operators.IMAGES, "residual")


@dataclass(frozen=True)
class Call:
    """An operator's name and its arguments, all by name."""

    operator: str
    arguments: dict[str, Any]

    def __call__(self, function: Callable[..., Tensor]) -> Tensor:
        return function(*self.positional, **self.keywords)

    def with_(self, **changes: Any) -> Call:
        return dataclasses.replace(self, arguments={**self.arguments, **changes})

    @property
    def row(self) -> operators.Operator:
        return TABLE[self.operator]

    @property
    def positional(self) -> tuple[Any, ...]:
        only = self.row.keyword_only
        return tuple(value for name, value in self.arguments.items() if name not in only)

    @property
    def keywords(self) -> dict[str, Any]:
        only = self.row.keyword_only
        return {name: value for name, value in self.arguments.items() if name in only}

    @property
    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self.map(found.append)
        return found

    @property
    def floating(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor.is_floating_point()]

    def map(self, change: Callable[[Tensor], Any], only: Sequence[str] = ()) -> Call:
        """The call with `change` applied to every tensor, or to those of the arguments `only`."""

        def changed(name: str, value: Any) -> Any:
            if only and name not in only:
                return value
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [change(tensor) for tensor in value]
            return value

        return dataclasses.replace(
            self, arguments={name: changed(name, value) for name, value in self.arguments.items()}
        )

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Call:
        """The call in a floating `dtype` (``normalize``: its result's) on `device`."""
        call = self.map(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype))
        return call.with_(dtype=dtype) if "dtype" in call.arguments else call

    def laid_out(self, layout: str) -> Call:
        """The call with its tensors in a memory layout of :data:`LAYOUTS`."""
        # Broadcast weights would make output channels equal, and hide a mistaken one.
        return self.map(LAYOUTS[layout], IMAGES if layout.startswith("expanded") else ())

    def requiring_grad(self) -> Call:
        return self.map(lambda x: x.detach().requires_grad_(x.is_floating_point()))


def expected(call: Call) -> Tensor:
    """The float64 reference on the inputs of `call`, on the CPU."""
    return call.to(torch.float64)(call.row.reference)


# --- memory layouts -------------------------------------------------------------------------------

NCHW, NHWC, NCWH = (0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2)


def poison(shape: Sequence[int], like: Tensor) -> Tensor:
    """A buffer of NaN (255 for integers): what lies around a slice must not be read."""
    value = float("nan") if like.is_floating_point() else 255
    return torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)


def laid_out(
    tensor: Tensor, order: Sequence[int], margins: Sequence[int] = (0, 0, 0, 0), step: int = 1
) -> Tensor:
    """Copy `tensor` into a slice of a poisoned buffer.

    Args:
        tensor: of any rank; one that is not an image (a vector) takes the last margin only.
        order: the axes from the slowest in memory to the fastest.
        margins: per axis, elements of the buffer before and after the slice.
        step: distance of the slice's elements along every axis.
    """
    rank = tensor.dim()
    order = order if rank == 4 else range(rank)
    margins = margins[-rank:]
    sizes = [tensor.shape[axis] * step + 2 * margins[axis] for axis in order]
    buffer = poison(sizes, tensor).permute([list(order).index(axis) for axis in range(rank)])
    region = buffer[
        tuple(slice(m, m + n * step, step) for m, n in zip(margins, tensor.shape, strict=True))
    ]
    return region.copy_(tensor)


def expanded(tensor: Tensor, axis: int) -> Tensor:
    """Repeat the first slice along `axis` by a stride of 0."""
    return tensor.narrow(axis, 0, 1).expand(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: laid_out(x, NCHW),
    "channels_last": lambda x: laid_out(x, NHWC),
    "transposed": lambda x: laid_out(x, NCWH),
    "sliced": lambda x: laid_out(x, NCHW, margins=(1, 2, 1, 3)),
    "sliced_channels": lambda x: laid_out(x, NHWC, margins=(0, 3, 0, 0)),
    "sliced_channels_last": lambda x: laid_out(x, NHWC, margins=(0, 2, 3, 1)),
    "stepped": lambda x: laid_out(x, NCHW, margins=(0, 1, 1, 1), step=2),
    "expanded_batch": lambda x: expanded(x, 0),
    "expanded_channels": lambda x: expanded(x, 1),
    "expanded_width": lambda x: expanded(x, 3),
}


# --- the verdict ----------------------------------------------------------------------------------


def check(
    subject: Subject, call: Call, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> None:
    """Run `call` and hold it to the definition: values, dtype, shape, layout, inputs untouched."""
    call = call.to(dtype, subject.device).laid_out(layout)
    before = snapshot(call)
    result = subject(call)
    for now, then in zip(snapshot(call), before, strict=True):
        assert torch.equal(now, then), f"{subject} writes to its inputs, or around them"
    assert result.device.type == subject.device
    check_result(call, result, may_pad=subject.target.backend.name in fassd_kernels.ops.NAMESPACES)


def snapshot(call: Call) -> list[Tensor]:
    """The bytes of every tensor's whole storage, a slice's surroundings included."""
    return [
        torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage()).clone()
        for x in call.tensors
    ]


def check_result(call: Call, result: Tensor, may_pad: bool = True) -> None:
    """Compare `result` of `call` with the float64 reference."""
    if call.row.gives_labels:
        check_labels(call, result)
        return
    right = expected(call)
    dtype = call.arguments.get("dtype") or call.floating[0].dtype
    assert result.dtype == dtype
    assert result.shape == right.shape
    # A backend may leave lanes between the pixels, for the next kernel to load whole vectors.
    dense, padded = (empty_image(right.shape, dtype, "meta", pad) for pad in (False, True))
    layouts = [dense.stride(), padded.stride()] if may_pad else [dense.stride()]
    dense_too = result.is_contiguous(memory_format=torch.channels_last)
    assert result.stride() in layouts or dense_too or result.numel() == 0, result.stride()
    check_close(result, right, TOLERANCES[dtype])


def check_close(result: Tensor, right: Tensor, tolerance: float) -> None:
    """Compare in norm, and element by element, with `right`, which is float64."""
    difference = result.double().cpu() - right.cpu()
    assert not difference.isnan().any(), f"{int(difference.isnan().sum())} elements are NaN"
    if right.numel() == 0:
        return
    # The suite's results are of the order of 1. Where a handful of elements happen to cancel to
    # nearly nothing, what the terms that cancel leave is no error.
    scale = max(right.pow(2).mean().sqrt().item(), 0.3)
    ratio = difference.pow(2).mean().sqrt().item() / scale
    assert ratio <= tolerance, f"||out - ref|| / ||ref|| is {ratio:.3g}; expected <= {tolerance}"
    # The norm of a large image would let a wrong pixel pass.
    worst = difference.abs().max().item() / max(right.abs().max().item(), scale)
    where = difference.abs().argmax().item()
    assert worst <= 4 * tolerance, f"element {where} is off by {worst:.3g} of the largest"


def check_labels(call: Call, labels: Tensor) -> None:
    """A label may differ where the float64 logits of both are the same within the tolerance."""
    exact = call.to(torch.float64)
    size = {key: exact.arguments[key] for key in ("size", "align_corners") if key in call.arguments}
    logits = reference.upsample(exact.arguments["input"], **size)
    right = logits.argmax(1)
    assert labels.dtype == torch.uint8
    if call.operator == "upsample_confidence":
        assert labels.is_contiguous() and labels.shape[1] == 2
        check_certainty(exact, labels[:, 1], logits, TOLERANCES[call.floating[0].dtype])
        labels = labels[:, 0]
    assert labels.shape == right.shape
    labels = labels.long().cpu()
    assert bool((labels < logits.shape[1]).all())
    best = logits.gather(1, right[:, None])
    gap = (best - logits.gather(1, labels[:, None])).max().item()
    allowed = 4 * TOLERANCES[call.floating[0].dtype] * logits.abs().max().item()
    assert gap <= allowed, f"a label's logit is {gap:.3g} below the largest"


def check_certainty(exact: Call, levels: Tensor, logits: Tensor, tolerance: float) -> None:
    """A level may differ by one, and by what the tolerance of the logits makes of it.

    No measure changes by more than the exponents of the probabilities do.
    """
    right = exact(reference.upsample_confidence)[:, 1]
    off = (levels.cpu().int() - right.int()).abs().max().item()
    finite = logits[logits.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    allowed = 1 + 255 * tolerance * largest / exact.arguments.get("temperature", 1.0)
    assert off <= allowed, f"a certainty is off by {off} of 255; allowed are {allowed:.3g}"


def check_gradients(call: Call, result: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare the gradients of `result` with autograd of the reference.

    Of float64, for a result in float32. Half types are compared among themselves: an activation's
    kink is crossed here and not there by rounding, and a gradient jumps where a result does not.
    Twice the tolerance of a result, because both factors of what a gradient sums are rounded.

    Args:
        call: some of whose tensors require gradients.
        result: what it gave.
        dtype: that it was computed in, if not the leaves'.
    """
    leaves = [x for x in call.floating if x.requires_grad]
    dtype = dtype or leaves[0].dtype
    judge = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float64

    def of_judge(x: Tensor) -> Tensor:
        kind = judge if x.is_floating_point() else x.dtype  # a picture stays one of bytes
        return x.detach().to("cpu", kind).requires_grad_(x.requires_grad)

    twin = call.map(of_judge)
    right = twin(call.row.reference)
    cotangent = torch.randn(right.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    gradients = torch.autograd.grad(result, leaves, cotangent.to(result.device))
    inputs = [x for x in twin.floating if x.requires_grad]
    exact = torch.autograd.grad(right, inputs, cotangent.to(judge))
    for leaf, got, want in zip(leaves, gradients, exact, strict=True):
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        scale = want.double().pow(2).mean().sqrt()
        assert scale > 0, "a gradient of zeros examines nothing"
        check_close(got.double().cpu() / scale, want.double() / scale, 2 * TOLERANCES[dtype])
