"""Builds the executor, and the CUDA kernels for it: ``python -m ptx.build`` from ``tests``."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "ptx"
TORCH_TARGET = "0x020b000000000000"  # as in setup.py
JOBS = int(os.environ.get("MAX_JOBS", "2"))
FLAGS = [
    *("-std=c++20", "-O2", "-g1", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"),
    # Registers are looked at through several types; integers wrap, as they do on a GPU.
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
]
# What setup.py and PyTorch's CUDA extensions give nvcc, of what device code depends on.
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-D__CUDA_NO_HALF_OPERATORS__"),
    *("-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__"),
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


@functools.cache
def instruction_set() -> list[str]:
    """Conversions of halves in hardware, eight lanes of floats: where this CPU has them."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return ["-mavx2", "-mfma", "-mf16c"] if {"avx2", "fma", "f16c"} <= flags else []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build of a folder at a time, whoever asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


@functools.cache
def nvcc() -> str | None:
    """The compiler: of CUDA_HOME, on the path, of a toolkit, or of PyPI's nvidia-cuda-nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    wheels = [path for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/nvcc")]
    names = (f"{home}/bin/nvcc", "nvcc", *map(str, wheels))
    return next(filter(None, map(shutil.which, names)), None)


def cuda_include() -> Path:
    """The folder of CUDA's headers, beside nvcc, which may be a link."""
    found = Path(nvcc() or "/usr/local/cuda/bin/nvcc")
    folders = [path.parents[1] / "include" for path in (found, found.resolve())]
    return next((folder for folder in folders if (folder / "cuda.h").exists()), folders[0])


def ptx_of(source: Path, architecture: int, csrc: Path = CSRC, flags: Sequence[str] = ()) -> str:
    """The PTX that nvcc makes of a CUDA source, compiled anew where it or a header has changed.

    Args:
        source: includes the project's headers as ``csrc/...``.
        architecture: a compute capability times ten.
        csrc: that folder, or a changed copy, beside which what is compiled is kept.
        flags: more for nvcc.
    """
    found = nvcc()
    assert found is not None, "there is no nvcc"
    command = [found, *NVCC_FLAGS, *flags, "-ptx", f"-arch=compute_{architecture}"]
    command += [f"-I{csrc.parent}", str(source)]
    key = "\0".join([*command, str(os.stat(found).st_mtime_ns)])
    digest = hashlib.sha256(key.encode() + source.read_bytes())
    for header in sorted(path for path in csrc.rglob("*") if path.suffix in (".h", ".cuh")):
        digest.update(str(header).encode() + b"\0" + header.read_bytes())
    folder = csrc.parent / "build" / "ptx" / "modules"
    stem = f"{source.stem}.sm_{architecture}"
    with locked(folder):
        target = folder / f"{stem}.{digest.hexdigest()[:16]}.ptx"
        if not target.exists():
            for old in folder.glob(f"{stem}.*.ptx"):
                old.unlink()
            unfinished = folder / "unfinished"
            run([*command, "-o", str(unfinished)])
            unfinished.rename(target)
    return target.read_text()


@functools.cache
def executor() -> Path:
    """The executor as a library, built where its sources have changed."""
    sources = sorted((HERE / "vm").glob("*.cpp"))
    digest = hashlib.sha256()
    for path in sorted((HERE / "vm").glob("*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    flags = [*FLAGS, *instruction_set(), f"-isystem{cuda_include()}"]
    digest.update("\0".join([*compiler(), *flags]).encode())
    folder = BUILD / "executor"
    with locked(folder):
        target = folder / f"libptx.{digest.hexdigest()[:16]}.so"
        if not target.exists():
            for old in folder.glob("libptx.*.so"):
                old.unlink()

            def compiled(source: Path) -> str:
                made = folder / f"{source.stem}.o"
                run([*compiler(), *flags, "-c", str(source), "-o", str(made)])
                return str(made)

            with ThreadPoolExecutor(JOBS) as pool:
                objects = list(pool.map(compiled, sources))
            unfinished = folder / "unfinished"
            run([*compiler(), "-shared", *objects, "-o", str(unfinished)])
            unfinished.rename(target)
    return target


def main() -> None:
    """Print the path of the executor, with ``host`` after building all that runs on it."""
    if sys.argv[1:] == ["host"]:
        from ptx import host

        host.library()
    print(executor())


if __name__ == "__main__":
    main()
