"""The inner loops of the kernels, against NEON's peak: ``python -m aarch64.instructions``.

An emulator tells no time, but the compiler's work can be read. Of each kernel, the innermost loop
with the most products is counted. The bound is that of a core which issues four instructions in a
cycle, of them two vector ones and two loads of 16 bytes, as Arm's Cortex-A76 and Neoverse N1 do:
products in a cycle, of the two that are its peak.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aarch64 import build

# What is counted: names for people, and of the functions.
KERNELS = {
    "float32, 12 channels": r"neon::.*multiply_tile<float, 12, 2, false>",
    "float32, 10 channels": r"neon::.*multiply_tile<float, 10, 2, false>",
    "float32, 8 channels": r"neon::.*multiply_tile<float, 8, 2, false>",
    "float32, 12 channels, many weights": r"neon::.*multiply_tile<float, 12, 2, true>",
    "float32, 12 channels, half a tile": r"neon::.*multiply_tile<float, 12, 1, false>",
    "float64, 12 channels": r"neon::.*multiply_tile<double, 12, 2, false>",
    "bfloat16, products of matrices": r"neon::.*TileMatrices::multiply_block",
    "float32, depthwise 3x3": r"neon::.*Depthwise<float, float, float>::tile<3, 1, true>",
    "float16, depthwise 3x3": r"neon::.*Depthwise<float, c10::Half, c10::Half>::tile<3, 1, true>",
    "float32, portable vectors, 6 channels": r"portable::.*multiply_tile<float, 6, 2, false>",
}
PRODUCTS = {"fmla": 1, "fmls": 1, "bfmmla": 4, "bfdot": 2}  # in multiply-adds of float32 lanes


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes to."""
        if not re.fullmatch(r"b(\.\w+)?|cbn?z|tbn?z", self.name):
            return None
        found = re.search(r"\b([0-9a-f]+) <", self.operands)
        return int(found.group(1), 16) if found else None

    @property
    def is_product(self) -> bool:
        return self.name in PRODUCTS

    @property
    def loads(self) -> int:
        """Registers that it loads."""
        return 2 if self.name == "ldp" else 1 if self.name.startswith("ld") else 0

    @property
    def is_vector(self) -> bool:
        """Whether a vector unit executes it: not loads and stores."""
        vector = re.match(r"[vqdsh]\d", self.operands) is not None
        return vector and not self.loads and not self.name.startswith("st")


@dataclass(frozen=True)
class Loop:
    """The inner loop of a kernel.

    Attributes:
        instructions: how many.
        products: vector multiply-adds among them.
        multiply_adds: what they compute.
        loads: registers that are loaded.
        vector: instructions of the vector units, products included.
    """

    instructions: int
    products: int
    multiply_adds: int
    loads: int
    vector: int

    @property
    def share(self) -> float:
        return self.products / self.instructions

    @property
    def of_peak(self) -> float:
        cycles = max(self.instructions / 4, self.vector / 2, self.loads / 2)
        return self.products / 2 / cycles


def functions(binary: Path) -> dict[str, list[Instruction]]:
    """The instructions of every function, by its name as C++ writes it."""
    command = [build.OBJDUMP, "--disassemble", "--demangle", "--no-show-raw-insn", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            here = found[head.group(1)] = []
        elif row := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)", line):
            here.append(Instruction(int(row.group(1), 16), row.group(2), row.group(3)))
    return found


def inner_loop(code: Sequence[Instruction]) -> Loop:
    """The loop with the most products of those that have no loop inside.

    Raises:
        ValueError: no loop has products.
    """
    place = {row.address: i for i, row in enumerate(code)}
    spans = {
        (place[row.target], i)
        for i, row in enumerate(code)
        if row.target in place and place[row.target] <= i
    }
    inner = [
        code[a : b + 1]
        for a, b in spans
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)
    ]
    best = max(inner, key=lambda rows: sum(row.is_product for row in rows), default=[])
    products = [row for row in best if row.is_product]
    if not products:
        raise ValueError("no inner loop has products")
    lanes = [2 if ".2d" in row.operands else 4 for row in products]
    return Loop(
        len(best),
        len(products),
        sum(PRODUCTS[row.name] * n for row, n in zip(products, lanes, strict=True)),
        sum(row.loads for row in best),
        sum(row.is_vector for row in best),
    )


def loops() -> dict[str, Loop]:
    """The inner loop of every kernel of :data:`KERNELS`."""
    sources = [build.ROOT / "csrc" / "cpu" / f"kernels_{name}.cpp" for name in ("neon", "portable")]
    code: dict[str, list[Instruction]] = {}
    for source in sources:
        code |= functions(build.compiled(source))
    return {
        name: inner_loop(next(rows for key, rows in code.items() if re.search(pattern, key)))
        for name, pattern in KERNELS.items()
    }


def table(rows: dict[str, Loop]) -> str:
    lines = [
        "| inner loop | instructions | products | share | loads | multiply-adds | bound |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, loop in rows.items():
        lines.append(
            f"| {name} | {loop.instructions} | {loop.products} | {loop.share:.0%} | {loop.loads} "
            f"| {loop.multiply_adds} | {loop.of_peak:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(loops()))
