"""Dividing a network into the parts that are rows in a table of costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from fassd.models import ASPP, DAPF, MDA, ConvLayer, HarDBlock
from fassd.models.encoder import Encoder

KNOWN_PARTS = (ASPP, DAPF, MDA, ConvLayer, HarDBlock)
JOINTS = "(joints)"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class PartCost:
    """The costs of one part of a network.

    Attributes:
        name: path of the module in the model; ``base.0-3`` for merged neighbours; `JOINTS` for the
            operations between parts, resizing and concatenating.
        kind: class of the module, with its distinguishing arguments.
        output_shape: shape (N, C, H, W) of the last tensor that it produced.
        params: number of parameters, each counted once, at its first use.
        conv_macs, ptflops_macs, allocated_bytes: costs, as in `Complexity`.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] = ()
    params: int = 0
    conv_macs: int = 0
    ptflops_macs: int = 0
    allocated_bytes: int = 0


def parts_of(module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    """(path, kind) of the parts below `module`: the known ones, and modules beside them.

    Lists, and modules with known parts inside them, are not parts but contain parts.
    """
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(module, Encoder) and child is module.body:
            yield child_path, f"{module.name}, of timm"
            continue
        inside = (inner for inner in child.modules() if inner is not child)
        holds_parts = isinstance(child, CONTAINERS) or any(
            isinstance(inner, KNOWN_PARTS) for inner in inside
        )
        if holds_parts and not isinstance(child, KNOWN_PARTS):
            yield from parts_of(child, child_path)
        else:
            yield child_path, _kind(child)


def _kind(module: nn.Module) -> str:
    details: dict[type[nn.Module], Callable[[Any], str]] = {
        ConvLayer: lambda layer: _conv_kind(layer.conv),
        HarDBlock: lambda block: f"{block.n_layers} layers, growth {block.growth_rate}",
        DAPF: lambda dapf: f"{dapf.inplanes} channels, alpha {dapf.alpha}",
        ASPP: lambda aspp: f"{aspp.inplanes} channels, width {aspp.width}",
        MDA: lambda mda: f"{mda.nIn} channels, dilation {mda.d}",
        nn.Conv2d: _conv_kind,
    }
    for known, describe in details.items():
        if isinstance(module, known):
            return f"{type(module).__name__}: {describe(module)}"
    return type(module).__name__


def _conv_kind(conv: nn.Conv2d) -> str:
    kernel = "x".join(str(side) for side in conv.kernel_size)
    stride = f", stride {conv.stride[0]}" if conv.stride[0] > 1 else ""
    return f"{kernel} {conv.in_channels} to {conv.out_channels}{stride}"


def with_merged_stem(parts: list[PartCost]) -> Iterator[PartCost]:
    """`parts`, with a run of two or more ConvLayers larger than 1x1 in one list as one part."""

    def run_of(part: PartCost) -> tuple[bool, str]:
        layer = part.kind.startswith("ConvLayer: ")
        large = layer and not part.kind.startswith("ConvLayer: 1x1")
        return large, part.name.rpartition(".")[0] if large else part.name

    sums = ("params", "conv_macs", "ptflops_macs", "allocated_bytes")
    for _, group in groupby(parts, run_of):
        first, *others = run = list(group)
        if not others:
            yield first
            continue
        yield PartCost(
            name=f"{first.name}-{run[-1].name.rpartition('.')[2]}",
            kind=f"stem: {len(run)} ConvLayers",
            output_shape=run[-1].output_shape,
            **{name: sum(getattr(part, name) for part in run) for name in sums},
        )
