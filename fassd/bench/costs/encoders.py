"""Costs of timm's encoders at 1024x2048.

Building and tracing over a thousand encoders takes minutes: `TABLE` has those of one version of
timm, written by ``python -m fassd.bench.costs.encoders``; encoders that it lacks, of another
version, are counted on request.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from fassd.models.encoder import import_timm, plan_of

TABLE = Path(__file__).with_name("encoders.csv")
"""Columns name, params, macs; the last two are empty for encoders that do not fit."""

SIZE = (1024, 2048)


class EncoderCost(NamedTuple):
    """The costs of an encoder up to its map at stride 32.

    Attributes:
        params: number of parameters.
        macs: number of multiply-accumulates of convolutions and matrix products at 1024x2048.
    """

    params: int
    macs: int


def encoder_costs(pattern: str = "") -> Iterator[tuple[str, EncoderCost]]:
    """Encoders that FASSD-Net can be built on, by name, in timm's order.

    Args:
        pattern: pattern of names, with ``*`` and ``?``; without these, a part of them.

    Raises:
        ImportError: timm is missing.
    """
    timm = import_timm()
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    known = read_table()
    for name in timm.list_models(pattern):
        cost = known[name] if name in known else cost_of(name)
        if cost is not None:
            yield name, cost


def cost_of(name: str) -> EncoderCost | None:
    """The costs of an encoder; None if FASSD-Net cannot be built on it, or not at that size."""
    try:
        options = plan_of(name).options
        with torch.device("meta"), torch.no_grad():
            body = import_timm().create_model(name, **options).eval()
            with FlopCounterMode(display=False) as counter:
                body(torch.empty(1, 3, *SIZE))
    except Exception:  # errors of the encoder's own code
        return None
    params = sum(parameter.numel() for parameter in body.parameters())
    return EncoderCost(params, counter.get_total_flops() // 2)


def read_table() -> dict[str, EncoderCost | None]:
    """Read the rows of `TABLE`."""
    with TABLE.open(newline="") as file:
        return {
            name: EncoderCost(int(params), int(macs)) if params else None
            for name, params, macs in csv.reader(file)
        }


def write_table(costs: dict[str, EncoderCost | None]) -> None:
    """Write `TABLE`, sorted by name."""
    with TABLE.open("w", newline="") as file:
        rows = ((name, *(cost or ("", ""))) for name, cost in sorted(costs.items()))
        csv.writer(file, lineterminator="\n").writerows(rows)


def complete_table() -> None:
    """Count and add the rows that `TABLE` lacks, half a second for each."""
    names = import_timm().list_models()
    known = read_table() if TABLE.exists() else {}
    costs = {name: known[name] for name in names if name in known}
    for name in names:
        if name not in costs:
            costs[name] = cost_of(name)
            write_table(costs)  # at once, so that it can continue after an interruption


if __name__ == "__main__":
    complete_table()
