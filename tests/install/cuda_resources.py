"""What ptxas said of every kernel while it was compiled, and how many warps it lets run at once."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

# Threads that a multiprocessor can hold (CUDA C++ Programming Guide, section "Technical
# Specifications per Compute Capability"). Its limit of blocks, 16 or more, binds none of our
# kernels, which all have four warps or more.
RESIDENT_THREADS = {
    "sm_75": 1024,
    "sm_80": 2048,
    "sm_86": 1536,
    "sm_87": 1536,
    "sm_89": 1536,
    "sm_90": 2048,
    "sm_100": 2048,
    "sm_120": 1536,
}
# Registers of a multiprocessor; they are given to warps by so many, and to four warps alike.
REGISTER_FILE, REGISTER_UNIT, WARP_UNIT = 65536, 256, 4

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """A kernel as compiled for one architecture. Bytes are those of a thread, `shared` a block's.

    Functions that ptxas did not inline count as part of the kernel that they are printed under.
    """

    name: str
    arch: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor can hold, by registers and threads."""
        return resident_warps(self.arch, self.registers, threads_of(self.name))


def resident_warps(arch: str, registers: int, threads: int) -> int:
    """Warps that a multiprocessor can hold, in blocks of so many threads."""
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTER_FILE // of_warp // WARP_UNIT * WARP_UNIT
    of_block = threads // 32
    return min(by_registers, RESIDENT_THREADS[arch] // 32) // of_block * of_block


def threads_of(name: str) -> int:
    """Threads of a block: of a tuned kernel the number behind the type is its ``warps``, else 256.

    The binary tells for certain, but takes tools to read; test_cuda_build.py compares.
    """
    tuned = re.match(r"(?!depthwise)\w+<[^,]+, (\d+)\b", name)
    return 32 * int(tuned[1]) if tuned else 256


def readable(mangled: list[str]) -> list[str]:
    """Demangled names without namespaces, result and parameters."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    names = []
    for line in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", line.removeprefix("void "))
        names.append(name.partition("(")[0])
    return names


def kernels_of(log: str) -> list[Kernel]:
    """Every kernel, once for each architecture."""
    found: list[Kernel] = []
    for line in log.splitlines():
        if started := COMPILING.search(line):
            found.append(Kernel(started[1], started[2]))
        elif stack := STACK.search(line):
            found[-1].stack = max(found[-1].stack, int(stack[1]))
            found[-1].spills += int(stack[2]) + int(stack[3])
        elif used := USED.search(line):
            shared = SHARED.search(line)
            found[-1].registers = int(used[1])
            found[-1].shared = int(shared[1]) if shared else 0
    for kernel, name in zip(found, readable([k.name for k in found]), strict=True):
        kernel.name = name
    return found


def warnings_of(log: str) -> list[str]:
    """Lines in which g++, nvcc or ptxas warn of our own sources."""
    # PyTorch's headers lie in a folder of the same name.
    own = re.compile(r"^\s*(\S*(?<!torch/)csrc/\S+?[:(]\d+.*|ptxas +|nvcc +)\bwarning\b", re.I)
    return [line for line in log.splitlines() if own.search(line)]
