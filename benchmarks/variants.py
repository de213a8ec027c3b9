"""The variants of the CUDA backend's convolution kernel, side by side on the shapes of a network.

Its plan takes one of them by a model of the time (``csrc/plan/plan.cpp``), whose constants are
judged by how far what it takes is from the fastest.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Record, data_of_part, number, share, table
from fassd.bench.cases import TOLERANCES, compare
from fassd.bench.forms import UnavailableError, require_operators
from fassd.bench.subjects import DTYPES
from fassd.bench.timing import (
    Call,
    Inputs,
    Run,
    Sampling,
    first_line,
    graph_run,
    interleaved,
    rotation,
    warm_up,
)

VARIABLE = "FASSD_KERNELS_CUDA_VARIANT"
FUSION = "FASSD_KERNELS_CUDA_FUSION"
STEM_CHANNELS = 3
"""An input of so few has a kernel of its own."""

REHEARSED = "H200"
"""The GPU that is planned for where there is none."""

SAMPLING = Sampling(rounds=7, sample_ms=2.0)
"""Of each variant: there are some twenty for each of fifty shapes."""


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """An environment variable that has a value for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@dataclass(frozen=True)
class Variant:
    """A kernel, by its template's parameters: Variant in ``csrc/plan/plan.h``."""

    warps: int
    m_tiles: int
    n_tiles: int
    sliding: bool = False

    @property
    def text(self) -> str:
        """As the environment variable takes it."""
        return f"{self.warps},{self.m_tiles},{self.n_tiles},{int(self.sliding)}"

    @contextmanager
    def forced(self) -> Iterator[None]:
        """The variant is taken wherever it fits; the plan reads the variable at every call."""
        with setting(VARIABLE, self.text):
            yield


def known_variants(arithmetic: str) -> list[Variant]:
    """Those that are compiled, for ``halves`` or ``floats``."""
    rows = torch.ops.fassd_kernels_plan.variants(0 if arithmetic == "halves" else 2).tolist()
    return [Variant(warps, m, n, bool(sliding)) for warps, m, n, sliding in rows]


def measure_variants(
    device: torch.device,
    backend: str,
    network: str,
    sampling: Sampling,
    limit_s: float,
    batch: int,
    height: int,
    width: int,
    dtype: str,
) -> dict[str, Any]:
    """Time every variant that fits on every convolution of a network, the longest first.

    Args:
        device: a GPU; on a CPU, where no variant is forced, this is rehearsed.
        backend: of ours.
        network: its name.
        sampling: the most that a figure is sampled; no more than `SAMPLING`.
        limit_s: seconds, after which no further shape is begun.
        batch, height, width, dtype: of the pictures.

    Returns:
        ``shapes``, a record each, see `measure_shape`; ``left``, the number of those for which
        there was no time.

    Raises:
        UnavailableError: the backend, or what the plans are made with, is not there.
    """
    from fassd.bench.costs import cuda as predict
    from fassd_kernels.triton.device import describe_gpu

    require_operators(backend, frozenset({"conv_act"}), device)
    try:
        predict.check_requirements()
        target = describe_gpu(device) if device.type == "cuda" else predict.find_device(REHEARSED)
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    model = predict.Model(target, DTYPES[dtype], tf32_allowed(dtype))
    shapes = shapes_of(network, batch, height, width, DTYPES[dtype], target, model)
    less = Sampling(
        min(sampling.rounds, SAMPLING.rounds), min(sampling.sample_ms, SAMPLING.sample_ms)
    )
    measure = partial(measure_shape, limits=model.limits, dtype=dtype, device=device,
                      backend=backend, sampling=less)  # fmt: skip
    started = time.monotonic()
    records = []
    for shape, count in shapes:
        if time.monotonic() - started > limit_s:
            break
        records.append({**measure(shape), "count": count})
    return {"network": network, "dtype": dtype, "shapes": records,
            "left": len(shapes) - len(records)}  # fmt: skip


def tf32_allowed(dtype: str) -> bool:
    from fassd_kernels.triton.program import tf32_requested

    return dtype == "float32" and tf32_requested()


def shapes_of(
    network: str, batch: int, height: int, width: int, dtype: torch.dtype, target: Any, model: Any
) -> list[tuple[Any, int]]:
    """A network's distinct convolutions, `predict.Convolution`, and how often each is launched.

    Those whose launches should take longest come first.
    """
    from fassd.bench.costs.cuda import Convolution
    from fassd.bench.costs.triton import record_network

    calls, _ = record_network(network, height, width, target, batch, dtype)
    with setting(FUSION, "never"):
        answers = [answer for call in calls for answer in model.answer(call)]
    convolutions = Counter(
        Convolution.of(answer["convolution"])
        for answer in answers
        if answer["kernel"] == "convolution_kernel"
    )
    # Pairs of a 3x1 and a 1x3 are one kernel, or these two.
    wanted = [
        (shape, count)
        for shape, count in convolutions.items()
        if shape.kernel[0] == shape.kernel[1] and shape.channels != (STEM_CHANNELS,)
    ]
    return sorted(wanted, key=lambda pair: -pair[1] * pair[0].plan(model.limits).cycles)


def plan_of(shape: Any, limits: Any) -> Any:
    """The plan of a convolution as it is now: `shape.plan` remembers what it was."""
    return type(shape).plan.__wrapped__(shape, limits)


def fitting(shape: Any, limits: Any) -> dict[Variant, Any]:
    """The variants that can compute a convolution, and the plan of each."""
    arithmetic = "halves" if shape.arithmetic == 0 else "floats"
    plans = {}
    for variant in known_variants(arithmetic):
        with variant.forced():
            plan = plan_of(shape, limits)
        if (plan.warps, plan.m_tiles, plan.n_tiles) == (
            variant.warps, variant.m_tiles, variant.n_tiles,
        ):  # fmt: skip
            plans[variant] = plan
    return plans


def measure_shape(
    shape: Any, limits: Any, dtype: str, device: torch.device, backend: str, sampling: Sampling
) -> dict[str, Any]:
    """All variants that fit, in turns, each compared with the float64 reference first.

    Returns:
        ``shape`` in words; ``planned``, the variant that the plan takes; ``best``, the fastest
        that is right (None if none is); ``variants``: of each its figures, and ``match``.
    """
    torch.manual_seed(0)
    values = sum(shape.channels) * math.prod(shape.size)
    values += shape.out_channels * math.prod(shape.out_size) // shape.pool**2
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = rotation(shape.batch * values * DTYPES[dtype].itemsize, cache)
    weight, bias = weights_of(shape, DTYPES[dtype], device)
    sets = [images_of(shape, DTYPES[dtype], device) for _ in range(count)]
    expected = [exact(shape, images, weight, bias) for images in (sets[0], sets[-1])]
    call = call_of(shape, weight, bias, backend)
    limit = TOLERANCES["operators"]["tf32" if tf32_allowed(dtype) else dtype]
    records: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for variant, plan in fitting(shape, limits).items():
        record: dict[str, Any] = {"variant": variant.text, "predicted_cycles": plan.cycles,
                                  "tile": plan.tile}  # fmt: skip
        records[variant.text] = record
        try:
            with torch.no_grad(), variant.forced():
                warm_up(call, sets[:1])
                run = graph_run(call, sets)
                compare(run.outputs(), expected, limit, record)
        except RuntimeError as error:  # the others are still worth measuring
            record.update(match=False, reason=first_line(error))
            continue
        runs[variant.text] = replace(run, once=partial(run_forced, variant, run))
    for name, timing in interleaved(runs, device, sampling).items():
        records[name]["timing"] = timing.record()
    right = [record for record in records.values() if record["match"]]
    best = min(right, key=lambda record: record["timing"]["ms"], default=None)
    taken = plan_of(shape, limits)
    planned = next(
        name for name, record in records.items()
        if name.startswith(f"{taken.warps},{taken.m_tiles},{taken.n_tiles},")
    )  # fmt: skip
    return {
        "shape": describe(shape),
        "planned": planned,
        "best": best["variant"] if best else None,
        "variants": list(records.values()),
    }


def run_forced(variant: Variant, run: Run) -> None:
    """A replay is what was captured; calls that could not be captured need the variable too."""
    with variant.forced(), torch.no_grad():
        run.once()


def describe(shape: Any) -> str:
    """Such as ``1x512x1024, 10+48>18, 3x3, stride 2x2``: of the input, with its channels."""
    sides = {"stride": shape.stride, "dilation": shape.dilation}
    more = [f"{name} {pair[0]}x{pair[1]}" for name, pair in sides.items() if pair != (1, 1)]
    more += [f"pool {shape.pool}"] if shape.pool > 1 else []
    channels = "+".join(map(str, shape.channels))
    size = "x".join(map(str, (shape.batch, *shape.size)))
    kernel = "x".join(map(str, shape.kernel))
    return ", ".join([size, f"{channels}>{shape.out_channels}", kernel, *more])


# --- the call -------------------------------------------------------------------------------------


def images_of(shape: Any, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs, as the kernel before leaves them: a pixel's channels together, whole vectors."""
    from fassd_kernels.triton.layout import empty_image

    images = []
    for channels in shape.channels:
        image = empty_image((shape.batch, channels, *shape.size), dtype, device, True)
        room = image.untyped_storage().nbytes() // image.element_size()
        image.as_strided((room,), (1,), 0).zero_()  # behind a pixel's channels too
        images.append(image.copy_(torch.randn(image.shape, device=device)))
    return tuple(images)


def weights_of(shape: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random ones that keep the variance, in the order that folded ones have."""
    from fassd_kernels.packing import outputs_adjacent

    inputs = sum(shape.channels) * shape.kernel[0] * shape.kernel[1]
    size = (shape.out_channels, sum(shape.channels), *shape.kernel)
    weight = torch.randn(size, device=device) * (2 / inputs) ** 0.5
    bias = 0.1 * torch.randn(shape.out_channels, device=device)
    return outputs_adjacent(weight.to(dtype)), bias.to(dtype)


def options_of(shape: Any) -> dict[str, Any]:
    return {"stride": list(shape.stride), "dilation": list(shape.dilation), "pool": shape.pool,
            "activation": "relu"}  # fmt: skip


def call_of(shape: Any, weight: Tensor, bias: Tensor, backend: str) -> Call:
    from fassd_kernels import ops

    places = {"stride": list(shape.stride), "dilation": list(shape.dilation)}
    packed = ops.packer(backend)(weight, **places)
    function = ops.operator("conv_act", backend)
    return lambda *images: function(list(images), weight, bias, packed=packed, **options_of(shape))


def exact(shape: Any, images: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """The reference in float64."""
    from fassd_kernels import reference

    with torch.no_grad():
        return reference.conv_act(
            [image.double() for image in images], weight.double(), bias.double(),
            **options_of(shape),
        )  # fmt: skip


# --- variants -------------------------------------------------------------------------------------

MOST_SHAPES = 20
"""Of convolutions whose fastest variant is not the planned one, the page lists so many."""


def figures_of(shape: Record) -> tuple[float, float] | None:
    """Milliseconds of what the plan takes, and of the fastest variant that is right; None where
    one of them was not timed.
    """
    times = {one["variant"]: one["timing"]["ms"] for one in shape["variants"] if "timing" in one}
    if shape["planned"] not in times or shape["best"] not in times:
        return None
    return times[shape["planned"]], times[shape["best"]]


def variants_section(report: Record) -> str:
    parts = [variants_text(data) for data in data_of_part(report, "variants")]
    return "\n".join(["## Variants of the convolution kernel\n", *parts]) if parts else ""


def variants_text(data: Record) -> str:
    """Where most is to be won comes first; warps, m_tiles, n_tiles, sliding."""
    rows, total, possible = [], 0.0, 0.0
    for shape in data["shapes"]:
        figures = figures_of(shape)
        if figures is None:
            continue
        planned, best = figures
        total += shape["count"] * planned
        possible += shape["count"] * (planned - best)
        if best < planned:
            cells = [
                shape["shape"],
                str(shape["count"]),
                shape["planned"],
                number(1e3 * planned),
                shape["best"],
                number(1e3 * best),
                share(best, planned),
            ]
            rows.append((shape["count"] * (planned - best), cells))
    rows = sorted(rows, key=lambda row: -row[0])[:MOST_SHAPES]
    header = ["convolution", "x", "planned", "us", "fastest", "us", "of planned"]
    left = f", {data['left']} shapes were left for want of time" if data["left"] else ""
    text = (
        f"{data['network']}, {data['dtype']}: {len(data['shapes'])} shapes, whose launches take "
        f"{number(1e3 * total)} us as planned and {number(1e3 * (total - possible))} us with the "
        f"fastest variants{left}.\n"
    )
    return "\n".join([text, table(header, [cells for _, cells in rows])]) if rows else text


def wrong_variants(data: Record) -> list[str]:
    """In words, those that gave wrong results."""
    return [
        f"variant {variant['variant']} is wrong on {shape['shape']}"
        + (f": {variant['reason']}" if "reason" in variant else "")
        for shape in data.get("shapes", ())
        for variant in shape["variants"]
        if not variant["match"]
    ]
