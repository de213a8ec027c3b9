"""What each kernel may take on each architecture: ``cuda_budget.json``.

Written by ``PYTHONPATH=tests python -m install.cuda_budget``, for sm_90 or, with
``FASSD_TEST_ARCHITECTURES=all`` before it, for every architecture. Whoever runs it answers for the
difference: a kernel that takes more registers than it did can have fewer warps at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from install.cuda_resources import Kernel, kernels_of
from install.wheels import built_wheel, nvcc_release

PATH = Path(__file__).with_name("cuda_budget.json")
REWRITE = (
    "if this is meant, rewrite the budget with "
    "`FASSD_TEST_ARCHITECTURES=all PYTHONPATH=tests python -m install.cuda_budget`"
)
# Registers are given to a thread by eight. A budget looser than that would hide a loss of warps
# that a tight one shows; a tighter one would break with what does not matter.
SLACK = 8


@dataclass(frozen=True)
class Limits:
    """The most registers and bytes of shared memory, and the fewest warps at once."""

    registers: int
    warps: int
    shared: int


@dataclass
class Budget:
    """Limits by kernel and architecture, and the release of nvcc whose code they fit."""

    nvcc: str
    kernels: dict[str, dict[str, Limits]] = field(default_factory=dict)

    @staticmethod
    def read(path: Path = PATH) -> Budget:
        content = json.loads(path.read_text())
        budget = Budget(content["nvcc"])
        for name, architectures in content["kernels"].items():
            budget.kernels[name] = {a: Limits(*each) for a, each in architectures.items()}
        return budget

    def write(self, path: Path = PATH) -> None:
        """One line a kernel, so that a difference can be read."""
        lines = []
        for name, each in sorted(self.kernels.items()):
            limits = {
                arch: [each[arch].registers, each[arch].warps, each[arch].shared]
                for arch in sorted(each, key=lambda arch: int(arch.removeprefix("sm_")))
            }
            lines.append(f"    {json.dumps(name)}: {json.dumps(limits)}")
        path.write_text(
            f'{{\n  "nvcc": {json.dumps(self.nvcc)},\n'
            '  "limits": ["most registers of a thread", "fewest warps at once",'
            ' "most bytes of static shared memory"],\n'
            '  "kernels": {\n' + ",\n".join(lines) + "\n  }\n}\n"
        )

    def update(self, kernels: list[Kernel]) -> None:
        """What was compiled becomes the limit; what no longer exists goes."""
        names, architectures = {k.name for k in kernels}, {k.arch for k in kernels}
        kept = {
            name: {arch: limits for arch, limits in each.items() if arch not in architectures}
            for name, each in self.kernels.items()
            if name in names
        }
        for kernel in kernels:
            limits = Limits(kernel.registers, kernel.warps, kernel.shared)
            kept.setdefault(kernel.name, {})[kernel.arch] = limits
        self.kernels = kept


def excesses(kernels: list[Kernel], budget: Budget) -> list[str]:
    """Where kernels take more than the budget, or are not those that it lists."""
    found = []
    for kernel in kernels:
        limits = budget.kernels.get(kernel.name, {}).get(kernel.arch)
        where = f"{kernel.name} for {kernel.arch}"
        if limits is None:
            found.append(f"{where} is not in cuda_budget.json; {REWRITE}")
            continue
        for what, taken, limit in (
            ("registers", kernel.registers, limits.registers),
            ("bytes of shared memory", kernel.shared, limits.shared),
        ):
            if taken > limit:
                found.append(f"{where} takes {taken} {what}, {limit} are allowed; {REWRITE}")
        if kernel.warps < limits.warps:
            found.append(
                f"{where} has {kernel.warps} warps at once, {limits.warps} are wanted; {REWRITE}"
            )
    compiled = {(kernel.name, kernel.arch) for kernel in kernels}
    for name, each in budget.kernels.items():
        for arch in each.keys() & {kernel.arch for kernel in kernels}:
            if (name, arch) not in compiled:
                found.append(f"{name} for {arch} was not compiled; {REWRITE}")
    return found


def looseness(kernels: list[Kernel], budget: Budget) -> list[str]:
    """Where the budget allows so much more than is taken that a loss would not be noticed."""
    found = []
    for kernel in kernels:
        limits = budget.kernels.get(kernel.name, {}).get(kernel.arch)
        if limits is None:
            continue
        where = f"{kernel.name} for {kernel.arch}"
        if limits.registers - kernel.registers > SLACK:
            found.append(f"{where} takes {kernel.registers} of {limits.registers} registers")
        if limits.warps < kernel.warps:
            found.append(f"{where} has {kernel.warps} warps at once, not {limits.warps}")
        if limits.shared > kernel.shared:
            found.append(f"{where} takes {kernel.shared} of {limits.shared} bytes of shared memory")
    return [f"{each}; {REWRITE}" for each in found]


def main() -> None:
    budget = Budget.read() if PATH.exists() else Budget("")
    budget.nvcc = nvcc_release()
    kernels = kernels_of(built_wheel().compile_log)
    budget.update(kernels)
    budget.write()
    print(f"{PATH}: {len(budget.kernels)} kernels, {len(kernels)} rows written")


if __name__ == "__main__":
    main()
