"""Compile a launch ahead of time, for any GPU, and read its resources from the binary.

It needs no GPU: Triton compiles for a named target, and includes the tools that disassemble a
cubin.
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
    """The resources that a compiled kernel uses.

    Attributes:
        registers: number of registers of a thread.
        spills: bytes of a thread's local memory; on AMD, number of vector registers. (Scalar ones
            are spilled to lanes of vector registers there, not to memory.)
        shared: bytes of shared memory of a block.
        tensor_cores: number of tensor-core instructions (HMMA, HGMMA, UTCHMMA; MFMA on AMD).
        wide_loads: number of loads of 16 bytes, to registers or to shared memory.
        narrow_loads: number of all other loads.
    """

    registers: int
    spills: int
    shared: int
    tensor_cores: int
    wide_loads: int
    narrow_loads: int


@dataclass(frozen=True)
class Source:
    """The source of a binary: equal ones give one binary. Can be sent to another process.

    Attributes:
        module, name: module and name of the JIT function.
        types, constants, attributes: types, constants and attributes of its arguments, as in the
            JIT.
        options: options such as ``num_warps``, ``num_stages``.
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
    """The source of a launch, exactly as the JIT derives it: they share Triton's cache."""
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
        # The JIT treats the integer 1 as a constant, but not 1.0.
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
    """Compile a kernel for a GPU that this machine need not have."""
    kernel = getattr(importlib.import_module(source.module), source.name)
    tree = ASTSource(kernel, source.types, source.constants, source.attributes)
    warp = 64 if device.backend == "hip" else 32
    target = GPUTarget(device.backend, device.arch, warp)
    return triton.compile(tree, target=target, options=dict(source.options))


def examine(source: Source, device: Device) -> Resources:
    """Compile a source, and read the resources of the binary."""
    return resources(compile_source(source, device))


def try_examine(source: Source, device: Device) -> Resources | str:
    """:func:`examine`, or the reason why the compiler refuses."""
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
    """Read the resources of a compiled kernel."""
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
    """Run one of the CUDA tools that are part of Triton."""
    path = getattr(triton.knobs.nvidia, name).path
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
