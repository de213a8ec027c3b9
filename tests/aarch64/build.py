"""The extension for aarch64, linked to a driver that has no PyTorch: ``python -m aarch64.build``.

What is compiled are the sources that setup.py compiles, with PyTorch's own headers; libtorch.cpp
stands in for its library. Objects are kept in ``build/aarch64``, named after what they are made of.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ptx.build import locked, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "aarch64"
COMPILER, OBJDUMP = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump"
EMULATOR = "qemu-aarch64"
JOBS = int(os.environ.get("MAX_JOBS", "2"))


def missing() -> str:
    """Which of the programs that this needs is not there; empty if none."""
    lacking = [name for name in (COMPILER, OBJDUMP, EMULATOR) if shutil.which(name) is None]
    return ", ".join(lacking)


@functools.cache
def flags(source: Path) -> list[str]:
    """As setup.py gives them; what is no kernel, or has a mistake, is compiled faster."""
    text = (ROOT / "setup.py").read_text()
    (target,) = re.findall(r'^TORCH_TARGET = "(0x\w+)"$', text, re.M)
    level = "-O3" if is_kernels(source) and BUILD not in source.parents else "-O1"
    return [
        *("-std=c++17", level, "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"),
        *("-ffunction-sections", "-fdata-sections", f"-DTORCH_TARGET_VERSION={target}"),
    ]


def is_kernels(source: Path) -> bool:
    return source.stem.startswith("kernels_")


@functools.cache
def includes() -> list[str]:
    """The stand-in for Python.h before all, then PyTorch's headers, of which none is compiled."""
    from torch.utils.cpp_extension import include_paths

    return [f"-I{HERE}", *(f"-isystem{path}" for path in include_paths())]


def sources() -> list[Path]:
    """All but the plans of the CUDA kernels."""
    csrc = ROOT / "csrc"
    return [*sorted(csrc.glob("*.cpp")), *sorted(csrc.glob("cpu/*.cpp")), *HERE.glob("*.cpp")]


def included(path: Path) -> set[Path]:
    """A source and the files of this project that it includes, and these include, and so on."""
    found, left = {path}, [path]
    while left:
        here = left.pop()
        for name in re.findall(r'^#include "(.+)"', here.read_text(), re.M):
            header = (here.parent / name).resolve()
            if header not in found:
                found.add(header)
                left.append(header)
    return found


@functools.cache
def tools() -> bytes:
    """What the compiler and PyTorch say of their versions."""
    import torch

    said = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    return said + torch.__version__.encode()


def compiled(source: Path) -> Path:
    """The object of a source, compiled where it, a header or a flag has changed."""
    command = [COMPILER, *flags(source)]
    digest = hashlib.sha256(tools() + "\0".join(command).encode())
    for path in sorted(included(source), key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"{source.parent.name}.{source.stem}.{digest.hexdigest()[:16]}.o"
    target = BUILD / "objects" / name
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}")
        run([*command, *includes(), "-c", str(source), "-o", str(unfinished)])
        unfinished.rename(target)
    return target


def planted(mistakes: Sequence[tuple[str, str, str]]) -> Path:
    """A copy of the sources with mistakes.

    Args:
        mistakes: a file of csrc/cpu, a text that it has once, and what takes its place.
    """
    name = hashlib.sha256(repr(mistakes).encode()).hexdigest()[:16]
    root = BUILD / f"planted.{name}"
    names = ("csrc/*.h", "csrc/cpu/*.h", "csrc/cpu/kernels_neon.cpp", "fassd_kernels/schemas.def")
    for path in (path for name in names for path in ROOT.glob(name)):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for file, before, after in mistakes:
        path = root / "csrc" / "cpu" / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has {text.count(before)} times {before!r}"
        path.write_text(text.replace(before, after))
    return root


def driver(mistakes: Sequence[tuple[str, str, str]] = ()) -> Path:
    """The driver, linked statically; the NEON kernels are those of sources with `mistakes`."""
    with locked(BUILD / "objects"):
        neon = (planted(mistakes) if mistakes else ROOT, "kernels_neon")

        def made(source: Path) -> Path:
            root = neon[0] if source.stem == neon[1] else ROOT
            return compiled(root / source.relative_to(ROOT))

        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(made, sources()))
        names = "\0".join(sorted(path.name for path in objects))
        target = BUILD / f"driver.{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        if not target.exists():
            unfinished = BUILD / "unfinished"
            command = [COMPILER, "-static", "-Wl,--gc-sections", *map(str, objects)]
            run([*command, "-o", str(unfinished)])
            unfinished.rename(target)
    return target


def library() -> Path:
    """The extension as a library, but for Python, of which it has the stand-in."""
    with locked(BUILD / "objects"):
        objects = [str(compiled(source)) for source in sources() if source.parent != HERE]
        target = BUILD / "_C.so"
        run([COMPILER, "-shared", *objects, "-o", str(target)])
    return target


def main() -> None:
    lacking = missing()
    if lacking:
        raise SystemExit(f"not on this machine: {lacking}")
    print(driver())


if __name__ == "__main__":
    main()
