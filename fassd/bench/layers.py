"""`fassd bench layers`: every fused call of a network, predicted and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor, nn

from fassd.bench import stopwatch
from fassd.bench.costs.counts import WIDE
from fassd.bench.costs.roofline import (
    CallWork,
    Machine,
    RooflineTime,
    measure_machine,
    predict,
    work_of,
)
from fassd.bench.jobs import Job, build_model, render_batch, torch_dtype
from fassd.bench.machine import environment
from fassd.bench.tables import BenchReport, Column, heading, report_table
from fassd.models.clock import in_turns, timed
from fassd.models.device import torch_threads
from fassd.models.encoder import Encoder
from fassd_kernels.tuning.calls import OperatorCall, around_operators

HEAD = "head"
"""Name of the network's own last operator, the upsampling with argmax, in the list."""


@dataclass(frozen=True)
class FusedCall:
    """One call of a fused operator.

    Attributes:
        name: path of the module that makes it, or `HEAD`.
        kind: operation in a few words.
        input_shapes: shapes of its images, (N, C, H, W) each.
        output_shape: shape of its result, (N, C, H, W), or (N, H, W) for labels.
        work: work of the call.
    """

    name: str
    kind: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    work: CallWork


@dataclass(frozen=True)
class Layer:
    """A call, its predicted seconds, and its measured seconds inside the network."""

    call: FusedCall
    prediction: RooflineTime
    timing: stopwatch.CallTimes

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; times in seconds."""
        facts = ("name", "kind", "input_shapes", "output_shape")
        return {
            **{name: getattr(self.call, name) for name in facts},
            "macs": self.call.work.macs,
            "bytes": self.call.work.bytes,
            "arithmetic_floor_s": self.prediction.arithmetic,
            "memory_floor_s": self.prediction.memory,
            "predicted_s": self.prediction.seconds,
            **self.timing.to_json(),
        }


@dataclass(frozen=True)
class LayerReport(BenchReport):
    """All calls of one network in order of execution.

    `network` is the time of the whole forward pass, including work between the calls.
    """

    job: Job
    environment: dict[str, Any]
    machine: Machine
    layers: tuple[Layer, ...]
    network: stopwatch.CallTimes

    def parts(self, width: int) -> Iterator[RenderableType]:
        machine, network = self.machine, self.network
        yield heading(self.job, self.environment)
        yield Text(
            f"matrix product {2e-9 * machine.macs_per_s:.0f} GFLOP/s, "
            f"copy {1e-9 * machine.bytes_per_s:.1f} GB/s; whole network, {self.job.dtype}, "
            f"labels out: {1e3 * network.median:.2f} ±{1e3 * network.spread:.2f} ms"
        )
        yield report_table(self.layers, self._columns(width >= WIDE))
        yield (
            "predicted: the larger of arithmetic and memory traffic at those rates. GFLOP/s: of "
            "the convolutions as they are written, which Winograd's form may take beyond the "
            "matrix product's. floor: the arithmetic alone, in % of the time measured."
        )

    def _columns(self, with_kinds: bool) -> list[Column[Layer]]:
        kinds: list[Column[Layer]] = [
            Column("kind", lambda layer: layer.call.kind, words=True),
            Column("input", _inputs, words=True),
        ]
        return [
            Column("module", lambda layer: layer.call.name, "total", words=True),
            *(kinds if with_kinds else []),
            Column("output", lambda layer: _sides(layer.call.output_shape), words=True),
            *(_total_column(name, figure, self.layers) for name, figure in FIGURES.items()),
        ]


def _sides(shape: tuple[int, ...]) -> str:
    """A shape without the batch, which the heading states."""
    return "x".join(map(str, shape[1:]))


def _inputs(layer: Layer) -> str:
    first, *others = layer.call.input_shapes
    return _sides(first) + "".join(f"+{shape[1]}" for shape in others)


def _total_column(
    name: str, figure: Callable[[Sequence[Layer]], str], layers: Sequence[Layer]
) -> Column[Layer]:
    """A column of a figure for one layer, and for all layers."""
    return Column(name, lambda layer: figure([layer]), figure(layers))


def _macs(layers: Sequence[Layer]) -> int:
    return sum(layer.call.work.macs for layer in layers)


def _measured(layers: Sequence[Layer]) -> float:
    return sum(layer.timing.median for layer in layers)


def _of_time(figure: float, layers: Sequence[Layer]) -> str:
    """A figure over the measured time, for layers that multiply."""
    return f"{figure / _measured(layers):.0f}" if _macs(layers) else "-"


FIGURES: Mapping[str, Callable[[Sequence[Layer]], str]] = {
    "GMAC": lambda layers: f"{1e-9 * _macs(layers):.3f}",
    "predicted\nms": lambda layers: f"{1e3 * sum(x.prediction.seconds for x in layers):.2f}",
    "measured\nms": lambda layers: f"{1e3 * _measured(layers):.2f}",
    "GFLOP/s": lambda layers: _of_time(2e-9 * _macs(layers), layers),
    "floor\n%": lambda layers: _of_time(100 * sum(x.prediction.arithmetic for x in layers), layers),
}
"""Columns of figures: sums over some layers."""


# ------------------------------------------------------------------------------------- measurement


def run_layers(
    job: Job,
    *,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> LayerReport:
    """Predict and measure every call of the accelerated network, labels out, on the CPU.

    Args:
        job: job to run; its `compile` and `memory` are ignored.
        step: function called with a few words when each part begins.
        tick: function called after each of the `warmup + repeats` forward passes.

    Raises:
        ValueError: the model or dtype is unknown, the weights are unsuitable, or the size is too
            small.
        RuntimeError: a backend cannot be used on this machine.
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
        rounds = in_turns(
            [""], job.repeats, lambda *_: time_calls(model, picture), warmup=job.warmup, tick=tick
        )
        where = environment()
    network, *timings = (stopwatch.CallTimes(seconds) for seconds in zip(*rounds[""], strict=True))
    layers = tuple(
        Layer(call, predict(call.work, machine), timing)
        for call, timing in zip(calls, timings, strict=True)
    )
    return LayerReport(job, where, machine, layers, network)


def time_calls(model: nn.Module, picture: Tensor) -> list[float]:
    """Seconds of a whole forward pass, followed by those of each of its calls in order."""
    seconds = []

    def time_call(_: str, call: partial[Tensor]) -> Tensor:
        output, taken = timed(call)
        seconds.append(taken)
        return output

    with around_operators(time_call):
        _, whole = timed(partial(model, picture))
    return [whole, *seconds]


def trace(model: nn.Module, picture: Tensor) -> list[FusedCall]:
    """Describe the calls of one forward pass.

    Args:
        model: an accelerated network of the family, completely fused, in eval mode; or its decoder,
            behind an encoder whose graph was captured.
        picture: (N, 3, H, W).
    """
    model(picture)  # captures the encoder's graph, and chooses its kernels
    calls: list[FusedCall] = []

    def described(operator: str, made: partial[Tensor]) -> Tensor:
        output = made()
        call = OperatorCall.of(operator, *made.args, **made.keywords)
        calls.append(
            FusedCall(
                "",
                describe(call),
                tuple(tuple(image.shape) for image in call.images),
                tuple(output.shape),
                work_of(call, output),
            )
        )
        return output

    with around_operators(described):
        model(picture)
    names = _callers(model)
    captured = [f"base.body, call {number}" for number in range(1, len(calls) - len(names) + 1)]
    named = zip(calls, [*captured, *names], strict=True)
    return [replace(call, name=name) for call, name in named]


def _callers(model: Any) -> list[str]:
    """Paths of the modules that call an operator, in the order of `FusedNetwork.forward`."""
    from fassd_kernels.modules import Fused

    parts = ("conv1x1_up", "mda", "denseBlocksUp")
    decoder = [f"{part}.{level}" for level in range(len(model.mda)) for part in parts]
    path = "base.project" if isinstance(model.base, Encoder) else "base"  # of timm: 1x1 alone
    encoder = [f"{path}.{index}" for index in range(len(model.get_submodule(path)))]
    order = [*encoder, "DAPF", *decoder, "finalConv"]
    return [*(name for name in order if isinstance(model.get_submodule(name), Fused)), HEAD]


def describe(call: OperatorCall) -> str:
    """A few words for the table: a convolution's kernel, or else the operator's name."""
    if call.operator == "upsample_conv1x1":
        return "up, conv 1x1"
    if call.operator not in ("conv_act", "grouped_conv_act"):
        return call.operator.replace("_", " ")
    arguments = call.complete
    height, width = arguments["weight"].shape[2:]
    stride, groups = arguments["stride"][0], arguments.get("groups", 1)
    kind = f"conv {height}x{width}" + (f", {groups} groups" if groups > 1 else "")
    if stride > 1:
        return f"{kind}, stride {stride}"
    return f"{kind}, pool" if arguments.get("pool", 1) > 1 else kind
