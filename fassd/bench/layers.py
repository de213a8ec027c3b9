"""What `fassd bench layers` runs: every fused call of a network, predicted and measured."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fassd.bench import stopwatch
from fassd.bench.costs.counts import WIDE
from fassd.bench.costs.roofline import (
    Machine,
    Prediction,
    Work,
    images,
    measure_machine,
    predict,
    work_of,
)
from fassd.bench.jobs import Job, build_model, render_batch, torch_dtype
from fassd.bench.machine import environment
from fassd.bench.tables import heading, plain_table
from fassd.models.device import torch_threads

__all__ = ["HEAD", "FusedCall", "Layer", "LayerReport", "run_layers", "trace"]

HEAD = "head"
"""What the network's own last operator, the upsampling with argmax, is listed as."""


@dataclass(frozen=True)
class FusedCall:
    """One call of a fused operator.

    Attributes:
        name: path of the module that makes it, or `HEAD`.
        kind: what it computes, in a few words.
        input_shapes: of its images, (N, C, H, W) each.
        output_shape: of its result, (N, C, H, W), or (N, H, W) of labels.
        work: what it has to do.
    """

    name: str
    kind: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    work: Work


@dataclass(frozen=True)
class Layer:
    """A call, the seconds that it should take, and those that it took inside the network."""

    call: FusedCall
    prediction: Prediction
    timing: stopwatch.Timing

    def to_json(self) -> dict[str, Any]:
        """Every figure of it, ready for `json.dump`; times in seconds."""
        return {
            "name": self.call.name,
            "kind": self.call.kind,
            "input_shapes": self.call.input_shapes,
            "output_shape": self.call.output_shape,
            "macs": self.call.work.macs,
            "bytes": self.call.work.bytes,
            "arithmetic_floor_s": self.prediction.arithmetic,
            "memory_floor_s": self.prediction.memory,
            "predicted_s": self.prediction.seconds,
            **self.timing.to_json(),
        }


@dataclass(frozen=True)
class LayerReport:
    """All calls of one network in order of execution; prints itself with rich.

    `network` is the time of the whole forward, with what it does between the calls.
    """

    job: Job
    environment: dict[str, Any]
    machine: Machine
    layers: tuple[Layer, ...]
    network: stopwatch.Timing

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds."""
        return {
            "environment": self.environment,
            "job": asdict(self.job),
            "machine": asdict(self.machine),
            "network": self.network.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        machine, network = self.machine, self.network
        facts = (
            f"matrix product {2e-9 * machine.macs_per_s:.0f} GFLOP/s, "
            f"copy {1e-9 * machine.bytes_per_s:.1f} GB/s; whole network, {self.job.dtype}, "
            f"labels out: {1e3 * network.median:.2f} ±{1e3 * network.spread:.2f} ms"
        )
        legend = (
            "predicted: the larger of arithmetic and memory traffic at those rates. GFLOP/s: of "
            "the convolutions as they are written, which Winograd's form may take beyond the "
            "matrix product's. floor: the arithmetic alone, in % of the time measured."
        )
        yield Group(
            heading(self.job, self.environment),
            Text(facts),
            self._table(options.max_width >= WIDE),
            Text(legend, style="dim"),
        )

    def _table(self, with_kinds: bool) -> Table:
        table = plain_table(show_footer=True, footer_style="bold")
        table.add_column("module", "total", no_wrap=True)
        for name in ("kind", "input", "output") if with_kinds else ("output",):
            table.add_column(name, no_wrap=True)
        names = ("GMAC", "predicted\nms", "measured\nms", "GFLOP/s", "floor\n%")
        for name, total in zip(names, _figures(self.layers), strict=True):
            table.add_column(name, total, justify="right", no_wrap=True)
        for layer in self.layers:
            call = layer.call
            first, *others = call.input_shapes
            inputs = _sides(first) + "".join(f"+{shape[1]}" for shape in others)
            table.add_row(
                call.name,
                *([call.kind, inputs] if with_kinds else []),
                _sides(call.output_shape),
                *_figures([layer]),
            )
        return table


def _sides(shape: tuple[int, ...]) -> str:
    """A shape without the batch, which the heading tells."""
    return "x".join(map(str, shape[1:]))


def _figures(layers: Sequence[Layer]) -> list[str]:
    """The last cells of a row: of one layer, or the totals of all."""
    macs = sum(layer.call.work.macs for layer in layers)
    floor = sum(layer.prediction.arithmetic for layer in layers)
    predicted = sum(layer.prediction.seconds for layer in layers)
    measured = sum(layer.timing.median for layer in layers)
    return [
        f"{1e-9 * macs:.3f}",
        f"{1e3 * predicted:.2f}",
        f"{1e3 * measured:.2f}",
        f"{2e-9 * macs / measured:.0f}" if macs else "-",
        f"{100 * floor / measured:.0f}" if macs else "-",
    ]


# ------------------------------------------------------------------------------------- measurement


def run_layers(
    job: Job,
    *,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> LayerReport:
    """Predict and measure every call of the accelerated network, labels out, on the CPU.

    Args:
        job: what to run; its `compile` and `memory` say nothing here.
        step: called with a few words as each part begins.
        tick: called after each of the `warmup + repeats` forwards.

    Raises:
        ValueError: an unknown model or dtype, unsuitable weights, a size too small.
        RuntimeError: a backend that cannot be used here.
    """
    import fassd_kernels

    dtype = torch_dtype(job.dtype)
    with torch_threads(job.threads), torch.no_grad():
        step("measuring the machine")
        machine = measure_machine()
        step("building the network")
        _, picture = render_batch(job)
        model = fassd_kernels.accelerate(
            build_model(job, picture), dtype=dtype, backend=job.backend, output="labels"
        )
        calls = trace(model, picture)
        step("timing")
        rounds = []
        for _ in range(job.warmup + job.repeats):
            rounds.append(time_calls(model, picture))
            tick()
        where = environment()
    network, *timings = (
        stopwatch.Timing(seconds) for seconds in zip(*rounds[job.warmup :], strict=True)
    )
    layers = tuple(
        Layer(call, predict(call.work, machine), timing)
        for call, timing in zip(calls, timings, strict=True)
    )
    return LayerReport(job, where, machine, layers, network)


@contextmanager
def around_operators(around: Callable[..., Tensor]) -> Iterator[None]:
    """Every call of a fused operator as ``around(name, function, *arguments, **keywords)``."""
    from fassd_kernels import ops

    real = ops.operator
    # Every fused module asks this function for its kernel, on each call.
    ops.operator = lambda name, backend: functools.partial(around, name, real(name, backend))
    try:
        yield
    finally:
        ops.operator = real


def time_calls(model: nn.Module, picture: Tensor) -> list[float]:
    """Seconds of one forward as a whole, then of each of its calls in order."""
    seconds = []

    def timed(_: str, function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
        start = time.perf_counter()
        output = function(*arguments, **keywords)
        seconds.append(time.perf_counter() - start)
        return output

    with around_operators(timed):
        start = time.perf_counter()
        model(picture)
        return [time.perf_counter() - start, *seconds]


def trace(model: nn.Module, picture: Tensor) -> list[FusedCall]:
    """What the calls of one forward are.

    Args:
        model: an accelerated network of the family, all of it fused, in eval mode.
        picture: (N, 3, H, W).
    """
    from fassd_kernels import reference

    names = iter(_callers(model))
    calls = []

    def described(
        operator: str, function: Callable[..., Tensor], *arguments: Any, **keywords: Any
    ) -> Tensor:
        output = function(*arguments, **keywords)
        bound = inspect.signature(getattr(reference, operator)).bind(*arguments, **keywords)
        bound.apply_defaults()
        by_name = bound.arguments
        calls.append(
            FusedCall(
                next(names),
                describe(operator, by_name),
                tuple(tuple(image.shape) for image in images(by_name)),
                tuple(output.shape),
                work_of(operator, by_name, output),
            )
        )
        return output

    with around_operators(described):
        model(picture)
    return calls


def _callers(model: Any) -> list[str]:
    """Paths of the modules that call an operator, in the order of `FusedNetwork.forward`."""
    from fassd_kernels.modules import Fused

    parts = ("conv1x1_up", "mda", "denseBlocksUp")
    decoder = [f"{part}.{level}" for level in range(len(model.mda)) for part in parts]
    order = [*(f"base.{index}" for index in range(len(model.base))), "DAPF", *decoder, "finalConv"]
    return [*(name for name in order if isinstance(model.get_submodule(name), Fused)), HEAD]


def describe(operator: str, arguments: Mapping[str, Any]) -> str:
    """A few words for the table: the kernel of a convolution, else the operator's name."""
    if operator == "upsample_conv1x1":
        return "up, conv 1x1"
    if operator != "conv_act":
        return operator.replace("_", " ")
    height, width = arguments["weight"].shape[2:]
    stride = arguments["stride"][0]
    return f"conv {height}x{width}" + (
        f", stride {stride}" if stride > 1 else ", pool" if arguments["pool"] > 1 else ""
    )
