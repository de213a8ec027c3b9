"""The CUDA backend, of nvcc's objects, on the executor: its operators then take CPU tensors.

What runs is what the build gate (tests/install) compiled: the host code as it stands, linked with
the executor in place of the CUDA runtime, and the PTX that lies beside it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import subprocess
import sysconfig
from pathlib import Path

import torch
from install.cuda_sass import tool
from install.wheels import HAS_NVCC, compiled_tree
from ptx import build, executor

import fassd_kernels
from fassd_kernels import ops

# The objects of csrc/cuda, less what registers them, and what they share with the CPU's.
SHARED = ("checks.o", "sizes.o", *(f"plan/{name}.o" for name in ("plan", "fusion", "work")))
REGISTRATION = build.HERE / "registration.cpp"


def objects(tree: Path) -> list[Path]:
    (compiled,) = tree.glob("build/temp.*")
    kernels = set(compiled.glob("csrc/cuda/*.o")) - {compiled / "csrc/cuda/registration.o"}
    return [*(compiled / "csrc" / name for name in SHARED), *sorted(kernels)]


@functools.cache
def library() -> Path:
    """The host library, beside a folder of PTX; built where what it is made of has changed."""
    from torch.utils.cpp_extension import include_paths, library_paths

    tree = compiled_tree()
    parts = [REGISTRATION, build.executor(), *objects(tree)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:16]
    folder = build.BUILD / "host"
    target = folder / digest / "cuda.so"
    with build.locked(folder):
        if target.exists():
            return target
        for old in folder.glob("*/*"):
            old.unlink()
        target.parent.mkdir(exist_ok=True)
        binary = tree / "unpacked" / "fassd_kernels" / "_C_cuda.abi3.so"
        command = [tool("cuobjdump"), "--extract-ptx", "all", str(binary)]
        subprocess.run(command, cwd=target.parent, capture_output=True, check=True)
        includes = [build.ROOT, *include_paths(), sysconfig.get_path("include")]
        unfinished = target.with_suffix(".unfinished")
        build.run(
            [
                *(
                    *build.compiler(),
                    "-std=c++17",
                    "-O1",
                    "-fPIC",
                    "-fvisibility=hidden",
                    "-shared",
                ),
                f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET}",
                *(f"-isystem{path}" for path in includes),
                # The executor's symbols come before PyTorch's of the same name.
                *map(str, (REGISTRATION, *parts[2:], build.executor())),
                *(f"-L{path}" for path in library_paths()),
                *("-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"),
                *("-o", str(unfinished)),
            ]
        )
        unfinished.rename(target)
    return target


def install() -> None:
    """Make ``cuda`` an available backend, of CPU tensors, in this process.

    Raises:
        RuntimeError: the executor was not loaded before all else (``LD_PRELOAD``), so that it does
            not see what PyTorch allocates.
    """
    if not HAS_NVCC:
        raise RuntimeError("what is executed is compiled by nvcc, which is not on this machine")
    if not hasattr(ctypes.CDLL(None), "ptx_load"):
        raise RuntimeError(f"start it with LD_PRELOAD={build.executor()}")
    for path in sorted(library().parent.glob("*.ptx")):
        executor.load(str(path.relative_to(build.ROOT)), path.read_text())
    torch.ops.load_library(library())
    executor.configure()
    types = ops.CUDA_TYPES if executor.DEFAULTS["capability"] >= 80 else ops.CUDA_TYPES[:2]
    table = fassd_kernels.backends()
    rows = [
        dataclasses.replace(
            row,
            device="cpu",
            why_not=lambda: "",
            describe=lambda: "nvcc's PTX, executed",
            dtypes=types,
            refuses=lambda device, dtype: "",
        )
        if row.name == "cuda"
        else row
        for row in table
    ]
    # Behind what `auto` stops at: it is there to be asked for by name.
    rows.sort(key=lambda row: row.name == "cuda")
    object.__setattr__(table, "backends", tuple(rows))
