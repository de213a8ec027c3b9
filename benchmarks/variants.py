"""The variants of the CUDA backend's convolution kernel, side by side on the shapes of a network.

The plan chooses one of them by a time model (``csrc/plan/plan.cpp``), whose constants are judged by
the distance of its choices from the fastest.

``python -m benchmarks.variants`` measures nothing: for every network of the family, batches of 1
and 8, 256x512 to 1024x2048, on GPUs of five sizes, it counts the launches of each variant of a
convolution or pair. Variants that are never used need not be compiled: the lists are in
``csrc/plan/plan.h``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Record, data_of_part, number, share, table, table_of
from benchmarks.tools import Visit
from fassd.bench.candidates import UnavailableError, require_operators
from fassd.bench.costs.cuda import (
    FLOAT32,
    HALF,
    TF32,
    Convolution,
    Model,
    check_requirements,
    find_device,
)
from fassd.bench.stopwatch import Call, Inputs, Run, graph_run, interleaved, warm_up
from fassd.bench.subjects import Case
from fassd.evaluation.agreement import TOLERANCES, compare
from fassd.models import list_models
from fassd.models.clock import Sampling, rotation
from fassd.models.device import DTYPES
from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.device import SHARED, Device, describe_gpu, device_named

VARIABLE = "FASSD_KERNELS_CUDA_VARIANT"
FUSION = "FASSD_KERNELS_CUDA_FUSION"
COPIES = "FASSD_KERNELS_CUDA_COPIES"
STEM_CHANNELS = 3
"""Number of input channels for which there is a special kernel."""

REHEARSED = "H200"
"""The GPU to plan for if there is none."""

ROUNDS, SAMPLE_MS = 7, 2.0
"""Maximum seconds for each variant: there are some twenty for each of fifty shapes."""


@dataclass(frozen=True)
class KernelVariant:
    """A kernel, by its template's parameters: Variant in ``csrc/plan/plan.h``."""

    warps: int
    m_tiles: int
    n_tiles: int
    sliding: bool = False
    splits: int = 1

    @property
    def text(self) -> str:
        """The value of the environment variable."""
        text = f"{self.warps},{self.m_tiles},{self.n_tiles},{int(self.sliding)}"
        return text if self.splits == 1 else f"{text},{self.splits}"

    def forced(self) -> AbstractContextManager[None]:
        """Use the variant wherever it fits; the plan reads the variable at every call."""
        return setting(VARIABLE, self.text)


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block; the others are not changed."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def known_variants(arithmetic: int, kernel: str = "convolution_kernel") -> list[KernelVariant]:
    """The compiled variants of a template, for `HALF`, `TF32` or `FLOAT32`."""
    rows = torch.ops.fassd_kernels_plan.variants(arithmetic, kernel).tolist()
    return [KernelVariant(warps, m, n, bool(s), splits) for warps, m, n, s, splits in rows]


def measure_variants(
    visit: Visit, backend: str, network: str, batch: int, height: int, width: int, dtype: str
) -> dict[str, Any]:
    """Time every variant that fits on every convolution of a network, the longest first.

    Args:
        visit: run that this belongs to; on a CPU, where no variant is forced, this is rehearsed.
            After half of its limit no further shape is started.
        backend: name of our backend.
        network: name of the network.
        batch, height, width, dtype: batch, size and dtype of the pictures.

    Returns:
        ``shapes``, a record each, see `measure_shape`; ``left``, the number of shapes without time
        left.

    Raises:
        UnavailableError: the backend, or its planner, is not available.
    """
    device = visit.device
    require_operators(backend, frozenset({"conv_act"}), device)
    try:
        check_requirements()
        target = describe_gpu(device) if device.type == "cuda" else find_device(REHEARSED)
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    case = Case("networks", network, height, width, dtype, batch)
    model = Model(target, case.torch_dtype, arithmetic_of(dtype) == "tf32")
    shapes = shapes_of(case, target, model)
    started = time.monotonic()
    records: list[dict[str, Any]] = []
    for shape, count in shapes:
        if time.monotonic() - started > visit.limit_s / 2:
            break
        records.append(
            {**measure_shape(visit, shape, model.limits, dtype, backend), "count": count}
        )
    left = len(shapes) - len(records)
    return {"network": network, "dtype": dtype, "shapes": records, "left": left}


def arithmetic_of(dtype: str) -> str:
    """Rounding of products: a key of `TOLERANCES`."""
    from fassd_kernels.triton.program import tf32_requested

    return "tf32" if dtype == "float32" and tf32_requested() else dtype


def shapes_of(case: Case, target: Any, model: Any) -> list[tuple[Any, int]]:
    """A network's distinct convolutions, `Convolution`, with their numbers of launches.

    Those with the longest predicted launches come first.
    """
    from fassd.bench.costs.triton import record_network  # imports Triton

    size = case.height, case.width
    calls, _ = record_network(case.subject, *size, target, case.batch, case.torch_dtype)
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
    """The present plan of a convolution: `shape.plan` caches an earlier one."""
    return type(shape).plan.__wrapped__(shape, limits)


def fitting(shape: Any, limits: Any) -> dict[KernelVariant, Any]:
    """The variants that can compute a convolution, and the plan of each."""
    plans = {}
    for variant in known_variants(HALF if shape.arithmetic == HALF else FLOAT32):
        with variant.forced():
            plan = plan_of(shape, limits)
        if variant == KernelVariant(
            plan.warps, plan.m_tiles, plan.n_tiles, bool(plan.sliding), plan.splits
        ):
            plans[variant] = plan
    return plans


def measure_shape(
    visit: Visit, shape: Any, limits: Any, dtype: str, backend: str
) -> dict[str, Any]:
    """Measure all variants that fit, in turns, after comparing each with the float64 reference.

    Returns:
        ``shape`` in words; ``planned``, the variant in the plan; ``best``, the fastest correct one
        (None if there is none); ``variants``: the figures and ``match`` of each.
    """
    torch.manual_seed(0)
    where = DTYPES[dtype], visit.device
    values = sum(shape.channels) * math.prod(shape.size)
    values += shape.out_channels * math.prod(shape.out_size) // shape.pool**2
    count = rotation(shape.batch * values * DTYPES[dtype].itemsize, visit.bench.cache_bytes)
    weight, bias = weights_of(shape, *where)
    sets = [images_of(shape, *where) for _ in range(count)]
    expected = [exact(shape, images, weight, bias) for images in (sets[0], sets[-1])]
    call = call_of(shape, weight, bias, backend)
    limit = TOLERANCES["operators"][arithmetic_of(dtype)]
    most = visit.bench.sampling
    sampling = Sampling(min(most.rounds, ROUNDS), min(most.sample_ms, SAMPLE_MS))
    records: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for variant, plan in fitting(shape, limits).items():
        record = {"variant": variant.text, "predicted_cycles": plan.cycles, "tile": plan.tile}
        records[variant.text] = record
        try:
            with torch.no_grad(), variant.forced():
                warm_up(call, sets[:1])
                run = graph_run(call, sets)
                compare(run.outputs(), expected, limit, record)
        except RuntimeError as error:  # the others are still worth measuring
            record.update(match=False, reason=first_line(error))
            continue
        # A replay repeats the capture; calls that could not be captured also need the variable.
        forced = run if run.method == "graph" else replace(run, once=partial(called, variant, run))
        runs[variant.text] = forced
    for name, timing in interleaved(runs, visit.device, sampling).items():
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


def called(variant: KernelVariant, run: Run) -> None:
    with variant.forced(), torch.no_grad():
        run.once()


def describe(shape: Any) -> str:
    """Text such as ``1x512x1024, 10+48>18, 3x3, stride 2x2``: the input with its channels."""
    sides = {"stride": shape.stride, "dilation": shape.dilation}
    more = [f"{name} {pair[0]}x{pair[1]}" for name, pair in sides.items() if pair != (1, 1)]
    more += [f"pool {shape.pool}"] if shape.pool > 1 else []
    channels = "+".join(map(str, shape.channels))
    size = "x".join(map(str, (shape.batch, *shape.size)))
    kernel = "x".join(map(str, shape.kernel))
    return ", ".join([size, f"{channels}>{shape.out_channels}", kernel, *more])


# --- the call -------------------------------------------------------------------------------------


def images_of(shape: Any, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs, in a previous kernel's layout: a pixel's channels adjacent, whole vectors."""
    from fassd_kernels.triton.layout import empty_image

    images = []
    for channels in shape.channels:
        image = empty_image((shape.batch, channels, *shape.size), dtype, device, True)
        room = image.untyped_storage().nbytes() // image.element_size()
        image.as_strided((room,), (1,), 0).zero_()  # also after a pixel's channels
        images.append(image.copy_(torch.randn(image.shape, device=device)))
    return tuple(images)


def weights_of(shape: Any, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random weights that keep the variance, in the order of folded ones."""
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


# --- the page -------------------------------------------------------------------------------------

MOST_SHAPES = 20
"""Maximum convolutions on the page whose fastest variant is not the planned one."""


def variants_section(report: Record, part: str) -> str:
    return "\n".join(map(variants_text, data_of_part(report, part)))


Timed = tuple[Record, float, float]
"""A shape, with the microseconds of a launch as planned and with the fastest variant."""

SHAPE_COLUMNS: tuple[tuple[str, Callable[[Timed], str]], ...] = (
    ("convolution", lambda row: row[0]["shape"]),
    ("x", lambda row: str(row[0]["count"])),
    ("planned", lambda row: row[0]["planned"]),
    ("us", lambda row: number(row[1])),
    ("fastest", lambda row: row[0]["best"]),
    ("us", lambda row: number(row[2])),
    ("of planned", lambda row: share(row[2], row[1])),
)
"""Variants are warps, m_tiles, n_tiles, sliding, splits."""


def variants_text(data: Record) -> str:
    """Shapes with the largest possible gain come first."""
    timed: list[Timed] = []
    for shape in data["shapes"]:
        us = {v["variant"]: 1e3 * v["timing"]["ms"] for v in shape["variants"] if "timing" in v}
        if shape["planned"] in us and shape["best"] in us:
            timed.append((shape, us[shape["planned"]], us[shape["best"]]))
    total = sum(shape["count"] * planned for shape, planned, _ in timed)
    possible = sum(shape["count"] * best for shape, _, best in timed)
    won = [row for row in timed if row[2] < row[1]]
    won.sort(key=lambda row: row[0]["count"] * (row[2] - row[1]))
    left = f", {data['left']} shapes were left for want of time" if data["left"] else ""
    text = (
        f"{data['network']}, {data['dtype']}: {len(data['shapes'])} shapes, whose launches take "
        f"{number(total)} us as planned and {number(possible)} us with the fastest variants{left}."
        "\n"
    )
    return "\n".join([text, table_of(SHAPE_COLUMNS, won[:MOST_SHAPES])]) if won else text


def wrong_variants(data: Record) -> list[str]:
    """Variants that gave wrong results, in words."""
    return [
        f"variant {variant['variant']} is wrong on {shape['shape']}"
        + (f": {variant['reason']}" if "reason" in variant else "")
        for shape in data["shapes"]
        for variant in shape["variants"]
        if not variant["match"]
    ]


# --- which of them the plans use ------------------------------------------------------------------

ARITHMETIC = {HALF: "half", TF32: "tf32", FLOAT32: "float32"}
SIZES = ((256, 512), (512, 1024), (1024, 2048))
BATCHES = (1, 8)
KERNELS = ("convolution_kernel", "pair_kernel")

Kernel = tuple[str, str, KernelVariant]
"""A template, its arithmetic and its variant."""


def devices() -> list[Device]:
    named = [device_named(name) for name in ("H200", "A100", "RTX 4090", "Tesla T4")]
    orin = replace(
        named[1], name="Jetson AGX Orin", arch=87, multiprocessors=16, shared=SHARED[87] * 1024
    )
    return [*named, orin]


def kernel_of(answer: dict[str, Any]) -> Kernel | None:
    """The kernel of a launch; None if it has one of its own."""
    if answer["kernel"] not in KERNELS:
        return None
    blocks = answer["blocks"][0]
    variant = KernelVariant(**{part.name: blocks[part.name] for part in fields(KernelVariant)})
    return answer["kernel"], answer["arithmetic"], variant


def answers(networks: Sequence[str], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """All launches of the networks, planned for each GPU, in float32 with and without TF32."""
    from fassd.bench.costs.triton import record_network

    for name, size, batch in itertools.product(networks, SIZES, BATCHES):
        calls, _ = record_network(name, *size, device_named(REHEARSED), batch, dtype)
        for device, tf32 in itertools.product(devices(), {False, dtype == torch.float32}):
            model = Model(device, dtype, tf32)
            for call in calls:
                yield from model.answer(call)
        print(name, size, batch, dtype, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Count the launches that take each variant.")
    parser.add_argument("networks", nargs="*", default=list_models())
    options = parser.parse_args(arguments)
    taken = Counter(
        kernel_of(answer)
        for dtype in (torch.float16, torch.float32)
        for answer in answers(options.networks, dtype)
    )
    rows = [
        [kernel, name, variant.text, str(taken[kernel, name, variant])]
        for arithmetic, name in ARITHMETIC.items()
        for kernel in KERNELS
        for variant in known_variants(arithmetic, kernel)
    ]
    print(table(("kernel", "arithmetic", "variant", "launches"), rows))


if __name__ == "__main__":
    main()
