"""What our networks launch: by their own plan, and as the GPU saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.peers import TRITON, UnavailableError, require_operators
from benchmarks.subjects import NETWORK_NEEDS, Case, input_set, subject_of
from benchmarks.timing import Call, Inputs, warm_up

REPLAYS = 20
"""Of a network's graph, whose median a launch's time is."""


@dataclass(frozen=True)
class Planned:
    """A launch as our Triton backend plans it.

    Attributes:
        kernel: name of the kernel's function.
        bytes: read and written at the least.
        operations: that reach the result.
    """

    kernel: str
    bytes: int
    operations: int


def planned_launches(call: Call, inputs: Inputs) -> list[Planned]:
    """What a call through our Triton kernels launches; nothing is computed."""
    from fassd_kernels.triton.program import recording

    with torch.no_grad(), recording() as programs:
        call(*inputs)
    return [
        Planned(launch.kernel.__name__, launch.work.bytes, launch.work.operations)
        for program in programs
        for launch in program.launches
    ]


def seen_launches(call: Call, inputs: Inputs) -> list[str]:
    """Names of everything that the GPU did for a call: kernels, copies, fills.

    Raises:
        UnavailableError: the profiler is shown nothing.
    """
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call(*inputs)
        torch.cuda.synchronize(inputs[0].device)
    seen = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    if not seen:
        raise UnavailableError("torch.profiler saw no kernel: CUPTI may not be permitted here")
    return seen


def foreign(seen: Sequence[str], planned: Sequence[Planned]) -> dict[str, int]:
    """Of the launches that were `seen`, those of no planned kernel, with their number."""
    ours = tuple({launch.kernel for launch in planned})
    return dict(Counter(name for name in seen if not name.startswith(ours)))


def profile_network(device: torch.device, backend: str, **case: Any) -> dict[str, Any]:
    """See whether an accelerated network is our launches and nothing else.

    Args:
        device: a GPU.
        backend: of ours.
        case: fields of a `benchmarks.subjects.Case`; the input is channels_last.

    Returns:
        ``planned`` and ``seen``, numbers of launches, and the ``foreign`` ones by name; of the
        CUDA backend also ``rows``, equal launches together, predicted and measured.

    Raises:
        UnavailableError: the backend or the profiler is not there.
    """
    network = Case("networks", **case)
    require_operators(backend, NETWORK_NEEDS, device)
    if device.type != "cuda":
        raise UnavailableError("only a GPU's launches can be profiled")
    profile = profile_triton if backend == "triton" else profile_cuda
    known = {"network": network.subject, "backend": backend, "dtype": network.dtype}
    return {**known, **profile(network, device)}


def profile_triton(network: Case, device: torch.device) -> dict[str, Any]:
    subject = subject_of(network, device, "inductor")
    call = subject.candidate(TRITON).call
    (x,) = input_set(0, subject, network.torch_dtype, device)
    inputs = (x.to(memory_format=torch.channels_last),)
    with torch.no_grad():
        warm_up(call, [inputs])
    planned = planned_launches(call, inputs)
    seen = seen_launches(call, inputs)
    return {"planned": len(planned), "seen": len(seen), "foreign": foreign(seen, planned)}


def profile_cuda(network: Case, device: torch.device) -> dict[str, Any]:
    """Each launch as the time model has it, and as replays of the network's graph had it."""
    from fassd.bench import timeline
    from fassd.bench.costs import cuda as predict

    try:
        target = predict.find_device(torch.cuda.get_device_name(device))
        prediction = predict.predict_network(
            network.subject, network.height, network.width, target,
            batch=network.batch, dtype=network.torch_dtype,
        )  # fmt: skip
        seen = timeline.time_network(prediction, REPLAYS, classes=19, alpha=2)
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    return launch_times(prediction, seen)


def launch_times(prediction: Any, seen: Any) -> dict[str, Any]:
    """A `Prediction` beside its `Timeline`; without ``rows`` where they are of other kernels."""
    from fassd.bench import timeline

    names = [kernel.name for kernel in seen.replays[0]]
    found: dict[str, Any] = {
        "planned": len(prediction.launches),
        "seen": len(names),
        "foreign": dict(Counter(name for name in names if not is_cuda_kernel(name))),
    }
    try:
        measured = timeline.measured(prediction, seen).to_json()
    except ValueError as error:
        return {**found, "mismatch": str(error)}
    return {**found, **{name: measured[name] for name in ("predicted_s", "measured_s", "rows")}}


def is_cuda_kernel(name: str) -> bool:
    """Whether a kernel is of our CUDA sources, by its name, mangled or not."""
    return "fassd::cuda" in name or "5fassd4cuda" in name
