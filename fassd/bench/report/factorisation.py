"""The gain of factorising a dilated convolution: DAPF against ASPP, MDA against plain 3x3s.

The authors' argument is about operations; this measures time as well, because a 3x1 and a 1x3 pass
over a map twice and a 3x3 passes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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


class Group(NamedTuple):
    """Modules that are compared, at one position in FASSD-Net.

    Attributes:
        name: "context" or the MDA's position.
        channels, reduction: number of channels of the input, and ratio of the picture's sides to
            the map's.
        members: name in tables, DAPF's alpha, and the function that makes it, of each module.
    """

    name: str
    channels: int
    reduction: int
    members: Sequence[tuple[str, int | None, Callable[[], nn.Module]]]


def groups() -> Iterator[Group]:
    context: list[Any] = [("ASPP", None, partial(ASPP, CONTEXT_CHANNELS))]
    for alpha in ALPHAS:
        context.append(("DAPF", alpha, partial(DAPF, CONTEXT_CHANNELS, alpha)))
        context.append(("DAPF with 3x3", alpha, partial(SquareDAPF, CONTEXT_CHANNELS, alpha)))
    yield Group("context", CONTEXT_CHANNELS, CONTEXT_REDUCTION, context)
    for channels, dilation, reduction in MDAS:
        members = (
            ("MDA", None, partial(MDA, channels, dilation)),
            ("MDA with 3x3", None, partial(SquareMDA, channels, dilation)),
            ("plain 3x3", None, partial(PlainMDA, channels)),
        )
        yield Group(f"MDA({channels}, {dilation})", channels, reduction, members)


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
        for group in groups():
            step(f"factorisation: {group.name}")
            modules += measure_group(group, size, repeats, warmup, notes)
    return {**facts, "modules": modules}


def measure_group(
    group: Group, size: tuple[int, int], repeats: int, warmup: int, notes: list[str]
) -> list[dict[str, Any]]:
    """The entries of one group; adds the reason for a missing fused time to `notes`."""
    import fassd_kernels

    calls: dict[str, Callable[[], Tensor]] = {}
    entries: list[dict[str, Any]] = []
    shape = (1, group.channels, *(side // group.reduction for side in size))
    for index, (name, alpha, build) in enumerate(group.members):
        torch.manual_seed(0)
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        module = build().apply(init_weights).eval()
        # torch's stub of Module.to has no overload of memory_format alone
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        calls[f"{index} eager"] = partial(module, x)
        counts = {
            "macs": count_macs(module, shape),
            "params": sum(parameter.numel() for parameter in module.parameters()),
        }
        facts = {"group": group.name, "name": name, "alpha": alpha, "map_shape": shape}
        entries.append({**facts, **counts})
        if type(module) in (ASPP, DAPF, MDA):  # the others have no fused form
            fused = fassd_kernels.accelerate(module)
            expected = module(x)
            error = ((fused(x) - expected).norm() / expected.norm()).item()
            if error <= TOLERANCE:
                calls[f"{index} fused"] = partial(fused, x)
            else:
                notes.append(f"{name}: the fused output is off by {error:.1e}, not timed")
    timings = stopwatch.compare(calls, repeats=repeats, warmup=warmup)
    for index, entry in enumerate(entries):
        for form in ("eager", "fused"):
            timing = timings.get(f"{index} {form}")
            entry[form] = timing and timing.to_json()
    return entries
