"""What our networks launch: by their own plan, and as the GPU saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.peers import TRITON, UnavailableError
from benchmarks.subjects import Case, input_set, subject_of
from benchmarks.timing import Call, Inputs, warm_up


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


def profile_network(device: torch.device, **case: Any) -> dict[str, Any]:
    """See whether an accelerated network is our launches and nothing else.

    Args:
        device: a GPU.
        case: fields of a `benchmarks.subjects.Case`; the input is channels_last.

    Returns:
        ``planned`` and ``seen``, numbers of launches, and the ``foreign`` ones by name.

    Raises:
        UnavailableError: the Triton backend or the profiler is not there.
    """
    network = Case("networks", **case)
    subject = subject_of(network, device, "inductor")
    call = subject.candidate(TRITON).call
    if device.type != "cuda":
        raise UnavailableError("only a GPU's launches can be profiled")
    (x,) = input_set(0, subject, network.torch_dtype, device)
    inputs = (x.to(memory_format=torch.channels_last),)
    with torch.no_grad():
        warm_up(call, [inputs])
    planned = planned_launches(call, inputs)
    seen = seen_launches(call, inputs)
    return {
        "network": network.subject,
        "dtype": network.dtype,
        "planned": len(planned),
        "seen": len(seen),
        "foreign": foreign(seen, planned),
    }
