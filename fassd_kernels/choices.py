"""The fastest backend for a call, from measurements on this GPU.

Tables are JSON files by GPU, ``configs/backends/<gpu name>.json``: first those of the package, then
the user's own, in the folder of the Triton configurations, which ``python -m fassd_kernels.tune
--backends`` writes (:mod:`fassd_kernels.tuning.backends`). A row holds a call's operator, shapes,
options and type, and the median microseconds of every backend that gave the right numbers. The
smallest is chosen; for calls that no table has, the caller decides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.configurations import (
    FORMAT,
    existing_table,
    file_name,
    read_rows,
    user_folder,
    write_content,
)
from fassd_kernels.triton.device import describe_gpu
from fassd_kernels.triton.program import tf32_requested

Medians: TypeAlias = Mapping[str, float | None]
"""Backend -> microseconds; None for one that was tried and must not be chosen."""

SHIPPED = Path(__file__).with_name("configs") / "backends"
NOISE = 0.02  # medians that differ by less count as equal, and the order of the candidates decides

# --- keys -----------------------------------------------------------------------------------------

NOTHING: Mapping[str, Any] = MappingProxyType({})


def shape_key(
    operator: str, images: Sequence[Tensor], arguments: Mapping[str, Any] = NOTHING
) -> str:
    """A readable table key of everything that a call's speed depends on.

    ``conv_act 1x48x256x512 > 64x3x3 stride=2,2 dilation=1,1 activation=relu pool=1 float16`` is a
    convolution to 64 channels with a 3 x 3 kernel.

    Strides are left out: fused modules pass images on in channels_last.

    Args:
        operator: name of the operator.
        images: sizes N x C x H x W of each image, in the order of the operator's arguments; for
            ``upsample_conv1x1`` first the low ones, then the skips.
        arguments: other arguments by name, as the operator takes them. Only weights, the residual
            and options are used, and defaults may be left out. The key contains only those flags
            that differ from their default.

    Returns:
        The key; empty under a compiler or a tracer, where sizes may not be numbers.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return ""
    row = OPERATORS[operator]
    weights: list[Any] = []
    for name in row.weights:
        value = arguments[name]
        if isinstance(value, Tensor):
            weights.append(value.shape)
        else:
            weights += [weight.shape for weight in value]
    options = []
    for name, default in row.options:
        value = arguments.get(name, default)
        if isinstance(value, list):
            value = tuple(value)
        elif type(value) is int and isinstance(default, tuple):
            value = (value, value)
        options.append(value)
    dtype = images[0].dtype
    return render_key(
        operator,
        tuple([image.shape for image in images]),
        tuple(weights),
        tuple(options),
        arguments.get("residual") is not None,
        dtype,
        dtype == torch.float32 and tf32_requested(),
    )


@functools.lru_cache(maxsize=4096)
def render_key(
    operator: str,
    images: tuple[torch.Size, ...],
    weights: tuple[torch.Size, ...],
    options: tuple[Any, ...],
    residual: bool,
    dtype: torch.dtype,
    tf32: bool,
) -> str:
    """:func:`shape_key` from values that can be compared quickly: it is needed on every call."""

    def formatted(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else text_of(value)

    parts = [operator, "+".join("x".join(map(str, image)) for image in images)]
    if weights:  # their input channels are those of the images
        parts += [">", "+".join("x".join(map(str, (w[0], *w[2:]))) for w in weights)]
    parts += [
        f"{name}={formatted(value)}"
        for (name, default), value in zip(OPERATORS[operator].options, options, strict=True)
        if not (isinstance(value, bool) and value is default)  # which older tables do not have
    ]
    if residual:
        parts.append("residual")
    return " ".join([*parts, text_of(dtype), *(["tf32"] if tf32 else [])])


def text_of(value: object) -> str:
    return str(value).removeprefix("torch.")


# --- choice ---------------------------------------------------------------------------------------


def best(device: torch.device, key: str, candidates: Sequence[str]) -> str | None:
    """The fastest of some backends for a call, by the tables of a GPU.

    Args:
        device: device of the call's tensors.
        key: key of the call, from :func:`shape_key`.
        candidates: names of the backends that can run it, the default first.

    Returns:
        One of `candidates`; None on a CPU, and if the tables cannot decide (:func:`fastest`).
    """
    if device.type != "cuda" or not key:
        return None
    return fastest(table_of(describe_gpu(device).name).get(key, {}), candidates)


def fastest(medians: Medians, candidates: Sequence[str]) -> str | None:
    """The first of the candidates that is as fast as the fastest, within :data:`NOISE`.

    Returns:
        Its name; None if one of them was never tried, as it might be faster than all the others, or
        if none of them gave the right numbers.
    """
    if any(name not in medians for name in candidates):
        return None
    times = {name: medians[name] for name in candidates}
    right = {name: time for name, time in times.items() if time is not None}
    limit = min(right.values(), default=0.0) * (1 + NOISE)
    return next((name for name, time in right.items() if time <= limit), None)


# --- tables ---------------------------------------------------------------------------------------


def user_path(gpu: str) -> Path:
    """Path of the user's own table of a GPU."""
    return user_folder() / "backends" / file_name(gpu)


@functools.cache
def table_of(gpu: str) -> dict[str, Medians]:
    """Measurements on a GPU by key; the user's own rows replace the package's."""
    return {
        **existing_table(lambda: SHIPPED / file_name(gpu), read_table),
        **existing_table(lambda: user_path(gpu), read_table),
    }


def read_table(path: Path) -> dict[str, Medians]:
    """Rows of a table; none, with a warning, from an invalid file."""
    return read_rows(path, "median_us", "backends", medians_of, "the order of the backends decides")


def medians_of(key: str, row: Any) -> Medians:
    """Parse a table's row."""
    if not all(map(is_median, row.values())):
        raise ValueError(f"{key!r} is {row}; expected microseconds above 0, or null")
    return dict(row)


def is_median(value: object) -> bool:
    """True if a value is a valid median: the table may have been edited by hand."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0 < value < math.inf
    return value is None


def write_table(
    path: Path, gpu: str, table: Mapping[str, Medians], facts: Mapping[str, str]
) -> None:
    """Write a table, completely or not at all."""
    rows = {
        key: {name: time if time is None else round(time, 3) for name, time in row.items()}
        for key, row in sorted(table.items())
    }
    write_content(path, {"format": FORMAT, "gpu": gpu, **facts, "median_us": rows})
    table_of.cache_clear()
