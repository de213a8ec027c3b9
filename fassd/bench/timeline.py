"""The measured side of the time model: a GPU's work for one forward pass, kernel by kernel.

A network is captured as a CUDA graph and replayed under the profiler. The time of a launch is
measured from the end of the previous kernel to its own end: it includes gaps, like the prediction,
and does not count twice kernels that start while others end.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import fassd
from fassd.bench.costs.cuda import PredictedLaunch, Prediction
from fassd.models.clock import sample
from fassd_kernels.accelerate import accelerate
from fassd_kernels.backends import backends
from fassd_kernels.runtime.graph import capture


@dataclass(frozen=True)
class Kernel:
    """A kernel that ran; times in seconds, from any common start."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Replays of one network.

    Attributes:
        replays: kernels of each replay under the profiler, in order.
        seconds: seconds of whole replays without it.
    """

    replays: Sequence[Sequence[Kernel]]
    seconds: Sequence[float]


def unmeasurable(gpu: str) -> str:
    """The reason why launches cannot be measured on a GPU of this name here; empty if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    here = torch.cuda.get_device_name()
    if here != gpu:
        return f"this machine's GPU is {here}"
    reason = backends()["cuda"].reason
    return f"the cuda backend is not available: {reason}" if reason else ""


def measured(prediction: Prediction, timeline: Timeline) -> Prediction:
    """A prediction combined with the medians of measurements.

    Raises:
        ValueError: the GPU ran other kernels than predicted.
    """
    for kernels in timeline.replays:
        check_kernels(prediction.launches, kernels)
    spans = [spans_of(kernels) for kernels in timeline.replays]
    medians = [statistics.median(times) for times in zip(*spans, strict=True)]
    launches = tuple(
        replace(launch, measured=seconds)
        for launch, seconds in zip(prediction.launches, medians, strict=True)
    )
    return replace(prediction, launches=launches, replay=statistics.median(timeline.seconds))


def spans_of(kernels: Sequence[Kernel]) -> list[float]:
    """Seconds from the end of the previous kernel to the end of each; its own for the first."""
    ends = [kernels[0].begin, *(kernel.end for kernel in kernels)]
    return [after - before for before, after in itertools.pairwise(ends)]


def check_kernels(launches: Sequence[PredictedLaunch], kernels: Sequence[Kernel]) -> None:
    """Check that kernels are those of the launches.

    Raises:
        ValueError: they are not.
    """
    for index, (launch, kernel) in enumerate(zip(launches, kernels, strict=False), start=1):
        if launch.kernel not in kernel.name:
            raise ValueError(
                f"launch {index}, {launch.label}, is predicted to be {launch.kernel}; "
                f"the GPU ran {kernel.name}"
            )
    if len(launches) != len(kernels):
        raise ValueError(f"{len(launches)} launches are predicted; the GPU ran {len(kernels)}")


def time_network(
    prediction: Prediction, rounds: int, classes: int, alpha: int, backend: str = "cuda"
) -> Timeline:
    """Replay the network of a prediction on the current GPU, through one of our backends.

    Weights and picture are random: times do not depend on them.

    Raises:
        RuntimeError: the profiler has no permission to see kernels.
    """
    place = torch.device("cuda", torch.cuda.current_device())
    dtype = getattr(torch, prediction.dtype)
    model = fassd.create_model(prediction.network, num_classes=classes, alpha=alpha).eval()
    fast = accelerate(
        model.to(place), dtype=dtype, backend=backend, output=prediction.output, inplace=True
    )
    size = (prediction.batch, 3, prediction.height, prediction.width)
    picture = torch.randn(size, dtype=dtype, device=place)
    with torch.no_grad():
        return time_replays(fast, picture.contiguous(memory_format=torch.channels_last), rounds)


def time_replays(model: nn.Module, picture: Tensor, rounds: int) -> Timeline:
    """Capture a model on a GPU and replay it, `rounds` times each without and with the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    graph, _ = capture([lambda: model(picture)])
    seconds = [sample(graph.replay, picture.device) for _ in range(rounds)]
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            graph.replay()
        torch.cuda.synchronize(picture.device)
    kernels = sorted(
        (
            Kernel(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
            for event in profiler.events()
            if event.device_type == DeviceType.CUDA
        ),
        key=lambda kernel: kernel.begin,
    )
    if not kernels or len(kernels) % rounds:
        raise RuntimeError(
            f"torch.profiler saw {len(kernels)} kernels in {rounds} replays: "
            "CUPTI may not be permitted here"
        )
    count = len(kernels) // rounds
    return Timeline([kernels[i * count : (i + 1) * count] for i in range(rounds)], seconds)
