"""The gain of factorising a dilated convolution: DAPF against ASPP, MDA against plain 3x3s.

The authors' argument is about operations; this measures time as well, because a 3x1 and a 1x3 pass
over a map twice and a 3x3 passes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fassd.bench import stopwatch
from fassd.bench.costs.counts import count_macs
from fassd.bench.machine import environment
from fassd.models import ASPP, DAPF, MDA, ConvLayer
from fassd.models.dapf import DILATIONS
from fassd.models.device import torch_threads
from fassd.models.layers import BNPReLU, ConvBNPReLU, init_weights

ALPHAS = (1, 2, 4, 6, 8)
CONTEXT_CHANNELS, CONTEXT_REDUCTION = 224, 32
MDAS = ((192, 8, 16), (119, 4, 8), (63, 2, 4))
"""Channels, dilation, and ratio of the picture's sides to the map's."""

TOLERANCE = 4e-6
"""Tolerance of the fused output's error, relative to the reference, in the norm: float32."""


class SquareDAPF(nn.Module):
    """`DAPF` with one dilated 3x3 in place of each 3x1 and 1x3, that is, unfactorised.

    Shape: (N, inplanes, H, W) to the same.
    """

    def __init__(self, inplanes: int, alpha: int) -> None:
        super().__init__()
        width = inplanes // alpha
        self.branches = nn.ModuleList(
            [
                ConvLayer(inplanes, width, 1),
                *(ConvLayer(inplanes, width, dilation=dilation) for dilation in DILATIONS),
            ]
        )
        self.fuse = ConvLayer(4 * width, inplanes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([branch(x) for branch in self.branches], 1))


class SquareMDA(MDA):
    """`MDA` with one dilated 3x3 in place of its 3x1 and 1x3. (N, nIn, H, W) to the same."""

    def __init__(self, nIn: int, d: int) -> None:
        super().__init__(nIn, d)
        half = nIn // 2
        self.parallel_ddconv3x1 = ConvBNPReLU(half, half, (3, 3), dilation=d)
        # This attribute is declared as a convolution by its class.
        self.parallel_ddconv1x3 = nn.Identity()  # type: ignore[assignment]


class PlainMDA(nn.Module):
    """Batch norm, PReLU, one 3x3 at full width, plus the input: the plainest residual 3x3.

    Shape: (N, channels, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BNPReLU(channels)
        self.conv = ConvBNPReLU(channels, channels, (3, 3), bn_prelu=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))


class Member(NamedTuple):
    """A module at its position in FASSD-Net.

    Attributes:
        group: "context" or the MDA's position; only members of one group are compared.
        name, alpha: name in tables, and DAPF's alpha.
        build: function that makes it.
        channels, reduction: number of channels of its input, and ratio of the picture's sides to
            the map's.
        fused: True if there is a fused form.
    """

    group: str
    name: str
    build: Callable[[], nn.Module]
    channels: int
    reduction: int
    alpha: int | None = None
    fused: bool = True


def members() -> Iterator[Member]:
    context = (CONTEXT_CHANNELS, CONTEXT_REDUCTION)
    yield Member("context", "ASPP", partial(ASPP, CONTEXT_CHANNELS), *context)
    for alpha in ALPHAS:
        yield Member("context", "DAPF", partial(DAPF, CONTEXT_CHANNELS, alpha), *context, alpha)
        square = partial(SquareDAPF, CONTEXT_CHANNELS, alpha)
        yield Member("context", "DAPF with 3x3", square, *context, alpha, fused=False)
    for channels, dilation, reduction in MDAS:
        group = f"MDA({channels}, {dilation})"
        place = (channels, reduction)
        yield Member(group, "MDA", partial(MDA, channels, dilation), *place)
        unfactorised = partial(SquareMDA, channels, dilation)
        yield Member(group, "MDA with 3x3", unfactorised, *place, fused=False)
        yield Member(group, "plain 3x3", partial(PlainMDA, channels), *place, fused=False)


def run_factorisation(
    size: tuple[int, int] = (1024, 2048),
    *,
    repeats: int = 9,
    warmup: int = 2,
    threads: int | None = None,
    step: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure the modules at their positions in FASSD-Net, with those of one group interleaved.

    Returns the results for JSON: environment, size, dtype, notes, and the modules: for each group,
    name, alpha, map_shape (N, C, H, W), macs, params, and the timings in seconds: eager (plain
    PyTorch, channels_last) and fused (ours; None if there is no fused form, or if it disagreed).

    Args:
        size: (height, width) of the network's picture, multiples of 32.
        repeats, warmup: numbers of rounds, as in `fassd.bench.stopwatch.compare`.
        threads: number of PyTorch's threads; None leaves its own choice.
        step: function called with a few words when each part begins.

    Raises:
        ValueError: the size is not a multiple of 32.
    """
    if min(size) < CONTEXT_REDUCTION or any(side % CONTEXT_REDUCTION for side in size):
        raise ValueError(f"size must be multiples of {CONTEXT_REDUCTION}, got {size[0]}x{size[1]}")
    notes: list[str] = []
    with torch_threads(threads), torch.no_grad():
        facts = {"environment": environment(), "size": size, "dtype": "float32", "notes": notes}
        modules: list[dict[str, Any]] = []
        for name, group in groupby(members(), lambda member: member.group):
            step(f"factorisation: {name}")
            modules += measure_group(list(group), size, repeats, warmup, notes)
    return {**facts, "modules": modules}


def measure_group(
    group: list[Member], size: tuple[int, int], repeats: int, warmup: int, notes: list[str]
) -> list[dict[str, Any]]:
    """The entries of one group; adds the reason for a missing fused time to `notes`."""
    import fassd_kernels

    calls: dict[str, Callable[[], Tensor]] = {}
    entries: list[dict[str, Any]] = []
    for index, member in enumerate(group):
        torch.manual_seed(0)
        shape = (1, member.channels, *(side // member.reduction for side in size))
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        module = member.build().apply(init_weights).eval()
        # torch's stub of Module.to has no overload of memory_format alone
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        calls[f"{index} eager"] = partial(module, x)
        entries.append(
            {
                "group": member.group,
                "name": member.name,
                "alpha": member.alpha,
                "map_shape": shape,
                "macs": count_macs(module, shape),
                "params": sum(parameter.numel() for parameter in module.parameters()),
            }
        )
        if member.fused:
            fused = fassd_kernels.accelerate(module)
            expected = module(x)
            error = ((fused(x) - expected).norm() / expected.norm()).item()
            if error <= TOLERANCE:
                calls[f"{index} fused"] = partial(fused, x)
            else:
                notes.append(f"{member.name}: the fused output is off by {error:.1e}, not timed")
    timings = stopwatch.compare(calls, repeats=repeats, warmup=warmup)
    for index, entry in enumerate(entries):
        for form in ("eager", "fused"):
            timing = timings.get(f"{index} {form}")
            entry[form] = timing and timing.to_json()
    return entries
