"""Wheels, built as a user's pip would build them; the one for all tests is built incrementally.

Compiling takes minutes, everything else seconds. The tree that the wheel is built in is therefore
kept, in ``build/cuda_gate``: pip builds the wheel anew each time, in isolation, and ninja compiles
what has changed. What the compilers printed of each object is kept beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
HAS_NVCC = NVCC is not None
FOLDERS = ("build_backend", "csrc", "fassd", "fassd_kernels")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
LEFT_OVER = ("__pycache__", "*.so", "_build.json", "*.egg-info")


@dataclass(frozen=True)
class Built:
    """A wheel, and its contents, unpacked.

    Attributes:
        log: what was printed while the wheel was built.
        compile_log: what was printed when its objects were compiled, by this build or before.
    """

    wheel: Path
    log: str
    compile_log: str
    contents: Path


def source_copy(folder: Path) -> Path:
    """The sources, without what an earlier build left beside them."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OVER))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def update_copy(folder: Path, fresh: Path) -> None:
    """Makes a copy of the sources what a fresh one is; files that are the same are not touched."""
    changed = set()
    for name in FOLDERS:
        wanted = {path.relative_to(fresh) for path in (fresh / name).rglob("*") if path.is_file()}
        there = {path.relative_to(folder) for path in (folder / name).rglob("*") if path.is_file()}
        for path in there - wanted:
            (folder / path).unlink()
        changed |= {path for path in wanted if copy_if_different(fresh / path, folder / path)}
    for file in FILES:
        copy_if_different(fresh / file, folder / file)
    # Where torch has no CUDA, its rules for nvcc do not tell ninja which headers a source includes.
    if any(path.suffix in (".h", ".cuh") for path in changed):
        for source in (folder / "csrc" / "cuda").glob("*.cu"):
            source.touch()


def copy_if_different(source: Path, target: Path) -> bool:
    """Not by time: a file that was changed back is newer for ninja than what it was compiled to."""
    if target.exists() and target.read_bytes() == source.read_bytes():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True


def pip_wheel(source: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``pip wheel`` of a source tree into its ``dist`` folder; the log is in stdout."""
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", *options]
    return subprocess.run(
        [*command, "--wheel-dir", str(source / "dist"), str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        timeout=3600,
    )


def unpack(source: Path, log: str, compile_log: str) -> Built:
    (wheel,) = (source / "dist").glob("*.whl")
    contents = source / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(contents)
    return Built(wheel, log, compile_log, contents)


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def nvcc_release() -> str:
    """As in 13.0."""
    return re.findall(r"release ([\d.]+)", printed(NVCC or "nvcc", "--version"))[0]


def all_architectures() -> bool:
    """Whether to compile for every architecture, not only for the two that tests can wait for."""
    asked = os.environ.get("FASSD_TEST_ARCHITECTURES", "")
    assert asked in ("", "all"), f"FASSD_TEST_ARCHITECTURES is {asked!r}; expected 'all' or nothing"
    return asked == "all"


def default_architectures() -> list[str]:
    """Those of setup.py that this nvcc knows."""
    setup = (ROOT / "setup.py").read_text()
    (default,) = re.findall(r"^DEFAULT_ARCHITECTURES = \((.+)\)$", setup, re.M)
    known = printed(NVCC or "nvcc", "--list-gpu-arch").split()
    architectures = re.findall(r"[\d.]+", default)
    return [name for name in architectures if f"compute_{name.replace('.', '')}" in known]


def build_environment() -> dict[str, str]:
    """The environment that the wheel is built in."""
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count())}
    if not HAS_NVCC:
        return {**environment, "FASSD_KERNELS_CUDA": "0"}
    architectures = default_architectures() if all_architectures() else ["8.0", "9.0"]
    return {
        **environment,
        "FASSD_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": ";".join(architectures),
    }


def toolchain_key(environment: dict[str, str]) -> str:
    """A hash of what objects depend on beside the files that ninja watches."""
    import torch

    versions = [sys.version, torch.__version__, torch.__file__, str(ROOT)]
    versions.append(printed(os.environ.get("CXX", "c++"), "--version"))
    versions += [printed(NVCC, "--version")] if NVCC else []
    asked = {name: value for name, value in environment.items() if name != "MAX_JOBS"}
    return hashlib.sha256(json.dumps([versions, asked], sort_keys=True).encode()).hexdigest()


def outputs_of(log: str) -> dict[str, list[str]]:
    """By object: the commands that ninja ran to make it, each with what it printed.

    An object is listed twice where two extensions share a source.
    """
    found: dict[str, list[str]] = {}
    for step in re.split(r"^(?=\s*\[\d+/\d+\] )", log, flags=re.M)[1:]:
        made = re.search(r" -o (\S+\.o)\b", step.partition("\n")[0])
        if made:
            found.setdefault(made[1], []).append(step)
    return found


def source_exists(made: str, tree: Path) -> bool:
    """Whether an object's source is still there."""
    inside = re.sub(r"^.*/build/temp[^/]*/", "", made)
    return any((tree / inside).with_suffix(suffix).exists() for suffix in (".cpp", ".cu"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other test run builds in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str) -> None:
    """Where there is a file, it is a whole one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as partial:
        partial.write(text)
    Path(partial.name).replace(path)


def build(folder: Path) -> Built:
    """The wheel of the sources as they are, in a tree that `folder` keeps.

    ``outputs.json`` is there only while it and the tree belong together. Where it is missing, a
    build was cut short, and where its key is another, the compilers are: then all begins anew.
    """
    environment = build_environment()
    key, kept, tree = toolchain_key(environment), folder / "outputs.json", folder / "tree"
    content: dict[str, Any] = (
        json.loads(kept.read_text()) if kept.exists() else {"key": "", "outputs": {}}
    )
    kept.unlink(missing_ok=True)
    if content["key"] != key:
        content = {"key": key, "outputs": {}}
        shutil.rmtree(tree, ignore_errors=True)
    for name in ("fresh", "tree/dist", "tree/unpacked"):
        shutil.rmtree(folder / name, ignore_errors=True)
    update_copy(tree, source_copy(folder / "fresh"))
    result = pip_wheel(tree, **environment)
    outputs = {**content["outputs"], **outputs_of(result.stdout)}
    outputs = {made: steps for made, steps in outputs.items() if source_exists(made, tree)}
    write_whole(kept, json.dumps({"key": key, "outputs": outputs}, indent=1))
    assert result.returncode == 0, result.stdout[-5000:]
    compile_log = "\n".join(step for _, steps in sorted(outputs.items()) for step in steps)
    return unpack(tree, result.stdout, compile_log)


def kept_folder() -> Path:
    """Where what was built for these architectures stays."""
    return ROOT / "build" / "cuda_gate" / ("all" if all_architectures() else "few")


def built_wheel() -> Built:
    """A wheel built in isolation, the CUDA extension included where nvcc is."""
    with locked(kept_folder()):
        return build(kept_folder())
