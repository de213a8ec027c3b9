"""From pictures in memory to labels there: `fassd_kernels.Runner`, its copies included."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from benchmarks.cases import TOLERANCES, compare
from benchmarks.operators import NORMALIZE, picture_reference
from benchmarks.peers import require_operators
from benchmarks.subjects import NETWORK_NEEDS, Case, Labelled, fused_network, subject_of


def measure_runner(
    device: torch.device, backend: str, network: str, seconds: float, **place: Any
) -> dict[str, Any]:
    """Frames per second of a stream, and the seconds of a single call.

    Args:
        device: where the network runs.
        backend: of ours.
        network: its name.
        seconds: how long the stream runs, at least.
        place: batch, height, width and dtype.

    Returns:
        ``fps``, ``latency_ms``, ``frames``; and, of the labels of one picture, ``rel_error``,
        ``tolerance`` and ``match``.

    Raises:
        UnavailableError: the backend is not there.
    """
    from fassd_kernels import Runner

    require_operators(backend, NETWORK_NEEDS, device)
    case = Case("networks", network, **place)
    subject = subject_of(case, device, "")
    assert isinstance(subject.module, Labelled)
    fast = fused_network(subject.module.to(device), case.torch_dtype, backend)
    batch = None if case.batch == 1 else case.batch
    runner = Runner(fast, (case.height, case.width), case.torch_dtype, device, batch)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, runner.shape, dtype=torch.uint8, generator=generator)
    record: dict[str, Any] = {"network": network, "backend": backend, **place}
    with warnings.catch_warnings():
        # One that runs without its graph is not what is to be measured.
        warnings.filterwarnings("error", "GraphRunner: ", RuntimeWarning)
        labels = runner(frame)
        speed = runner.measure(seconds)
    assert isinstance(labels, torch.Tensor)
    pictures = frame.view(case.batch, *runner.size, 3).to(device)
    scores = subject.reference(picture_reference(NORMALIZE, pictures))
    limit = TOLERANCES["networks"][case.dtype]
    compare([labels.view(case.batch, *runner.size).to(device)], [scores], limit, record)
    return {
        **record,
        "fps": speed.fps,
        "latency_ms": 1e3 * speed.latency_s,
        "frames": speed.frames,
    }
