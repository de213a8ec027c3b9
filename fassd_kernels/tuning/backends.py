"""``python -m fassd_kernels.tune --backends``: which backend is fastest for each call of a network.

The calls that an accelerated network makes are written down, with their tensors, and every backend
that can run one is timed on it, in turns, as replays of CUDA graphs. A backend's output is compared
with the reference in float64 before its time counts. The medians go to the table that
:mod:`fassd_kernels.choices` chooses from.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fassd.models import create_model
from fassd_kernels import ops
from fassd_kernels.accelerate import FUSED, accelerate
from fassd_kernels.backends import Backend, backends, refusal
from fassd_kernels.choices import (
    Medians,
    fastest,
    read_table,
    shape_key,
    user_path,
    write_table,
)
from fassd_kernels.modules.conv import FusedUpsampleConv
from fassd_kernels.modules.fused import Plan
from fassd_kernels.operators import OPERATORS, Operator
from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.device import assuming, describe_device, device_named
from fassd_kernels.triton.program import recording, tf32_requested
from fassd_kernels.tuning.accuracy import TOLERANCES, exactly, relative_error

# DESIGN section 8.
WRONG_LABELS = 1e-3  # of all pixels
TF32_TOLERANCE = 1e-3
ROUNDS = 15  # samples of a backend
SAMPLE_S = 8e-3  # of one sample, about
CACHE_MULTIPLE = 1.5  # the images of one replay, over the last cache
MOST_SETS = 64
GRAPH_WARM_UP = 3

# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of an operator, to be repeated.

    Attributes:
        operator: its name.
        arguments: by name, without packed weights.
    """

    operator: str
    arguments: Mapping[str, Any]

    @property
    def row(self) -> Operator:
        return OPERATORS[self.operator]

    @property
    def images(self) -> list[Tensor]:
        return [image for name in self.row.images for image in listed(self.arguments[name])]

    @property
    def key(self) -> str:
        return shape_key(self.operator, self.images, self.arguments)

    def plans(self) -> list[Plan]:
        """The weights that a backend lays out in its own way, as the fused modules have them."""
        arguments: dict[str, Any] = {**dict(self.row.options), **self.arguments}
        if self.operator == "upsample_conv1x1":
            arguments["low_channels"] = sum(x.shape[1] for x in arguments["low"])
        plan = PLANS.get(self.operator)
        # It looks at nothing of the module.
        return plan(None, arguments) if plan else []

    def packed(self, backend: str) -> dict[str, Any]:
        """The weights laid out for a backend, as the operator takes them."""
        plans = self.plans()
        if not plans or backend == "reference":
            return {}
        pack = ops.packer(backend)
        packed = [pack(weight, stride=s, dilation=d) for weight, s, d in plans]
        return {"packed": packed[0] if self.operator == "conv_act" else packed}

    def through(self, backend: str, packed: Mapping[str, Any]) -> Callable[[], Tensor]:
        """The call through a backend, with the weights that were laid out for it."""
        function = ops.operator(self.operator, backend)
        return lambda: function(**self.arguments, **packed)

    def copied(self) -> Call:
        """The call on images of its own."""
        arguments = dict(self.arguments)
        for name in self.row.images:
            images = [copy_of(image) for image in listed(arguments[name])]
            arguments[name] = images if isinstance(arguments[name], list | tuple) else images[0]
        return Call(self.operator, arguments)

    def exact(self) -> Tensor:
        """The reference's result in float64."""
        arguments = {name: exactly(value) for name, value in self.arguments.items()}
        return self.row.reference(**arguments)


PLANS: dict[str, Callable[[Any, dict[str, Any]], list[Plan]]] = {
    fused.operator: fused.plan for fused in FUSED.values()
} | {"upsample_conv1x1": FusedUpsampleConv.plan}


def listed(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def copy_of(image: Tensor) -> Tensor:
    """A copy with the same strides and the same room behind each pixel, which `clone` would drop.

    Images between the kernels of a network are padded, and their kernels read the padding.
    """
    room = image.untyped_storage().nbytes() // image.element_size()
    everything = image.as_strided((room,), (1,), 0).clone()
    return everything.as_strided(image.shape, image.stride(), image.storage_offset())


class Calls(TorchDispatchMode):
    """Writes down the calls of fused operators while it is on, one for each key."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Call] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        row = OPERATORS.get(function._schema.name.partition("::")[2])
        # Backends that are asked for by name have namespaces of their own.
        if function.namespace.startswith(ops.NAMESPACE) and row and row.images:
            named = row.bind(arguments, keywords or {})
            named.pop("packed", None)  # of the backend that recorded it
            call = Call(row.name, named)
            self.seen.setdefault(call.key, call)
        return function(*arguments, **(keywords or {}))


def record_calls(
    name: str,
    height: int,
    width: int,
    batch: int,
    dtype: torch.dtype,
    place: torch.device,
    backend: str,
) -> list[Call]:
    """The distinct calls of a variant of the family on a random picture.

    Args:
        name: of the variant.
        height, width, batch: of the picture.
        dtype: of the network.
        place: the device.
        backend: that runs it; its images are those that all backends are timed on.
    """
    torch.manual_seed(0)
    model = create_model(name).eval().to(place)
    fast = accelerate(model, dtype=dtype, output="labels", inplace=True, backend=backend)
    picture = torch.randn(batch, 3, height, width, dtype=dtype, device=place)
    picture = picture.contiguous(memory_format=torch.channels_last)  # as `normalize` gives it
    with torch.no_grad(), Calls() as calls:
        fast(picture)
    return list(calls.seen.values())


def candidates_for(call: Call) -> list[str]:
    """The backends that can run a call, in the order in which they are preferred."""
    image = call.images[0]
    able = [b for b in backends() if not refusal(b, image.device, call.operator, image.dtype)]
    return [backend.name for backend in able]


def recording_backend(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The first backend with kernels for a whole network."""
    needed = [row.name for row in OPERATORS.values() if row.name != "asymmetric_conv"]
    return next(
        (
            backend
            for backend in backends()
            if backend.name != "reference"
            and not any(refusal(backend, device, operator, dtype) for operator in needed)
        ),
        None,
    )


# --- timing ---------------------------------------------------------------------------------------

Repeats: TypeAlias = Sequence[Callable[[], object]]
"""The same call on images of its own, several times."""

Timer: TypeAlias = Callable[[Mapping[str, Repeats]], Mapping[str, float | str]]
"""From the repeats of several candidates to median seconds of one call, or why there are none."""


def repeats_for(call: Call, cache_bytes: int) -> int:
    """How many sets of images it takes, so that no call finds its own in the last cache."""
    needed = sum(image.numel() * image.element_size() for image in call.images)
    return min(max(math.ceil(CACHE_MULTIPLE * cache_bytes / max(needed, 1)), 2), MOST_SETS)


def capture(repeats: Repeats) -> torch.cuda.CUDAGraph:
    """All of them as one graph, so that what is timed is the GPU and not the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            repeats[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for repeat in repeats:
            repeat()
    return graph


def sample(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Seconds of so many replays, behind one that keeps the stream busy meanwhile."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def time_in_turns(candidates: Mapping[str, Repeats]) -> dict[str, float | str]:
    """A :data:`Timer` on the current GPU: a change of its clock meets all candidates alike."""
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    results: dict[str, float | str] = {}
    for name, repeats in candidates.items():
        try:
            graphs[name] = capture(repeats)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # CUDA's, or one of Triton's own
            torch.cuda.synchronize()
            results[name] = f"cannot be captured: {first_line(error)}"
    replays = {n: max(1, round(SAMPLE_S / max(sample(g, 1), 1e-6))) for n, g in graphs.items()}
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    names = list(graphs)
    for turn in range(ROUNDS if names else 0):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            one = sample(graphs[name], replays[name]) / (replays[name] * len(candidates[name]))
            samples[name].append(one)
    return {**results, **{name: statistics.median(seconds) for name, seconds in samples.items()}}


# --- the contest ----------------------------------------------------------------------------------


@dataclass
class Result:
    """What a backend made of a call.

    Attributes:
        error: relative to the float64 reference; of labels, the share that differs.
        seconds: of one call, the median; NaN if it was not timed.
        reason: why it is out; empty if it is not.
    """

    error: float = math.nan
    seconds: float = math.nan
    reason: str = ""


@dataclass
class Contest:
    """A call and what every backend that can run it made of it, the preferred one first."""

    call: Call
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def medians(self) -> Medians:
        """The row of the table, in microseconds."""
        return {n: None if r.reason else r.seconds * 1e6 for n, r in self.results.items()}

    @property
    def winner(self) -> str | None:
        return fastest(self.medians, list(self.results))


def verify(call: Call, backend: str, exact: Tensor) -> Result:
    """Run a call once and compare."""
    result = Result()
    try:
        run = call.through(backend, call.packed(backend))
        # What was freed last is used next: pixels that are not written shall not hold the right
        # numbers of another backend.
        poison(run().untyped_storage().nbytes(), exact.device)
        output = run()
        if output.shape != exact.shape:
            result.reason = f"wrong: shape {tuple(output.shape)}, not {tuple(exact.shape)}"
            return result
        labels = not output.is_floating_point()
        rounded = output.dtype == torch.float32 and tf32_requested()
        tolerance = (
            WRONG_LABELS if labels else TF32_TOLERANCE if rounded else TOLERANCES[output.dtype]
        )
        result.error = (
            float((output != exact).double().mean()) if labels else relative_error(output, exact)
        )
        if not result.error <= tolerance:
            result.reason = f"wrong: off by {result.error:.2g}"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's own have no class in common
        result.reason = first_line(error)
    return result


def poison(count: int, device: torch.device) -> None:
    """Leave NaNs, and labels that there are none of, in the memory that comes next."""
    torch.full((count,), 0xFF, dtype=torch.uint8, device=device)


def contest(call: Call, candidates: Sequence[str], timer: Timer, cache_bytes: int) -> Contest:
    """Verify all candidates, and time those that are right."""
    exact = call.exact()
    found = Contest(call, {name: verify(call, name, exact) for name in candidates})
    del exact
    right = [name for name, result in found.results.items() if not result.reason]
    sets = [call.copied() for _ in range(repeats_for(call, cache_bytes))]
    packed = {name: call.packed(name) for name in right}
    timed = timer({name: [one.through(name, packed[name]) for one in sets] for name in right})
    for name in right:
        seconds = timed[name]
        if isinstance(seconds, str):
            found.results[name].reason = seconds
        else:
            found.results[name].seconds = seconds
    return found


def measure_choices(
    calls: Sequence[Call],
    gpu: str,
    cache_bytes: int,
    budget: float,
    timer: Timer = time_in_turns,
    candidates: Callable[[Call], Sequence[str]] = candidates_for,
) -> list[Contest]:
    """Time every call on every backend until the time is up; write the user's table of the GPU.

    What an earlier run found for other calls stays in the table. A call that only one backend can
    run is passed over.

    Args:
        calls: to measure.
        gpu: its name.
        cache_bytes: of its last cache.
        budget: seconds.
        timer: how to time.
        candidates: the backends to compare for a call, the one preferred in doubt first.

    Returns:
        What was measured, in the order of the calls.
    """
    started = time.monotonic()
    done: list[Contest] = []
    path = user_path(gpu)
    facts = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for call in calls:
        names = candidates(call)
        if len(names) < 2:
            continue
        if time.monotonic() - started > budget:
            break
        with torch.no_grad():
            done.append(contest(call, names, timer, cache_bytes))
        # After each, so that nothing is lost if the machine goes.
        known = read_table(path) if path.exists() else {}
        write_table(path, gpu, {**known, call.key: done[-1].medians}, facts)
    return done


# --- command --------------------------------------------------------------------------------------


def render(contests: Sequence[Contest], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("call", overflow="fold")
    table.add_column("backend")
    for name in ("us", "error"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for one in contests:
        for i, (name, result) in enumerate(one.results.items()):
            table.add_row(
                one.call.key if i == 0 else "",
                name,
                "" if math.isnan(result.seconds) else f"{result.seconds * 1e6:.1f}",
                "" if math.isnan(result.error) else f"{result.error:.1e}",
                result.reason or ("chosen" if name == one.winner else ""),
            )
        table.add_section()
    return table


def command(
    model: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    batch: int,
    gpu: str | None,
    budget: float,
    console: Console,
) -> Path | None:
    """What ``tune --backends`` does.

    Args:
        model, size, dtype, batch: of the network.
        gpu: only list what would be measured, on this GPU, which need not be there.
        budget: seconds.
        console: for the table.

    Returns:
        Where the table was written; None if nothing was to be measured.

    Raises:
        typer.BadParameter: where there is no GPU, or no backend with kernels to compare.
        ValueError, KeyError: if the network or the GPU is unknown, or the picture is too small.
    """
    if gpu is not None:
        with assuming(device_named(gpu)), recording():
            calls = record_calls(model, *size, batch, dtype, torch.device("cpu"), "triton")
        for call in calls:
            print(call.key)
        print(f"{len(calls)} calls")
        return None
    if not torch.cuda.is_available():
        raise typer.BadParameter("no GPU is seen; --dry-run needs none")
    place = torch.device("cuda", torch.cuda.current_device())
    recorder = recording_backend(place, dtype)
    if recorder is None:
        raise typer.BadParameter(
            "no backend has kernels for a whole network; python -m fassd_kernels says why"
        )
    device = describe_device(place)
    calls = record_calls(model, *size, batch, dtype, place, recorder.name)
    contests = measure_choices(calls, device.name, device.l2, budget)
    console.print(render(contests, f"{model}, {batch} x {size[0]}x{size[1]}, on {device.name}"))
    left = sum(len(candidates_for(call)) > 1 for call in calls) - len(contests)
    if left:
        print(f"out of time: {left} calls are left to the order of the backends")
    wrong = [r for c in contests for r in c.results.values() if r.reason.startswith("wrong")]
    if wrong:
        print(f"{len(wrong)} backends gave wrong numbers and are out", file=sys.stderr)
    return user_path(device.name) if contests else None
