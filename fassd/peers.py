"""Every way to run a network on a CPU that `fassd bench --peers` compares, and how it is built.

A candidate is built from the same float32 network and answers the same float32 picture as the
others, each in the form in which it is fastest: channels_last for Inductor, inputs and outputs
bound once for ONNX Runtime, shared with the caller for OpenVINO. All use as many threads as
PyTorch.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fassd.speed import environment

__all__ = [
    "EXTRA",
    "KEYS",
    "OURS",
    "REFERENCE",
    "Candidate",
    "Subject",
    "candidates",
    "check_keys",
    "environment",
]

REFERENCE = "eager"
"""Key of plain PyTorch in float32 and NCHW, which every other candidate is compared with."""

OURS = "ours"
"""Key of every candidate that runs on `fassd_kernels`."""

EXTRA = "pip install 'fassd-net[bench]'"
"""Installs the other runtimes."""

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Subject:
    """What every candidate is built from.

    Attributes:
        model: the reference network, float32, in eval mode; builders leave it as it is.
        picture: its input, (N, 3, H, W) float32, contiguous.
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
        with _quiet_exporter():
            program = torch.onnx.export(self.model, (self.picture,), dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto.SerializeToString()


@dataclass(frozen=True)
class Candidate:
    """One way to run the network.

    Attributes:
        key: what `--only` calls it.
        title: what tables call it.
        build: makes the call, without arguments, that runs a subject once.
        dtype: what it computes in.
        output: "logits", (N, classes, H, W), or "labels", (N, H, W).
        exported: whether it is built from `Subject.onnx`.
    """

    key: str
    title: str
    build: Callable[[Subject], Call]
    dtype: str = "float32"
    output: Literal["logits", "labels"] = "logits"
    exported: bool = False

    @property
    def is_float32_peer(self) -> bool:
        """Whether it is what ours in float32 has to beat."""
        return self.key != OURS and self.dtype == "float32"


# ----------------------------------------------------------------------------------------- PyTorch


def eager(subject: Subject) -> Call:
    return lambda: subject.model(subject.picture)


def eager_channels_last(subject: Subject) -> Call:
    model, picture = _channels_last(subject)
    return lambda: model(picture)


def inductor(subject: Subject) -> Call:
    """`torch.compile` with the weights as constants: batch norms folded, convolutions packed.

    Freezing asks for calls under `torch.no_grad`. Caches on disk are passed by, so that the first
    call takes what it takes on a machine that has not seen the network.
    """
    import torch._inductor.config as settings

    model, picture = _channels_last(subject)
    # Networks of one class share their code, of which Dynamo compiles only a few versions.
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False, backend=subject.compiler)
    with settings.patch(freezing=True, force_disable_caches=True):
        compiled(picture)
    return lambda: compiled(picture)


def _channels_last(subject: Subject) -> tuple[nn.Module, Tensor]:
    # `to` with a memory format takes parameters of four dimensions only; the others are left.
    model = copy.deepcopy(subject.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, subject.picture.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------- other runtimes


def onnx_runtime(subject: Subject) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        subject.onnx, options, providers=["CPUExecutionProvider"]
    )
    result = torch.empty(session.get_outputs()[0].shape)
    binding = session.io_binding()
    for bind, ports, tensor in (
        (binding.bind_input, session.get_inputs(), subject.picture),
        (binding.bind_output, session.get_outputs(), result),
    ):
        bind(ports[0].name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return result

    return call


def openvino(subject: Subject, precision: str = "f32") -> Call:
    """OpenVINO in "f32" or "bf16". Left alone it would choose bf16 where the CPU has it."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(subject.onnx), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [subject.picture.numpy()]

    def call() -> Tensor:
        return torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    return call


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's log without warnings: it misses torchvision, which is not needed here."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


# -------------------------------------------------------------------------------------------- ours


def ours(subject: Subject, dtype: str = "float32", output: Any = "logits") -> Call:
    import fassd_kernels

    model = fassd_kernels.accelerate(
        subject.model, dtype=getattr(torch, dtype), backend=subject.backend, output=output
    )
    return lambda: model(subject.picture)


# ------------------------------------------------------------------------------------------- table

PEERS = (
    Candidate(REFERENCE, "eager NCHW", eager),
    Candidate("channels_last", "eager channels_last", eager_channels_last),
    Candidate("inductor", "Inductor freezing", inductor),
    Candidate("onnxruntime", "ONNX Runtime", onnx_runtime, exported=True),
    Candidate("openvino", "OpenVINO", openvino, exported=True),
    Candidate(
        "openvino_bf16",
        "OpenVINO bfloat16",
        functools.partial(openvino, precision="bf16"),
        dtype="bfloat16",
        exported=True,
    ),
)
# Plain PyTorch in bfloat16 is missing on purpose: see `bench.Job.paths`.

KEYS = (*(peer.key for peer in PEERS), OURS)
"""What `--only` takes."""


def candidates(
    dtypes: Sequence[str] = ("float32",), only: Sequence[str] | None = None
) -> list[Candidate]:
    """The candidates to measure, the reference first.

    Args:
        dtypes: what `fassd_kernels` computes in; each with logits and with labels.
        only: keys to keep, of `KEYS`; None keeps all.

    Raises:
        ValueError: a key that is not in `KEYS`.
    """
    if only is not None:
        check_keys(only)
    fused = [
        Candidate(
            OURS,
            " ".join(word for word in (OURS, dtype, output) if word not in ("float32", "logits")),
            functools.partial(ours, dtype=dtype, output=output),
            dtype,
            output,
        )
        for dtype in dict.fromkeys(dtypes)
        for output in ("logits", "labels")
    ]
    return [c for c in (*PEERS, *fused) if only is None or c.key in only]


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
