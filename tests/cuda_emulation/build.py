"""Compiles the CUDA backend, as it stands, for the CPU: ``python tests/cuda_emulation/build.py``.

The result is a library that ``torch.ops.load_library`` loads; its operators serve CPU tensors.
There are three variants: ``plain``; ``address``, with AddressSanitizer and
UndefinedBehaviorSanitizer; ``thread``, with ThreadSanitizer. See README.md.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INCLUDE = HERE / "include"
BUILD = ROOT / "build" / "cuda_emulation"
TORCH_TARGET = "0x020b000000000000"  # as in setup.py
JOBS = int(os.environ.get("MAX_JOBS", "2"))

# Kernels look at one memory through several types, as nvcc lets them. The macros are those that
# PyTorch's builds of CUDA extensions define.
FLAGS = [
    *("-x", "c++", "-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fno-omit-frame-pointer", "-Wall", "-Wno-unknown-pragmas"),
    *("-DFASSD_CUDA_EMULATION", "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__"),
    *("-D__CUDA_NO_HALF2_OPERATORS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"),
]
# Line numbers are all that a report needs of debug information.
VARIANTS = {
    "plain": ["-O2", "-g0"],
    "address": [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


@functools.cache
def compiler_version() -> str:
    return subprocess.run(
        [*compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout


@functools.cache
def instruction_set() -> list[str]:
    """Conversions of halves in hardware, eight lanes of floats: where this CPU has them."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return ["-mavx2", "-mfma", "-mf16c"] if {"avx2", "fma", "f16c"} <= flags else []


@functools.cache
def headers() -> bytes:
    """All that a source may include, in one hash: a change of any header builds everything."""
    paths = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.cuh"), *ROOT.glob("csrc/plan/*.h")]
    paths += [ROOT / "fassd_kernels" / "schemas.def", *INCLUDE.rglob("*.h")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def compile_flags(variant: str, torch: bool) -> list[str]:
    flags = [*FLAGS, *VARIANTS[variant], *instruction_set(), f"-I{INCLUDE}"]
    if torch:
        from torch.utils.cpp_extension import include_paths

        includes = {sysconfig.get_path(name) for name in ("include", "platinclude")}
        flags += [f"-isystem{path}" for path in (*include_paths(), *sorted(includes))]
        flags.append(f"-DTORCH_TARGET_VERSION={TORCH_TARGET}")
    return flags


def link_flags(variant: str, torch: bool, shared: bool) -> list[str]:
    flags = [flag for flag in VARIANTS[variant] if flag.startswith("-fsanitize=")]
    flags += ["-shared"] if shared else []
    if torch:
        from torch.utils.cpp_extension import library_paths

        flags += [f"-L{path}" for path in library_paths()]
        flags += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    return [*flags, "-lpthread"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build of a folder at a time, whoever asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def compile_source(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    digest = hashlib.sha256(headers() + source.read_bytes())
    digest.update("\0".join([str(source), *compiler(), compiler_version(), *flags]).encode())
    # checks.cpp and cuda/checks.cu would both be checks.
    stem = "_".join(source.relative_to(ROOT).with_suffix("").parts)
    target = folder / f"{stem}.{digest.hexdigest()[:16]}.o"
    if not target.exists():
        for old in folder.glob(f"{stem}.*.o"):
            old.unlink()
        unfinished = target.with_suffix(".unfinished")
        run([*compiler(), *flags, "-c", str(source), "-o", str(unfinished)])
        unfinished.rename(target)
    return target


def build(
    sources: Sequence[Path],
    name: str,
    variant: str,
    *,
    torch: bool = False,
    shared: bool = True,
    more: Sequence[str] = (),
) -> Path:
    """Compile what has changed, and link it into ``build/cuda_emulation/<variant>/<name>``.

    Args:
        sources: of the project; all are compiled as C++.
        name: of the result, ``.so`` included.
        variant: one of ``VARIANTS``.
        torch: whether it is an extension of PyTorch.
        shared: a library; otherwise a program.
        more: flags to compile with.
    """
    folder = BUILD / variant / f"{name}.objects"
    with locked(folder):
        flags = [*compile_flags(variant, torch), *more]
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(lambda path: compile_source(path, folder, flags), sources))
        target = BUILD / variant / name
        links = link_flags(variant, torch, shared)
        key = "\n".join([*map(str, objects), *links])
        record = folder / "linked"
        if not target.exists() or not record.exists() or record.read_text() != key:
            # Not in place: a process may have the old library mapped.
            unfinished = folder / "unfinished"
            run([*compiler(), *map(str, objects), *links, "-o", str(unfinished)])
            unfinished.rename(target)
            record.write_text(key)
    return target


def build_backend(variant: str = "plain") -> Path:
    """The library of all of csrc/cuda; ``torch.ops.load_library`` takes its path."""
    sources = [
        *(ROOT / "csrc" / name for name in ("checks.cpp", "plan/plan.cpp", "plan/fusion.cpp")),
        *sorted(ROOT.glob("csrc/cuda/*.cpp")),
        *sorted(ROOT.glob("csrc/cuda/*.cu")),
    ]
    return build(sources, "_C_cuda_emulated.so", variant, torch=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variant", nargs="?", default="plain", choices=VARIANTS)
    print(build_backend(parser.parse_args().variant))


if __name__ == "__main__":
    main()
