"""Small kernels in PTX, for tests of the executor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx import executor

_numbers = itertools.count()
REGISTERS = (
    ".reg .pred %p<16>; .reg .b16 %h<64>; .reg .b32 %r<256>; .reg .b64 %rd<64>;"
    " .reg .f32 %f<256>; .reg .f64 %fd<32>;"
)


def load(body: str, parameters: int = 2, *, target: str = "sm_90a", outside: str = "") -> str:
    """Load a kernel whose parameters are pointers, in %rd1 and so on; its name.

    In %r0 is the thread's index, in %rd0 four times of it.
    """
    name = f"kernel{next(_numbers)}"
    listed = ", ".join(f".param .u64 p{i}" for i in range(1, parameters + 1))
    loads = " ".join(f"ld.param.u64 %rd{i}, [p{i}];" for i in range(1, parameters + 1))
    text = f"""
.version 8.8
.target {target}
.address_size 64
{outside}
.visible .entry {name}({listed})
{{
{REGISTERS}
{loads}
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd0, %r0, 4;
{body}
ret;
}}
"""
    executor.load(f"{name}.ptx", text)
    return name


def run(body: str, *arrays: np.ndarray, outside: str = "", **launch: Any) -> None:
    """Load and launch a kernel on arrays."""
    executor.launch(load(body, len(arrays), outside=outside), *arrays, **launch)


def of_lanes(
    instruction: str, inputs: Sequence[np.ndarray], output: str, registers: Sequence[str]
) -> np.ndarray:
    """What an instruction makes of 32 lanes' values.

    Args:
        instruction: with {d} for what it writes, {0}, {1} and so on for what it reads.
        inputs: (32,) each, of the types of their registers.
        output: the register's kind, "r", "f", "h", "rd" or "fd".
        registers: the inputs' kinds.
    """
    size = {"h": 2, "r": 4, "f": 4, "rd": 8, "fd": 8}
    store = {"h": "b16", "r": "b32", "f": "f32", "rd": "b64", "fd": "f64"}
    lines = []
    names = []
    for i, kind in enumerate(registers):
        at = f"%rd{40 + i}"
        lines.append(f"mul.wide.u32 {at}, %r0, {size[kind]}; add.s64 {at}, {at}, %rd{i + 2};")
        names.append(f"%{kind}{10 + i}")
        lines.append(f"ld.global.{store[kind]} {names[-1]}, [{at}];")
    result = f"%{output}9"
    lines.append(instruction.format(*names, d=result))
    lines.append(f"mul.wide.u32 %rd39, %r0, {size[output]}; add.s64 %rd39, %rd39, %rd1;")
    lines.append(f"st.global.{store[output]} [%rd39], {result};")
    types = {"h": np.uint16, "r": np.uint32, "f": np.float32, "rd": np.uint64, "fd": np.float64}
    made: np.ndarray = np.zeros(32, types[output])
    run("\n".join(lines), made, *(np.ascontiguousarray(x) for x in inputs))
    return made
