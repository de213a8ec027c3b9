"""All ways of computing a network, a module or an operator that are compared, in one table.

`PEERS` are run by `fassd bench peers`: a network as its users write it, other runtimes, ours.
`FORMS` are run by `pytest benchmarks/` and the GPU report: PyTorch in its best forms, and ours
backend by backend. All are built from the same float32 weights and get the same input, and each is
compared with the reference before its speed counts.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fassd.bench import onnx_runtimes
from fassd.bench.folding import fold_batch_norms
from fassd.bench.stopwatch import Call, Inputs, Outputs
from fassd.models.device import DTYPES

ANY_DTYPES = {**DTYPES, "int8": torch.int8}
"""Precisions of peers."""

EAGER = "eager"
FOLDED = "channels_last"
COMPILE = "compile"
MAX_AUTOTUNE = "max-autotune"
NATIVE = "native"
CHOSEN = "auto"
TRITON = "triton"

REFERENCE = EAGER
"""Key of plain PyTorch in float32 and NCHW, the reference of every other peer."""

REFERENCE_TITLE, PATHS_REFERENCE = "eager NCHW", "PyTorch float32"
"""Its titles, among peers and in `fassd bench run`."""

OURS = "ours"
"""Key of every peer that runs on `fassd_kernels`."""

EXTRA = "pip install 'fassd-net[bench]'"
"""Command that installs the other runtimes."""

SWITCHED = {
    "dependent": {"FASSD_KERNELS_DEPENDENT_LAUNCH": "1"},
    "carve-out": {"FASSD_KERNELS_CARVEOUT": "driver"},
    "threads": {"FASSD_KERNELS_CUDA_COPIES": "threads"},
}
"""Environments of the CUDA kernels: they start before the previous kernel ends; the driver decides
on the shared memory of a multiprocessor; threads copy what the copy engine could."""


class UnavailableError(Exception):
    """There is nothing to time, for a reason that the report states; not a failure."""


def accelerated(module: nn.Module, dtype: torch.dtype, backend: str) -> nn.Module:
    """`module` through `fassd_kernels.accelerate`.

    Raises:
        UnavailableError: no module in it can be replaced.
    """
    import fassd_kernels

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return fassd_kernels.accelerate(module, dtype=dtype, backend=backend)
        except RuntimeWarning as nothing:
            raise UnavailableError(str(nothing)) from None


@dataclass(frozen=True)
class BuildContext:
    """Everything that candidates are built from.

    Attributes:
        module: reference module, float32, in eval mode; builders do not change it.
        device: device to run on.
        inputs: input set of peers, float32 on the device.
        backend: backend of `fassd_kernels` for our peers, as in `fassd.Segmenter`.
        compiler: backend of `torch.compile`.
        needs: names of operators that our backend must have, or else there is nothing to time.
        calibration: function that makes inputs to calibrate int8 on; None for the input set.
        fuse: function from a module on the device, a dtype and a backend's name to our module.
        fold: function from a module to the one that PyTorch's best forms are made from.
    """

    module: nn.Module
    device: torch.device
    inputs: Inputs = ()
    backend: str = "auto"
    compiler: str = "inductor"
    needs: frozenset[str] = frozenset()
    calibration: Callable[[], Sequence[Tensor]] | None = None
    fuse: Callable[[Any, torch.dtype, str], Call] = accelerated
    fold: Callable[[nn.Module], nn.Module] = fold_batch_norms

    @functools.cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX file at the inputs' shape, exported on first use."""
        return onnx_runtimes.exported(self.module, self.inputs)

    @functools.cached_property
    def calibrating(self) -> Sequence[Tensor]:
        """Inputs to calibrate int8 on, made on first use."""
        return self.inputs if self.calibration is None else self.calibration()


Build = Callable[[BuildContext, torch.dtype], Call]


@dataclass(frozen=True)
class Candidate:
    """One way of computing something.

    Attributes:
        key: name in options and results.
        title: name in tables.
        build: function that makes the call, which takes an input set, in a dtype.
        dtype: precision of a peer; for `FORMS` the case determines it.
        channels_last: True if its inputs are in that layout.
        cudnn_benchmark: True lets cuDNN search for its fastest algorithm.
        exported: True if it is built from `BuildContext.onnx`.
        devices: types of the devices that it runs on.
        by_name_on: types of those devices on which it is measured only if `only` names it.
        labels: True if it returns labels, which only networks of this project do.
    """

    key: str
    title: str
    build: Build
    dtype: str = "float32"
    channels_last: bool = False
    cudnn_benchmark: bool = False
    exported: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    by_name_on: tuple[str, ...] = ()
    labels: bool = False

    def bound(self, context: BuildContext) -> Callable[[], Outputs]:
        """Build a peer: a call without arguments, on the context's inputs in its layout."""
        dtype = ANY_DTYPES.get(self.dtype, torch.float32)  # of the weights under AMP
        call = self.build(context, dtype)
        takes_float32 = self.exported or self.key == OURS
        inputs = context.inputs if takes_float32 else tuple(x.to(dtype) for x in context.inputs)
        return partial(call, *self.laid_out(inputs))

    def laid_out(self, inputs: Inputs) -> Inputs:
        """An input set in its layout; pictures of bytes have only one."""
        if not self.channels_last:
            return inputs
        return tuple(
            x.to(memory_format=torch.channels_last) if x.is_floating_point() else x for x in inputs
        )

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Settings to run in: without gradients, and with `cudnn_benchmark` as specified."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        try:
            with torch.no_grad():
                yield
        finally:
            torch.backends.cudnn.benchmark = before


# ----------------------------------------------------------------------------------------- PyTorch


def eager(context: BuildContext, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(context.module).to(context.device, dtype)


def channels_last(context: BuildContext, dtype: torch.dtype) -> nn.Module:
    # `to` with a memory format only takes parameters of four dimensions; the others are left.
    # torch's stub of Module.to has no overload of memory_format alone
    return eager(context, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def folded(context: BuildContext, dtype: torch.dtype) -> nn.Module:
    """In channels_last, without the batch norms after convolutions."""
    return channels_last(replace(context, module=context.fold(context.module)), dtype)


def amp(context: BuildContext, dtype: torch.dtype) -> Call:
    """PyTorch's automatic mixed precision: float16 on a GPU, bfloat16 on a CPU."""
    model, kind = channels_last(context, dtype), context.device.type

    def call(picture: Tensor) -> Tensor:
        with torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16):
            return model(picture)

    return call


def compiled(
    context: BuildContext, dtype: torch.dtype, form: Build = channels_last, mode: str | None = None
) -> Call:
    """`torch.compile` without freezing; in mode "max-autotune" also with CUDA graphs."""
    module = form(context, dtype)
    # Networks of one class share their code, of which Dynamo only compiles a few versions.
    torch._dynamo.reset()
    backend = context.compiler
    # Only Inductor has modes.
    mode = mode if backend == "inductor" else None
    return torch.compile(module, dynamic=False, backend=backend, mode=mode)


def inductor(context: BuildContext, dtype: torch.dtype) -> Call:
    """`torch.compile` with the weights as constants: batch norms folded, convolutions packed.

    Freezing requires calls under `torch.no_grad`. Caches on disk are bypassed, so that the first
    call takes as long as on a machine that has not seen the network.
    """
    import torch._inductor.config as settings

    call = compiled(context, dtype)
    with settings.patch(freezing=True, force_disable_caches=True):
        call(*(x.to(dtype, memory_format=torch.channels_last) for x in context.inputs))
    return call


def exported(
    context: BuildContext, dtype: torch.dtype, start: Callable[[bytes, Any, Any], Call]
) -> Call:
    """Another runtime, started by `start` on the network's ONNX file."""
    return start(context.onnx, context.device, dtype)


def openvino_int8(context: BuildContext, dtype: torch.dtype) -> Call:
    """OpenVINO on the network as NNCF quantises it, calibrated on the same inputs as ours."""
    return onnx_runtimes.openvino(context.onnx, context.device, dtype, context.calibrating)


def from_file(context: BuildContext, dtype: torch.dtype, file: str, runtime: str) -> Call:
    """A file of `fassd export`, called with its kind of input: pictures or normalised batches."""
    from fassd.export import ExportedNetwork

    network = ExportedNetwork(file, runtime, context.device)
    image = network.prepared(*context.inputs)
    return lambda _: network.run(image)


# -------------------------------------------------------------------------------------------- ours


def ours(
    context: BuildContext, dtype: torch.dtype, output: Any = "logits", graph: bool = False
) -> Call:
    """The network through `fassd_kernels` as its users call it; with `graph` as one CUDA graph."""
    import fassd_kernels

    settings: Any = {"calibration": context.calibrating} if dtype == torch.int8 else {}
    settings |= {"backend": context.backend, "output": output}
    model = fassd_kernels.accelerate(context.module, dtype=dtype, **settings)
    return fassd_kernels.GraphRunner(model) if graph else model


def fused(
    context: BuildContext, dtype: torch.dtype, backend: str, needed: str | None = None
) -> Call:
    """The subject through one of our backends, by name.

    Args:
        needed: name of the backend that must have the subject's operators; None for the backend
            itself.

    Raises:
        UnavailableError: the backend is not available, lacks operators that the subject needs, or
            cannot replace any module in it.
    """
    require_operators(needed or backend, context.needs, context.device)
    return context.fuse(copy.deepcopy(context.module).to(context.device), dtype, backend)


def native(context: BuildContext, dtype: torch.dtype) -> Call:
    """The subject through our compiled kernels for the device: C++ or CUDA."""
    return fused(context, dtype, context.device.type)


def switched(context: BuildContext, dtype: torch.dtype, group: str) -> Call:
    """`native` in a process that was started with its environment.

    Raises:
        UnavailableError: as in `fused`, or the process was started without the environment.
    """
    if SWITCHED[group].items() - os.environ.items():
        raise UnavailableError(f"this process was not started with {SWITCHED[group]}")
    return native(context, dtype)


def chosen(context: BuildContext, dtype: torch.dtype) -> Call:
    """The subject on the backend that this GPU's table names for each of its calls."""
    return fused(context, dtype, CHOSEN, context.device.type)


def require_operators(backend_name: str, needs: frozenset[str], device: torch.device) -> None:
    """Check that one of our backends runs some operators on a device.

    Raises:
        UnavailableError: it does not; the message says why.
    """
    import fassd_kernels

    backend = next((b for b in fassd_kernels.backends() if b.name == backend_name), None)
    if backend is None:
        raise UnavailableError(f"there is no backend {backend_name}")
    if not backend.available:
        raise UnavailableError(f"backend {backend_name} is not available: {backend.reason}")
    if not backend.takes(device.type):
        raise UnavailableError(
            f"backend {backend_name} takes {backend.device} tensors, not {device.type}"
        )
    missing = sorted(needs - set(backend.operators))
    if missing:
        raise UnavailableError(
            f"not implemented yet: backend {backend_name} has no {', '.join(missing)}"
        )


# ------------------------------------------------------------------------------------------- table


_best = partial(Candidate, channels_last=True, cudnn_benchmark=True)
_last = partial(Candidate, channels_last=True)

FORMS = {
    form.key: form
    for form in (
        Candidate(EAGER, "eager", eager),
        _best(FOLDED, "channels_last, BN folded, cudnn.benchmark", folded),
        _best(COMPILE, "torch.compile", partial(compiled, form=folded)),
        # Without Inductor's CUDA graphs: the timing captures a graph itself, without the copy of
        # the input that Inductor's graph makes, and rotates the input sets inside it.
        _best(
            MAX_AUTOTUNE,
            "torch.compile max-autotune",
            partial(compiled, form=folded, mode="max-autotune-no-cudagraphs"),
        ),
        _last(NATIVE, "ours, C++/CUDA", native),
        *(
            _last(f"{NATIVE}-{group}", f"ours, CUDA, {title}", partial(switched, group=group))
            for group, title in (
                ("dependent", "dependent launches"),
                ("carve-out", "the driver's carve-out"),
                ("threads", "copies by threads"),
            )
        ),
        _last(CHOSEN, "ours, the fastest backend of each call", chosen),
        _last(TRITON, "ours, Triton", partial(fused, backend="triton")),
    )
}
OUR_FORMS = (NATIVE, *(f"{NATIVE}-{group}" for group in SWITCHED), CHOSEN, TRITON)
TITLES = {key: form.title for key, form in FORMS.items()}


def form_named(name: str) -> Candidate:
    """The row of `FORMS` of that name, or our backend of that name."""
    return FORMS.get(name) or _last(name, name, partial(fused, backend=name))


PEERS = (
    Candidate(REFERENCE, REFERENCE_TITLE, eager),
    _last("channels_last", "eager channels_last", channels_last),
    _last("amp", "eager AMP", amp, "amp", by_name_on=("cpu",)),
    _last("inductor", "Inductor freezing", inductor, devices=("cpu",)),
    _last("compile", "torch.compile", compiled, by_name_on=("cpu",)),
    _last(
        "max_autotune",
        "compile max-autotune",
        partial(compiled, mode="max-autotune"),
        by_name_on=("cpu",),
    ),
    *(
        Candidate(key, title, partial(exported, start=start), dtype, exported=True, devices=on)
        for key, title, start, dtype, on in (
            ("onnxruntime", "ONNX Runtime", onnx_runtimes.onnx_runtime, "float32", ("cpu", "cuda")),
            ("openvino", "OpenVINO", onnx_runtimes.openvino, "float32", ("cpu",)),
            ("openvino_bf16", "OpenVINO bfloat16", onnx_runtimes.openvino, "bfloat16", ("cpu",)),
            ("tensorrt", "TensorRT", onnx_runtimes.tensorrt, "float32", ("cuda",)),
        )
    ),
    Candidate(
        "openvino_int8",
        "OpenVINO int8",
        openvino_int8,
        "int8",
        exported=True,
        devices=("cpu",),
        by_name_on=("cpu",),
    ),
)
# Plain PyTorch in bfloat16 is missing on purpose: see `fassd.bench.jobs.Job.paths`.
HALVED = ("channels_last", "compile", "max_autotune", "tensorrt")
"""Peers that a GPU also runs in 16 bits, like ours."""

KEYS = (*(peer.key for peer in PEERS), OURS)
"""Keys that `--only` takes."""


def candidates(
    dtypes: Sequence[str] = ("float32",),
    only: Sequence[str] | None = None,
    *,
    device: str = "cpu",
) -> list[Candidate]:
    """The peers to measure, the reference first.

    Args:
        dtypes: precisions of `fassd_kernels`, each with logits and with labels. On a GPU, also
            those of plain and compiled PyTorch and TensorRT; int8, on a CPU, also OpenVINO's.
        only: keys to keep, of `KEYS`; None keeps the peers that are worth measuring on the device.
        device: device to run on.

    Raises:
        ValueError: a key is not in `KEYS`, or does not run on the device.
    """
    kind = torch.device(device).type
    every = [c for c in _table(dtypes, kind) if kind in c.devices]
    if only is None:
        asked = {*dtypes} - {"float32"}
        return [c for c in every if kind not in c.by_name_on or c.dtype in asked]
    unknown = [key for key in only if key not in KEYS]
    if unknown or not only:
        raise ValueError(
            f"unknown candidate {', '.join(map(repr, unknown)) or '(none given)'}, "
            f"known are {', '.join(KEYS)}"
        )
    kept = [c for c in every if c.key in only]
    absent = sorted(set(only) - {c.key for c in kept})
    if absent:
        raise ValueError(f"{', '.join(absent)}: does not run on {kind}")
    return kept


def _table(dtypes: Sequence[str], kind: str) -> list[Candidate]:
    found = list(PEERS)
    for dtype in dict.fromkeys(dtypes):
        if kind == "cuda" and dtype != "float32":
            found += [
                replace(peer, title=f"{peer.title} {dtype}", dtype=dtype)
                for peer in PEERS
                # TensorRT's builder has a flag for float16; for bfloat16 it needs typed networks.
                if peer.key in HALVED and (peer.key, dtype) != ("tensorrt", "bfloat16")
            ]
    for dtype in dict.fromkeys(dtypes):
        for output in ("logits", "labels"):
            for graph in (False, True) if kind == "cuda" else (False,):
                words = [OURS, dtype, output, *(["graph"] if graph else [])]
                title = " ".join(word for word in words if word not in ("float32", "logits"))
                build = partial(ours, output=output, graph=graph)
                found.append(Candidate(OURS, title, build, dtype, labels=output == "labels"))
    return found


def every_candidate(device: str = "cpu") -> dict[str, Candidate]:
    """All peers that can be measured on a device, by title."""
    kind = torch.device(device).type
    return {c.title: c for c in _table(tuple(ANY_DTYPES), kind) if kind in c.devices}
