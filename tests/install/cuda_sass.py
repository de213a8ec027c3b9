"""The machine code of every kernel, instruction by instruction, and the loops in it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from install.cuda_resources import readable

CODE = re.compile(r"^\.text\.(\w+):$")
LABEL = re.compile(r"^(\.L_\w+):$")
INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?[{}]?\s*(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);")
TARGET = re.compile(r"`\((\.L_\w+)\)")
# Bytes of code that a multiprocessor keeps: measured on Volta (Jia et al., "Dissecting the NVIDIA
# Volta GPU Architecture via Microbenchmarking", 2018), where a scheduler keeps 12 KiB for itself;
# taken to hold for what came later, of which NVIDIA says nothing.
INSTRUCTION_CACHE = 128 * 1024


@dataclass
class Code:
    """A kernel's instructions, one string each, as for instance ``LDSM.16.M88.4 R8, [R8]``.

    Attributes:
        labels: the instruction that each stands before.
        threads: the most that a block may have, from ``__launch_bounds__``.
    """

    instructions: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: int = 0

    def count(self, pattern: str) -> int:
        return count(self.instructions, pattern)

    @property
    def bytes(self) -> int:
        """Of its instructions, 16 each since Volta."""
        return 16 * len(self.instructions)

    def loops(self) -> list[range]:
        """The innermost loops: from the target of a branch back to the branch."""
        found = set()
        for end, instruction in enumerate(self.instructions):
            target = TARGET.search(instruction)
            if target and re.match(r"BRA|BRX", instruction):
                start = self.labels.get(target[1], end + 1)
                if start < end:
                    found.add((start, end + 1))
        return [
            range(*loop)
            for loop in sorted(found)
            if not any(loop[0] <= a and b <= loop[1] for a, b in found - {loop})
        ]

    def bodies(self, pattern: str) -> list[list[str]]:
        """The innermost loops in which an instruction matches."""
        bodies = [[self.instructions[i] for i in loop] for loop in self.loops()]
        return [body for body in bodies if count(body, pattern)]


def count(instructions: Iterable[str], pattern: str) -> int:
    """Instructions that a pattern matches from their beginning."""
    expression = re.compile(pattern)
    return sum(expression.match(instruction) is not None for instruction in instructions)


def oversized(codes: Mapping[tuple[str, str], Code]) -> list[str]:
    """Kernels whose code the instruction cache does not hold."""
    return [
        f"{name} for {arch}: {code.bytes / 1024:.0f} KiB of code, the cache holds "
        f"{INSTRUCTION_CACHE // 1024}"
        for (arch, name), code in codes.items()
        if code.bytes > INSTRUCTION_CACHE
    ]


def tool(name: str) -> str:
    """The path of ``cuobjdump`` or ``nvdisasm``, which Triton's package carries."""
    import triton

    return getattr(triton.knobs.nvidia, name).path


def parse(disassembly: str) -> dict[str, Code]:
    """What ``nvdisasm`` printed, by mangled name."""
    found: dict[str, Code] = {}
    code = Code()
    for line in disassembly.splitlines():
        if section := CODE.match(line):
            code = found[section[1]] = Code()
        elif label := LABEL.match(line):
            code.labels[label[1]] = len(code.instructions)
        elif instruction := INSTRUCTION.match(line):
            code.instructions.append(instruction[1] + instruction[2].rstrip())
    return found


def block_threads(cubin: bytes) -> dict[str, int]:
    """The most threads of a block, by mangled name, from a cubin's ``.nv.info`` sections.

    Each is a list of attributes: a byte for the format, one for the kind, two for the size of what
    follows or for the value itself.
    """
    has_payload, max_threads = 4, 5
    start, size, number, names = struct.unpack_from("<40xQ10xHHH", cubin)[0:4]
    sections = [struct.unpack_from("<I20xQQ", cubin, start + i * size) for i in range(number)]
    found = {}
    for name_at, offset, length in sections:
        name_at += sections[names][1]
        name = cubin[name_at : cubin.index(b"\0", name_at)].decode()
        at = offset if name.startswith(".nv.info.") else offset + length
        while at < offset + length:
            layout, kind, value = struct.unpack_from("<BBH", cubin, at)
            if kind == max_threads:
                found[name.removeprefix(".nv.info.")] = struct.unpack_from("<I", cubin, at + 4)[0]
            at += 4 + (value if layout == has_payload else 0)
    return found


def take_apart(cubin: Path) -> dict[str, Code]:
    """The code of a cubin's kernels, by readable name."""
    command = [tool("nvdisasm"), "--print-code", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    codes, threads = parse(text), block_threads(cubin.read_bytes())
    for mangled, code in codes.items():
        code.threads = threads[mangled]
    return dict(zip(readable(list(codes)), codes.values(), strict=True))


def disassemble(library: Path) -> dict[tuple[str, str], Code]:
    """The code of every kernel of a shared library, by architecture and readable name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [tool("cuobjdump"), "--extract-elf", "all", str(library.resolve())]
        subprocess.run(command, capture_output=True, check=True, cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for cubin, codes in zip(cubins, pool.map(take_apart, cubins), strict=True):
                arch = re.findall(r"\.(sm_\w+)\.cubin$", cubin.name)[0]
                found.update({(arch, name): code for name, code in codes.items()})
    return found
