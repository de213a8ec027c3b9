"""Warp instructions that launches execute, and what it takes to issue them.

``python -m ptx.count fassd_net --size 1024x2048``, with the environment of ``make ptx-count``: for
each launch of a network, by part of the kernel, and over the banks of shared memory.
``--calibrate`` counts launches of every kind and writes the model's figures,
``csrc/plan/instructions.def``; ``--budget`` writes what each kernel may execute,
``instruction_budget.json``. ``make ptx-calibrate`` does both.

What is counted is PTX, each instruction as so many of the machine code's (`machine_instructions`).
Parts are told by the functions that instructions come from, which nvcc names with ``-lineinfo``.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from conformance import harness  # which makes the CUDA backend an executed one
from install.cuda_resources import readable
from ptx import executor
from torch import Tensor

from benchmarks import write_json
from fassd.bench.costs.cuda import ISSUED_PER_CLOCK
from fassd.bench.markdown import markdown_table
from fassd.models.device import DTYPES
from fassd.models.sizes import parse_size
from fassd_kernels.triton.device import device_named
from fassd_kernels.tuning.calls import OperatorCall, around_operators, record_network

PARTS = {
    "copy": r"copy_\w+|transform_pixels|expect_bytes|begin",
    "product": r"multiply\w*|Accumulators",
    "epilogue": r"stage_sums|write_tile",
}
"""Of a kernel: what its functions' names match. The rest of it is ``other``."""

FREE = re.compile(r"mov\.|cvta|cvt\.u64\.u32|cvt\.s64\.s32")
"""What ptxas makes registers of, and no instruction."""

LONG = {"div.u32": 19, "div.s32": 25, "rem.u32": 18, "rem.s32": 25, "div.rn.f32": 14}
LONG |= {"div.u64": 31, "div.s64": 40, "rem.u64": 31, "rem.s64": 40}
LONG |= {"mul.lo.s64": 4, "mul.lo.u64": 4, "mad.lo.s64": 4, "mad.lo.u64": 4}
"""Instructions of sm_90 for those of PTX that it has not, as nvcc 13.0 writes them; of 64-bit
divisions, on the path of numbers that fit into 32."""

TWICE = re.compile(r"(add|sub|setp\.\w+|selp|and|or|xor|neg)\.[subf]64")
"""What takes two instructions, one for each half."""


def machine_instructions(opcode: str) -> int:
    """How many instructions of the machine code one of PTX stands for."""
    if FREE.match(opcode):
        return 0
    return LONG.get(opcode) or (2 if TWICE.match(opcode) else 1)


@dataclass(frozen=True)
class Counted:
    """What one launch executes.

    Attributes:
        key: operator and shapes of the call that it is of.
        kernel: name, without namespace and parameters.
        kinds: warp instructions by `executor.kind_of`.
        parts: the same by part of the kernel, ``other`` included.
        passes, least_passes: over the banks of shared memory, and without conflicts.
    """

    key: str
    kernel: str
    kinds: dict[str, int]
    parts: dict[str, int]
    passes: int
    least_passes: int

    @property
    def instructions(self) -> int:
        return sum(self.parts.values())


def part_of(functions: Sequence[str]) -> str:
    """The part of a kernel that code is of, by readable names, the innermost function first."""
    for name in reversed(functions):
        for part, pattern in PARTS.items():
            if re.search(rf"(^| )({pattern})\b", name):
                return part
    return "other"


def counted(key: str, executed: Sequence[executor.Executed]) -> list[Counted]:
    """Launches, in order, of what was executed while the setting ``apart`` held."""
    mangled = sorted({name for one in executed for name in (one.kernel, *one.regions)})
    names = dict(zip(mangled, readable(mangled), strict=True))
    parts = {
        regions: part_of([names[name] for name in regions])
        for regions in {one.regions for one in executed}
    }
    found = []
    for _, of_launch in itertools.groupby(executed, lambda one: one.launch):
        rows = list(of_launch)
        by_part = dict.fromkeys((*PARTS, "other"), 0)
        by_kind: Counter[str] = Counter()
        for one in rows:
            instructions = one.warps * machine_instructions(one.opcode)
            by_part[parts[one.regions]] += instructions
            by_kind[executor.kind_of(one.opcode)] += instructions
        found.append(
            Counted(
                key,
                names[rows[0].kernel],
                dict(by_kind.most_common()),
                by_part,
                sum(one.passes for one in rows),
                sum(one.least_passes for one in rows),
            )
        )
    return found


def count_calls(run: Callable[[], object]) -> list[tuple[OperatorCall, list[Counted]]]:
    """The operator calls that fused modules make, in order, and the launches of each.

    Packing is left out: of a network's weights it is done once.
    """
    found: list[tuple[OperatorCall, list[Counted]]] = []

    def around(operator: str, call: partial[Tensor]) -> Tensor:
        executor.forget_counts()
        result = call()
        made = OperatorCall.of(operator, *call.args, **call.keywords)
        launches = counted(made.key, executor.counts())
        found.append((made, [one for one in launches if not one.kernel.startswith("pack_kernel")]))
        return result

    with executor.settings(apart=True, banks=True), around_operators(around):
        run()
    return found


def count_network(
    name: str, size: tuple[int, int], dtype: torch.dtype = torch.float16
) -> list[Counted]:
    """Every launch of a network, labels out, in order."""
    calls = count_calls(partial(record_network, name, *size, dtype=dtype, backend="cuda"))
    return [launch for _, launches in calls for launch in launches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="?", default="fassd_net")
    parser.add_argument("--size", type=parse_size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--budget", action="store_true")
    chosen = parser.parse_args()
    assert harness.EXECUTED == "cuda", "the kernels are not executed: see tests/ptx/README.md"
    if chosen.calibrate or chosen.budget:
        from ptx.calibration import SETTINGS, is_set

        assert is_set(), f"PTX_SETTINGS have to say {SETTINGS}: see the Makefile"
    if chosen.calibrate:
        from ptx.calibration import calibrate

        print(calibrate())
        return
    if chosen.budget:
        from ptx import instruction_budget

        instruction_budget.write(instruction_budget.measure())
        return
    gpu = device_named(chosen.gpu)
    rate = gpu.multiprocessors * ISSUED_PER_CLOCK * gpu.clock
    launches = count_network(chosen.network, chosen.size, DTYPES[chosen.dtype])
    rows = [
        [
            launch.key,
            launch.kernel,
            f"{launch.instructions / 1e6:.2f}",
            f"{1e6 * launch.instructions / rate:.1f}",
            *(f"{n / max(launch.instructions, 1):.0%}" for n in launch.parts.values()),
            f"{launch.kinds.get('tensor cores', 0) / max(launch.instructions, 1):.0%}",
            f"{launch.passes / max(launch.least_passes, 1):.2f}",
        ]
        for launch in launches
    ]
    headings = ["call", "kernel", "M instructions", "us to issue", *PARTS, "other"]
    headings += ["tensor cores", "bank passes"]
    print("\n".join(markdown_table(headings, rows, names=2)))
    total = sum(launch.instructions for launch in launches)
    floor = f"{gpu.name} issues them in {1e3 * total / rate:.3f} ms"
    print(f"\n{total / 1e6:.1f} M warp instructions; {floor}")
    if chosen.json:
        write_json(chosen.json, [vars(launch) for launch in launches])


if __name__ == "__main__":
    main()
