"""The backends, the one that a call uses, and the reasons against the others.

A backend is one row of the table built in :func:`backends`. If it was requested by name and cannot
run, :class:`BackendError` gives the reason; if it was chosen automatically, the reference runs
instead, with one warning.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from fassd_kernels import choices, ops
from fassd_kernels.checks import FLOATING
from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import INTERPRETED

AUTO = "auto"
BACKEND_VARIABLE = "FASSD_KERNELS_BACKEND"
DISABLE_VARIABLE = "FASSD_KERNELS_DISABLE"
Function = TypeVar("Function", bound=Callable[..., Any])


class BackendError(RuntimeError):
    """A backend was requested by name and cannot be used; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One way to run the operators.

    Attributes:
        name: name for ``backend=``.
        device: type of the device whose tensors it takes, or ``any``.
        operators: names of the operators that it implements.
        why_not: function that returns the reason why it is not available, or an empty text. It is
            only called when needed: a process that uses the CPU must not start CUDA.
        describe: function that returns details for the user, such as the instruction set.
        dtypes: floating types that it takes.
        refuses: function that returns the reason why it cannot take a device and type, or an empty
            text.
    """

    name: str
    device: str
    operators: frozenset[str]
    why_not: Callable[[], str]
    describe: Callable[[], str]
    dtypes: tuple[torch.dtype, ...] = FLOATING
    refuses: Callable[[torch.device, torch.dtype | None], str] = lambda device, dtype: ""

    @property
    def reason(self) -> str:
        """The reason why it is not available; empty if it is."""
        return self.why_not()

    @property
    def detail(self) -> str:
        """The hardware that it runs on; empty if it is not available."""
        return "" if self.reason else self.describe()

    @property
    def available(self) -> bool:
        return not self.reason

    def takes(self, device_type: str) -> bool:
        """True if this backend takes tensors on a device of this type."""
        return self.device in ("any", device_type)

    def accepts(self, dtype: torch.dtype) -> bool:
        """True if this backend takes tensors of this dtype."""
        return dtype in self.dtypes


@dataclass(frozen=True)
class TritonBackend(Backend):
    """Triton's backend. While calls are only planned, it needs no GPU and takes any tensors."""

    @property
    def reason(self) -> str:
        return availability.triton_missing() if availability.is_recording() else super().reason

    def takes(self, device_type: str) -> bool:
        return availability.is_recording() or super().takes(device_type)

    def accepts(self, dtype: torch.dtype) -> bool:
        return dtype in (availability.TYPES if availability.is_recording() else self.dtypes)


@dataclass(frozen=True)
class Environment:
    """The result of :func:`backends`: iterate over its backends, or print it as a report."""

    backends: tuple[Backend, ...]
    facts: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self.backends)

    def __getitem__(self, name: str) -> Backend:
        for backend in self.backends:
            if backend.name == name:
                return backend
        names = ", ".join([AUTO, *(backend.name for backend in self.backends)])
        raise BackendError(f"backend is {name!r}; expected one of {names}")

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.facts, *(b.name for b in self.backends)))
        lines = [f"{name:<{width}}  {value}" for name, value in self.facts.items()]
        lines.append("")
        for backend in self.backends:
            state = "available" if backend.available else "not available"
            why = backend.reason or backend.detail
            lines.append(f"{backend.name:<{width}}  {state}{': ' if why else ''}{why}")
        return "\n".join(lines)

    __repr__ = __str__


@functools.cache
def build_record() -> dict[str, str]:
    """The record of ``setup.py`` from when it built, or could not build, the extensions."""
    path = Path(__file__).with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}


def describe_cpu() -> str:
    """The instruction set that the C++ CPU kernels use."""
    return f"C++, {ops.CPU_CAPABILITY}"


def cpu_reason() -> str:
    if ops.CPU_MISSING is None:
        return ""
    if build_record().get("cpu_missing"):
        return build_record()["cpu_missing"]
    folder = Path(__file__).parents[1]
    absent = importlib.util.find_spec(f"{__package__}._C") is None
    if absent and (folder / "setup.py").exists():
        return (
            f"these are the sources in {folder}, not the installed package: "
            "start Python in another folder, or install with pip install -e ."
        )
    return f"fassd_kernels._C: {ops.CPU_MISSING}"


@functools.cache
def cuda_reason() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if ops.CUDA_MISSING is not None:
        return build_record().get("cuda_missing") or f"fassd_kernels._C_cuda: {ops.CUDA_MISSING}"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU is seen"
    return ""


def describe_cuda() -> str:
    return f"compiled for {', '.join(ops.compiled_architectures())}; {torch.cuda.get_device_name()}"


def cuda_refuses(device: torch.device, dtype: torch.dtype | None) -> str:
    """:func:`ops.cuda_refusal` for a device that may lack an index, and for any dtype."""
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return ops.cuda_refusal(device, dtype or torch.float32)


@functools.cache
def backends() -> Environment:
    """Every backend, with the reason if it is not available, and the versions that matter.

    Returns:
        An :class:`Environment`; ``print(fassd_kernels.backends())`` is the report that
        ``python -m fassd_kernels`` shows.
    """
    every = frozenset(OPERATORS)
    table = [
        Backend("cpu", "cpu", every, cpu_reason, describe_cpu),
        Backend(
            "cuda",
            "cuda",
            every,
            cuda_reason,
            describe_cuda,
            ops.CUDA_TYPES,
            cuda_refuses,
        ),
        Backend("reference", "any", every, lambda: "", lambda: "plain PyTorch"),
    ]
    triton = TritonBackend(
        "triton",
        "cpu" if INTERPRETED else "cuda",
        every,
        availability.reason,
        availability.describe,
        availability.DTYPES,
        availability.refuses,
    )
    # The interpreter is used only by name: it comes after the backends at which `auto` stops.
    table.insert(len(table) if INTERPRETED else 2, triton)
    return Environment(tuple(table), facts())


def facts() -> dict[str, str]:
    """Versions and build facts, in the order of display."""
    record = build_record()
    try:
        version = importlib.metadata.version("fassd-net")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed (run from the source tree)"
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU only"
    variables = (BACKEND_VARIABLE, DISABLE_VARIABLE)
    switched = {name: os.environ[name] for name in variables if os.environ.get(name)}
    return {
        **switched,
        "fassd-net": version,
        "python": f"{platform.python_version()} on {platform.machine()}",
        "triton": triton_version(),
        "torch": f"{torch.__version__}{cuda}, {torch.get_num_threads()} threads",
        "compiler": record.get("compiler", "not recorded"),
        "nvcc": record.get("nvcc", "not recorded"),
        "built with": record.get("torch", "not recorded"),
    }


def triton_version() -> str:
    for name in ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def constant_result(function: Function) -> Function:
    """torch.compiler.assume_constant_result without its import of torch._dynamo, which takes over a
    second and fails if no temporary folder can be written."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@functools.cache
def switches() -> tuple[bool, str]:
    """What the environment says of all modules at once; read once, when it is first asked for.

    Returns:
        Whether ``FASSD_KERNELS_DISABLE`` lets them compute by plain PyTorch, and the backend that
        ``FASSD_KERNELS_BACKEND`` makes of ``auto``.

    Raises:
        BackendError: a variable has none of its values.
    """
    off, backend = os.environ.get(DISABLE_VARIABLE, ""), os.environ.get(BACKEND_VARIABLE, "")
    if off not in ("", "0", "1"):
        raise BackendError(f"{DISABLE_VARIABLE} is {off!r}; expected 0, 1 or nothing")
    known = [AUTO, *(each.name for each in backends())]
    if backend not in ("", *known):
        raise BackendError(f"{BACKEND_VARIABLE} is {backend!r}; expected one of {', '.join(known)}")
    return off == "1", backend or AUTO


@constant_result
def disabled() -> bool:
    """Whether all modules compute by plain PyTorch, as ``FASSD_KERNELS_DISABLE=1`` asks."""
    return switches()[0]


@constant_result
def meant(name: str) -> str:
    """The backend that a module's ``backend`` stands for: of ``auto``, what the environment makes
    of it; where all is :func:`disabled`, the reference."""
    off, backend = switches()
    if off:
        return "reference"
    return backend if name == AUTO else name


def described(name: str) -> str:
    """The backend that a module's ``backend`` stands for, and who asked for it, for an error."""
    return f"backend {meant(name)!r}" + (f" ({BACKEND_VARIABLE})" if name == AUTO else "")


def check_available(name: str) -> None:
    """Raise BackendError where the backend that a module insists on is unknown or missing."""
    wanted = meant(name)
    if wanted != AUTO and not backends()[wanted].available:
        raise BackendError(f"{described(name)}: {backends()[wanted].reason}")


@constant_result
def choose(
    name: str,
    device: torch.device | str,
    operator: str,
    quiet: bool = False,
    dtype: torch.dtype | None = None,
    key: str = "",
) -> str:
    """Choose the backend that runs `operator` on tensors of a device.

    Of those that can, ``auto`` takes the one that was measured to be fastest for such a call on
    this GPU (:mod:`fassd_kernels.choices`), and where nothing was measured the first of the table;
    or, where the environment says what it means (:func:`meant`), that one.

    Args:
        name: name of a backend, or ``auto``.
        device: device of the tensors: ``cpu``, ``cuda``, ``cuda:1``, ...
        operator: name of the operator.
        quiet: True suppresses the warning about a fallback.
        dtype: dtype of the tensors, if known.
        key: key of the call's shapes (:func:`choices.shape_key`), if known.

    Raises:
        BackendError: the requested backend is unknown, not available, or cannot take this device,
            operator or dtype.
    """
    place = torch.device(device)
    table = backends()
    wanted = meant(name)
    if wanted != AUTO:
        reason = refusal(table[wanted], place, operator, dtype)
        if reason:
            raise BackendError(f"{described(name)} cannot run {operator} on {place}: {reason}")
        return wanted
    able = [b.name for b in table if not refusal(b, place, operator, dtype)]
    best = (choices.best(place, key, able) if key else None) or able[0]
    if best == "reference" and not quiet:
        say_fallback(place, operator, dtype)
    return best


def refusal(
    backend: Backend, device: torch.device, operator: str, dtype: torch.dtype | None = None
) -> str:
    """The reason why `backend` cannot run `operator` on `device` and `dtype`; empty if it can."""
    if not backend.takes(device.type):
        return f"it takes {backend.device} tensors"
    if dtype is not None and not backend.accepts(dtype):
        names = ", ".join(str(accepted) for accepted in backend.dtypes)
        return f"it takes {names}, not {dtype}"
    if not backend.available:
        return backend.reason
    if operator not in backend.operators:
        return f"it has no {operator} yet, only {', '.join(sorted(backend.operators))}"
    return backend.refuses(device, dtype)


@functools.cache
def say_fallback(device: torch.device, operator: str, dtype: torch.dtype | None = None) -> None:
    """Warn, once per device, operator and dtype, that the reference is used."""
    reasons = [
        f"{backend.name}: {refusal(backend, device, operator, dtype)}"
        for backend in backends()
        if backend.device == device.type
    ]
    because = "; ".join(reasons) or f"there is no backend for {device.type}"
    warnings.warn(
        f"fassd_kernels: {operator} on {device} runs on the reference operators ({because})",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def say_disabled() -> None:
    """Say, once, that no kernels are used, where that is so."""
    if disabled():
        warnings.warn(
            f"fassd_kernels: {DISABLE_VARIABLE}=1: modules compute by plain PyTorch",
            RuntimeWarning,
            stacklevel=3,
        )
