"""Every way to run a network that `fassd bench peers` compares, and how it is built.

A candidate is built from the same float32 network and answers the same float32 picture as the
others, each in the form in which it is fastest: channels_last for Inductor, inputs and outputs
bound once for ONNX Runtime, shared with the caller for OpenVINO. All use as many threads as
PyTorch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fassd.bench.others import OTHERS, OtherNetwork
from fassd.export.onnx_file import quiet_exporter
from fassd.export.tensorrt_file import build_engine
from fassd.models import create_model

__all__ = [
    "EXTRA",
    "KEYS",
    "OURS",
    "REFERENCE",
    "REFERENCE_TITLE",
    "BuildContext",
    "Candidate",
    "candidates",
    "check_keys",
    "every_candidate",
]

REFERENCE = "eager"
"""Key of plain PyTorch in float32 and NCHW, which every other candidate is compared with."""

REFERENCE_TITLE = "eager NCHW"

OURS = "ours"
"""Key of every candidate that runs on `fassd_kernels`."""

EXTRA = "pip install 'fassd-net[bench]'"
"""Installs the other runtimes."""

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class BuildContext:
    """What every candidate is built from.

    Attributes:
        model: the reference network, float32, in eval mode; builders leave it as it is.
        picture: its input, (N, 3, H, W) float32, contiguous, on the model's device.
        backend: of `fassd_kernels`, as in `fassd.Segmenter`.
        compiler: backend of `torch.compile`.
    """

    model: nn.Module
    picture: Tensor
    backend: str = "auto"
    compiler: str = "inductor"

    @functools.cached_property
    def onnx(self) -> bytes:
        """The network as ONNX at the picture's shape, exported when first asked for.

        torch.export's graph rather than TorchScript's, which is deprecated and which OpenVINO
        runs 1.4 times slower (FASSD-Net at 256x512 on two cores of a Zen 5: 29 ms, not 21).
        """
        with quiet_exporter():
            program = torch.onnx.export(self.model, (self.picture,), dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto.SerializeToString()


@dataclass(frozen=True)
class Candidate:
    """One way to run the network.

    Attributes:
        key: what `--only` calls it.
        title: what tables call it.
        build: takes a `BuildContext` and makes the call, without arguments, that runs it once.
        dtype: what it computes in.
        output: "logits", (N, classes, H, W), or "labels", (N, H, W).
        exported: whether it is built from `BuildContext.onnx`.
        devices: types of the devices that it runs on.
        by_name_on: of these, those on which it is measured only where `only` names it.
        other: another network with the same job, which is no peer and is not compared with labels.
    """

    key: str
    title: str
    build: Callable[..., Call]
    dtype: str = "float32"
    output: Literal["logits", "labels"] = "logits"
    exported: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    by_name_on: tuple[str, ...] = ()
    other: OtherNetwork | None = None

    @property
    def is_float32_peer(self) -> bool:
        """Whether it is what ours in float32 has to beat."""
        return self.key != OURS and self.dtype == "float32" and self.other is None


# ----------------------------------------------------------------------------------------- PyTorch


def eager(context: BuildContext) -> Call:
    return lambda: context.model(context.picture)


def eager_channels_last(context: BuildContext, dtype: str = "float32") -> Call:
    model, picture = _channels_last(context, dtype)
    return lambda: model(picture)


def amp(context: BuildContext) -> Call:
    """PyTorch's automatic mixed precision: float16 on a GPU, bfloat16 on a CPU."""
    model, picture = _channels_last(context)
    kind = picture.device.type

    def call() -> Tensor:
        with torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16):
            return model(picture)

    return call


def compiled(context: BuildContext, dtype: str = "float32", mode: str | None = None) -> Call:
    """`torch.compile` without freezing; in mode "max-autotune" also with CUDA graphs."""
    model, picture = _channels_last(context, dtype)
    torch._dynamo.reset()
    backend = context.compiler
    # Inductor alone has modes.
    module = torch.compile(
        model, dynamic=False, backend=backend, mode=mode if backend == "inductor" else None
    )
    return lambda: module(picture)


def inductor(context: BuildContext) -> Call:
    """`torch.compile` with the weights as constants: batch norms folded, convolutions packed.

    Freezing asks for calls under `torch.no_grad`. Caches on disk are passed by, so that the first
    call takes what it takes on a machine that has not seen the network.
    """
    import torch._inductor.config as settings

    model, picture = _channels_last(context)
    # Networks of one class share their code, of which Dynamo compiles only a few versions.
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False, backend=context.compiler)
    with settings.patch(freezing=True, force_disable_caches=True):
        compiled(picture)
    return lambda: compiled(picture)


def _channels_last(context: BuildContext, dtype: str = "float32") -> tuple[nn.Module, Tensor]:
    precision = getattr(torch, dtype)
    # `to` with a memory format takes parameters of four dimensions only; the others are left.
    model = copy.deepcopy(context.model).to(precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, context.picture.to(precision).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------- other runtimes


def onnx_runtime(context: BuildContext) -> Call:
    import onnxruntime

    device = context.picture.device
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {provider} (pip install onnxruntime-gpu)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(context.onnx, options, providers=[provider])
    picture = context.picture
    result = torch.empty(session.get_outputs()[0].shape, device=device)
    binding = session.io_binding()
    for bind, ports, tensor in (
        (binding.bind_input, session.get_inputs(), picture),
        (binding.bind_output, session.get_outputs(), result),
    ):
        place = (device.type, device.index or 0)
        bind(ports[0].name, *place, np.float32, tuple(tensor.shape), tensor.data_ptr())

    def call(_bound: Tensor = picture) -> Tensor:  # the binding holds an address, not the tensor
        session.run_with_iobinding(binding)
        return result

    return call


def openvino(context: BuildContext, precision: str = "f32") -> Call:
    """OpenVINO in "f32" or "bf16". Left alone it would choose bf16 where the CPU has it."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(context.onnx), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [context.picture.numpy()]

    def call() -> Tensor:
        return torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    return call


def tensorrt(context: BuildContext, dtype: str = "float32") -> Call:
    """TensorRT 10, from the ONNX file; in float32 without TF32. No GPU has run this yet."""
    import tensorrt as trt

    plan = build_engine(context.onnx, dtype)
    log = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    execution = engine.create_execution_context()
    names = (engine.get_tensor_name(0), engine.get_tensor_name(1))  # input, output
    shape = tuple(engine.get_tensor_shape(names[1]))
    result = torch.empty(shape, device=context.picture.device)
    for name, tensor in zip(names, (context.picture, result), strict=True):
        execution.set_tensor_address(name, tensor.data_ptr())

    def call(_bound: Tensor = context.picture) -> Tensor:  # the execution holds its address only
        execution.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return result

    return call


# -------------------------------------------------------------------------------------------- ours


def ours(context: BuildContext, dtype: str = "float32", output: Any = "logits") -> Call:
    import fassd_kernels

    model = fassd_kernels.accelerate(
        context.model, dtype=getattr(torch, dtype), backend=context.backend, output=output
    )
    return lambda: model(context.picture)


def ours_graph(context: BuildContext, dtype: str = "float32", output: Any = "logits") -> Call:
    """Ours as one CUDA graph."""
    import fassd_kernels

    model = fassd_kernels.accelerate(
        context.model, dtype=getattr(torch, dtype), backend=context.backend, output=output
    )
    runner = fassd_kernels.GraphRunner(model)
    return lambda: runner(context.picture)


# ------------------------------------------------------------------------------- other networks


def other_network(context: BuildContext, network: OtherNetwork, compiling: bool) -> Call:
    """Another network on the subject's picture, in channels_last, eager or by `inductor`."""
    torch.manual_seed(0)
    model = network.build().eval().to(context.picture.device)
    own = replace(context, model=model)
    if not compiling:
        return eager_channels_last(own)
    return inductor(own) if context.picture.device.type == "cpu" else compiled(own)


# ------------------------------------------------------------------------------------------- table

PEERS = (
    Candidate(REFERENCE, REFERENCE_TITLE, eager),
    Candidate("channels_last", "eager channels_last", eager_channels_last),
    Candidate("amp", "eager AMP", amp, dtype="amp", by_name_on=("cpu",)),
    Candidate("inductor", "Inductor freezing", inductor, devices=("cpu",)),
    Candidate("compile", "torch.compile", compiled, by_name_on=("cpu",)),
    Candidate(
        "max_autotune",
        "compile max-autotune",
        functools.partial(compiled, mode="max-autotune"),
        by_name_on=("cpu",),
    ),
    Candidate("onnxruntime", "ONNX Runtime", onnx_runtime, exported=True),
    Candidate("openvino", "OpenVINO", openvino, exported=True, devices=("cpu",)),
    Candidate(
        "openvino_bf16",
        "OpenVINO bfloat16",
        functools.partial(openvino, precision="bf16"),
        dtype="bfloat16",
        exported=True,
        devices=("cpu",),
    ),
    Candidate("tensorrt", "TensorRT", tensorrt, exported=True, devices=("cuda",)),
)
HALVED = ("channels_last", "compile", "max_autotune", "tensorrt")
"""Those that a GPU also runs in 16 bits, as ours does."""

OTHER_CANDIDATES = tuple(
    Candidate(
        network.key,
        f"{network.title}{', compiled' if compiling else ''}",
        functools.partial(other_network, network=network, compiling=compiling),
        other=network,
    )
    for network in OTHERS
    for compiling in (False, True)
)

# Plain PyTorch in bfloat16 is missing on purpose: see `bench.Job.paths`.

KEYS = (*(peer.key for peer in PEERS), OURS, *(network.key for network in OTHERS))
"""What `--only` takes."""


def candidates(
    dtypes: Sequence[str] = ("float32",),
    only: Sequence[str] | None = None,
    *,
    device: str = "cpu",
    others: bool = False,
) -> list[Candidate]:
    """The candidates to measure, the reference first.

    Args:
        dtypes: what `fassd_kernels` computes in; each with logits and with labels. On a GPU, plain
            and compiled PyTorch and TensorRT, too.
        only: keys to keep, of `KEYS`; None keeps what is worth its time on the device.
        device: where they are to run.
        others: also other networks with the same job.

    Raises:
        ValueError: a key that is not in `KEYS`, or that does not run on the device.
    """
    if only is not None:
        check_keys(only)
    kind = torch.device(device).type
    every = [c for c in _table(dtypes, kind) if kind in c.devices]
    if only is None:
        return [c for c in every if kind not in c.by_name_on and (others or c.other is None)]
    chosen = [c for c in every if c.key in only or (others and c.other)]
    absent = sorted(set(only) - {c.key for c in chosen})
    if absent:
        raise ValueError(f"{', '.join(absent)}: does not run on {kind}")
    return chosen


def _table(dtypes: Sequence[str], kind: str) -> list[Candidate]:
    found = list(PEERS)
    for dtype in dict.fromkeys(dtypes):
        if kind == "cuda" and dtype != "float32":
            found += [
                replace(
                    peer,
                    title=f"{peer.title} {dtype}",
                    dtype=dtype,
                    build=functools.partial(peer.build, dtype=dtype),
                )
                for peer in PEERS
                # TensorRT's builder has a flag for float16; bfloat16 it takes from typed networks.
                if peer.key in HALVED and (peer.key, dtype) != ("tensorrt", "bfloat16")
            ]
    for dtype in dict.fromkeys(dtypes):
        for output in ("logits", "labels"):
            words = [word for word in (OURS, dtype, output) if word not in ("float32", "logits")]
            build = functools.partial(ours, dtype=dtype, output=output)
            found.append(Candidate(OURS, " ".join(words), build, dtype, output))
            if kind == "cuda":
                build = functools.partial(ours_graph, dtype=dtype, output=output)
                found.append(Candidate(OURS, " ".join([*words, "graph"]), build, dtype, output))
    return [*found, *OTHER_CANDIDATES]


def every_candidate(device: str = "cpu") -> dict[str, Candidate]:
    """All that can be measured on a device, by title."""
    kind = torch.device(device).type
    table = _table(("float32", "float16", "bfloat16"), kind)
    return {c.title: c for c in table if kind in c.devices}


def memory_call(title: str, threads: int, size: list[int], **fields: Any) -> Call:
    """The call of one candidate, for the process that measures its memory; any picture does."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = create_model(fields["model"], fields["classes"], fields["alpha"]).eval()
    picture = torch.zeros(fields["batch"], 3, *size)
    context = BuildContext(model, picture, fields["backend"], fields["compiler"])
    return every_candidate()[title].build(context)


def check_keys(keys: Sequence[str]) -> None:
    """See whether every key names a candidate.

    Raises:
        ValueError: one does not, or there are none.
    """
    unknown = [key for key in keys if key not in KEYS]
    if unknown or not keys:
        raise ValueError(
            f"unknown candidate {', '.join(map(repr, unknown)) or '(none given)'}, "
            f"known are {', '.join(KEYS)}"
        )
