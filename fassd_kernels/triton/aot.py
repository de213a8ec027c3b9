"""Compile a launch ahead of time, for any GPU, and read from the binary what it takes.

Needs no GPU: Triton compiles for a named target, and brings the tools that take a cubin apart.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.device import Device
from fassd_kernels.triton.program import BYTES, Launch, Pointer, Program

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
}
DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        spills: bytes of a thread's local memory; on AMD, vector registers. (Scalar ones go to lanes
            of vector registers there, not to memory.)
        shared: bytes of a block.
        tensor_cores: instructions of the tensor cores (HMMA, HGMMA, UTCHMMA; MFMA on AMD).
        wide_loads: loads of 16 bytes, to registers or to shared memory.
        narrow_loads: all others.
    """

    registers: int
    spills: int
    shared: int
    tensor_cores: int
    wide_loads: int
    narrow_loads: int


@dataclass(frozen=True)
class Source:
    """What a binary is made from: equal ones are one binary. Can be sent to another process.

    Attributes:
        module, name: of the JIT function.
        types, constants, attributes: of its arguments, as the JIT would derive them.
        options: ``num_warps``, ``num_stages``.
    """

    module: str
    name: str
    types: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, int]

    @property
    def identity(self) -> str:
        return repr(self)


def source_of(program: Program, launch: Launch) -> Source:
    """The source of a launch, to the letter as the JIT derives it: they share Triton's cache."""
    types: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def describe(value: Any, path: tuple[int, ...], constant: bool, specialize: bool) -> Any:
        if isinstance(value, tuple) and not constant:
            return tuple(describe(x, (*path, i), False, specialize) for i, x in enumerate(value))
        if isinstance(value, Pointer):
            dtype, aligned = program.types[value.slot]
            divisible = aligned and value.offset * dtype.itemsize % BYTES == 0
            attributes[path] = DIVISIBLE if divisible else []
            return f"*{NAMES[dtype]}"
        # The JIT makes a constant of the integer 1, and not of 1.0.
        one = value == 1 and specialize and not isinstance(value, float)
        if constant or value is None or one:
            constants[path] = value
            if len(path) == 1:
                attributes[path] = []
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if specialize:
            attributes[path] = DIVISIBLE if value % 16 == 0 else []
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    for index, (parameter, value) in enumerate(
        zip(launch.kernel.params, launch.arguments.values(), strict=True)
    ):
        specialize = not parameter.do_not_specialize
        types[parameter.name] = describe(value, (index,), parameter.is_constexpr, specialize)
    kernel = launch.kernel
    return Source(
        kernel.__module__, kernel.__name__, types, constants, attributes, dict(launch.options)
    )


def compile_source(source: Source, device: Device) -> Any:
    """The compiled kernel for a GPU that need not be there."""
    kernel = getattr(importlib.import_module(source.module), source.name)
    tree = ASTSource(kernel, source.types, source.constants, source.attributes)
    warp = 64 if device.backend == "hip" else 32
    target = GPUTarget(device.backend, device.arch, warp)
    return triton.compile(tree, target=target, options=dict(source.options))


def examine(source: Source, device: Device) -> Resources:
    """Compile, and take the binary apart."""
    return resources(compile_source(source, device))


def try_examine(source: Source, device: Device) -> Resources | str:
    """:func:`examine`, or why the compiler refuses."""
    try:
        return examine(source, device)
    except Exception as error:
        return first_line(error)


def examine_all(
    sources: Iterable[Source], device: Device, processes: int = 1
) -> dict[str, Resources]:
    """The resources of every distinct source, by its identity."""
    distinct = {source.identity: source for source in sources}
    if processes == 1:
        return {key: examine(source, device) for key, source in distinct.items()}
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        found = pool.map(examine, distinct.values(), [device] * len(distinct))
        return dict(zip(distinct, found, strict=True))


def resources(compiled: Any) -> Resources:
    """Take a compiled kernel apart."""
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        return amd_resources(compiled.asm["amdgcn"], shared)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "-res-usage", str(path))
        sass = tool("nvdisasm", str(path))
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    local = re.search(r"LOCAL:(\d+)", usage)
    assert registers and stack and local, usage
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]+", sass)
    wide = sum(".128" in load for load in loads)
    return Resources(
        int(registers[1]),
        int(stack[1]) + int(local[1]),
        shared,
        len(re.findall(r"\b(?:HMMA|HGMMA|UTC[A-Z]*MMA)\b", sass)),
        wide,
        len(loads) - wide,
    )


def amd_resources(assembly: str, shared: int) -> Resources:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        assert found, f"no {name} in the assembly"
        return int(found[1])

    loads = re.findall(r"\b(?:global|buffer)_load_\w+", assembly)
    wide = sum("dwordx4" in load for load in loads)
    return Resources(
        number("vgpr_count"),
        number("vgpr_spill_count"),
        shared,
        len(re.findall(r"\bv_mfma_\w+", assembly)),
        wide,
        len(loads) - wide,
    )


def tool(name: str, *arguments: str) -> str:
    """Run one of the CUDA tools that come with Triton."""
    path = getattr(triton.knobs.nvidia, name).path
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
