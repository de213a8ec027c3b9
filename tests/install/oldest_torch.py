"""The sources against the oldest torch that they support: ``python -m install.oldest_torch``.

Its wheel is downloaded without what it depends on, and unpacked, not installed. All of csrc is
compiled with its headers, the CUDA sources without optimization and to PTX alone; what the objects
ask of PyTorch has to be in its libraries. Needs half a gigabyte of network once, and nvcc.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from install.wheels import NVCC, ROOT

FOLDER = ROOT / "build" / "oldest_torch"
# Of its symbols: the C interface, and what is C++ in PyTorch's own namespaces.
OF_TORCH = re.compile(r"(?:aoti_|torch_|_ZNK?(?:2at|3c10|5torch|9torch))\w+")
LIBRARIES = re.compile(r"torch/lib/lib(?:torch|torch_cpu|torch_cuda|c10|c10_cuda)\.so")
JOBS = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))


def target() -> str:
    """TORCH_TARGET_VERSION of setup.py."""
    (found,) = re.findall(r'^TORCH_TARGET = "(0x\w+)"$', (ROOT / "setup.py").read_text(), re.M)
    return found


def version() -> str:
    """As in 2.11.0: one byte each."""
    number = int(target(), 16)
    return ".".join(str(number >> shift & 0xFF) for shift in (56, 48, 40))


def wheel() -> Path:
    """Downloaded, if it is not there."""
    pattern = f"torch-{version()}-*.whl"
    if not list(FOLDER.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--dest", str(FOLDER), f"torch=={version()}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            (reason, *_) = [*re.findall(r"ERROR: (.+)", done.stderr), "pip said nothing"]
            sys.exit(f"torch {version()} could not be downloaded, which needs a network: {reason}")
    return next(FOLDER.glob(pattern))


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def unpack(archive: Path) -> tuple[Path, set[str]]:
    """The folder of headers, and the symbols that the libraries define."""
    include, kept = FOLDER / "torch" / "include", FOLDER / "symbols.json"
    if not kept.exists():
        symbols: list[str] = []
        with zipfile.ZipFile(archive) as contents:
            for name in contents.namelist():
                if name.startswith("torch/include/"):
                    contents.extract(name, FOLDER)
                elif LIBRARIES.fullmatch(name):
                    library = contents.extract(name, FOLDER)
                    listed = printed("nm", "--dynamic", "--defined-only", library)
                    symbols += (line.split()[-1].partition("@")[0] for line in listed.splitlines())
                    Path(library).unlink()
        kept.write_text(json.dumps([name for name in symbols if OF_TORCH.match(name)]))
    return include, set(json.loads(kept.read_text()))


def compiled(source: Path, include: Path) -> tuple[Path, str]:
    """The object of a source, and what the compiler said against it."""
    made = FOLDER / "objects" / f"{source.relative_to(ROOT / 'csrc')}.o".replace("/", "_")
    made.unlink(missing_ok=True)
    command = shlex.split(os.environ.get("CXX", "c++"))
    if source.suffix == ".cu":
        command = [str(NVCC), "-DUSE_CUDA", "-G", "-gencode=arch=compute_80,code=compute_80"]
    command += ["-std=c++17", "-O0", f"-DTORCH_TARGET_VERSION={target()}", "-c", str(source)]
    folders = [include, include / "torch/csrc/api/include", Path(sysconfig.get_path("include"))]
    if source.parent.name == "cuda":
        folders.append(Path(NVCC or "").resolve().parents[1] / "include")
    command += [f"-I{folder}" for folder in folders]
    done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
    return made, done.stderr if done.returncode else ""


def asked(objects: Iterable[Path]) -> set[str]:
    """Symbols of PyTorch that objects do not define themselves."""
    lines = [line.split() for path in objects for line in printed("nm", str(path)).splitlines()]
    defined = {line[-1] for line in lines if line[-2] not in ("U", "w")}
    return {line[-1] for line in lines if OF_TORCH.match(line[-1])} - defined


def main() -> None:
    if NVCC is None or shutil.which("nm") is None:
        sys.exit("the CUDA sources are compiled too, which needs nvcc and nm on the path")
    (FOLDER / "objects").mkdir(parents=True, exist_ok=True)
    include, there = unpack(wheel())
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    with ThreadPoolExecutor(JOBS) as pool:
        results = list(pool.map(lambda source: compiled(source, include), sorted(sources)))
    errors = "".join(error for _, error in results)
    if errors:
        sys.exit(f"{errors}\ncsrc does not compile against torch {version()}")
    wanted = asked(path for path, _ in results)
    missing = sorted(wanted - there)
    if missing or not wanted:
        sys.exit(f"torch {version()} lacks what csrc asks for: {', '.join(missing) or 'nothing?'}")
    print(f"torch {version()}: {len(results)} sources compile, all {len(wanted)} symbols are there")


if __name__ == "__main__":
    main()
