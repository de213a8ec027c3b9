"""Warp instructions that a network's operator calls execute, and what it takes to issue them.

``python -m ptx.count fassd_net --size 1024x2048``, with the environment of ``make ptx-count``: for
each call, by kind of instruction, and over the banks of shared memory. An H200's multiprocessor
issues four instructions a clock, so that their number is a floor of the time, too.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from conformance import harness  # which makes the CUDA backend an executed one
from install.cuda_resources import readable
from ptx import executor
from torch import Tensor

from benchmarks import write_json
from fassd.bench.markdown import markdown_table
from fassd.models.device import DTYPES
from fassd.models.sizes import parse_size
from fassd_kernels.triton.device import device_named
from fassd_kernels.tuning.calls import OperatorCall, around_operators, record_network

ISSUED_PER_CLOCK = 4  # of a multiprocessor: CUDA C++ Programming Guide, "Multiprocessor Level"


@dataclass(frozen=True)
class Counted:
    """What one call executes.

    Attributes:
        key: operator and shapes.
        launches: kernels by name, without namespace and parameters.
        kinds: warp instructions by `executor.kind_of`.
        regions: the same by function of the source.
        passes, least_passes: over the banks of shared memory, and without conflicts.
    """

    key: str
    launches: dict[str, int]
    kinds: dict[str, int]
    regions: dict[str, int]
    passes: int
    least_passes: int

    @property
    def instructions(self) -> int:
        return sum(self.kinds.values())


def counted(key: str, executed: Sequence[executor.Executed]) -> Counted:
    mangled = sorted({name for one in executed for name in (one.kernel, one.region) if name})
    names = dict(zip(mangled, readable(mangled), strict=True))
    regions: Counter[str] = Counter()
    for one in executed:
        regions[names[one.region or one.kernel]] += one.warps
    return Counted(
        key,
        {names[one.kernel]: one.launches for one in executed},
        dict(executor.by_kind(executed).most_common()),
        dict(regions.most_common()),
        sum(one.passes for one in executed),
        sum(one.least_passes for one in executed),
    )


def count_network(
    name: str, size: tuple[int, int], dtype: torch.dtype = torch.float16
) -> list[Counted]:
    """Of every operator call of a network, labels out, in the order in which they are made."""
    found: list[Counted] = []

    def around(operator: str, call: partial[Tensor]) -> Tensor:
        executor.forget_counts()
        result = call()
        made = OperatorCall.of(operator, *call.args, **call.keywords)
        found.append(counted(made.key, executor.counts()))
        return result

    executor.change(banks=True)
    with around_operators(around):
        record_network(name, *size, dtype=dtype, backend="cuda")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="?", default="fassd_net")
    parser.add_argument("--size", type=parse_size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    assert harness.EXECUTED == "cuda", "the kernels are not executed: see tests/ptx/README.md"
    gpu = device_named(chosen.gpu)
    rate = gpu.multiprocessors * ISSUED_PER_CLOCK * gpu.clock
    calls = count_network(chosen.network, chosen.size, DTYPES[chosen.dtype])
    rows = [
        [
            call.key,
            f"{call.instructions / 1e6:.2f}",
            f"{1e6 * call.instructions / rate:.1f}",
            *(f"{call.kinds.get(kind, 0) / max(call.instructions, 1):.0%}" for kind in SHOWN),
            f"{call.passes / max(call.least_passes, 1):.2f}",
        ]
        for call in calls
    ]
    headings = ["call", "M instructions", "us to issue", *SHOWN, "bank passes"]
    print("\n".join(markdown_table(headings, rows, names=1)))
    total = sum(call.instructions for call in calls)
    floor = f"{gpu.name} issues them in {1e3 * total / rate:.3f} ms"
    print(f"\n{total / 1e6:.1f} M warp instructions; {floor}")
    if chosen.json:
        write_json(chosen.json, [vars(call) for call in calls])


SHOWN = ("tensor cores", "integers", "floats", "copies", "shared memory", "global memory")


if __name__ == "__main__":
    main()
