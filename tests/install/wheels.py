"""Wheels, built as a user's pip would build them.

Compiling takes minutes, everything else seconds. The tree that the wheel for all tests is built in
is therefore kept, in ``build/cuda_gate``: pip builds the wheel anew each time, in isolation, and
ninja compiles nothing as long as what is compiled is the same and untouched. What the compilers
printed is kept.
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
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
HAS_NVCC = NVCC is not None
FOLDERS = ("build_backend", "csrc", "fassd", "fassd_kernels")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
# Whose PTX is compiled along, for tests/ptx to execute.
EXECUTED = ["80", "90"]
LEFT_OVER = ("__pycache__", "*.so", "_build.json", "*.egg-info")


@dataclass(frozen=True)
class Built:
    """A wheel, and its contents, unpacked.

    Attributes:
        log: what was printed while the wheel was built.
        compile_log: what was printed by the build that compiled its objects, this or an earlier.
    """

    wheel: Path
    log: str
    compile_log: str
    contents: Path


def source_copy(folder: Path) -> Path:
    """The sources, without what an earlier build left beside them; they take the place of older."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OVER))
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


def pip_wheel(source: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``pip wheel`` of a source tree into its ``dist`` folder; the log is in stdout."""
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", *options]
    return subprocess.run(
        [*command, "--wheel-dir", str(source / "dist"), str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,  # without a terminal: progress goes to the log
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
    """Whether to compile for every architecture, not only for the one that tests can wait for."""
    asked = os.environ.get("FASSD_TEST_ARCHITECTURES", "")
    assert asked in ("", "all"), f"FASSD_TEST_ARCHITECTURES is {asked!r}; expected 'all' or nothing"
    return asked == "all"


def known_architectures() -> list[str]:
    """Those that setup.py lists and this nvcc knows."""
    setup = (ROOT / "setup.py").read_text()
    (listed,) = re.findall(r"^ARCHITECTURES = \((.+)\)$", setup, re.M)
    known = printed(NVCC or "nvcc", "--list-gpu-arch").split()
    architectures = re.findall(r"[\d.]+", listed)
    return [name for name in architectures if f"compute_{name.replace('.', '')}" in known]


def build_environment() -> dict[str, str]:
    """The environment that the wheel is built in."""
    # Half of the cores: other tests run beside it.
    jobs = os.environ.get("MAX_JOBS") or str(max(1, (os.cpu_count() or 1) // 2))
    compiler = os.environ.get("CXX") or str(Path(__file__).with_name("c++"))
    environment = {"MAX_JOBS": jobs, "CXX": compiler}
    if not HAS_NVCC:
        return {**environment, "FASSD_KERNELS_CUDA": "0"}
    architectures = known_architectures() if all_architectures() else ["9.0"]
    executed = ["75", *EXECUTED] if all_architectures() else EXECUTED
    return {
        **environment,
        "FASSD_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": ";".join(architectures),
        # Lines tell which part of a kernel an executed instruction belongs to.
        "NVCC_APPEND_FLAGS": " ".join(
            ("-lineinfo", *(f"-gencode=arch=compute_{a},code=compute_{a}" for a in executed))
        ),
    }


def compiled_key(environment: dict[str, str]) -> str:
    """A hash of what is compiled, with what, and how."""
    import torch

    versions = [sys.version, torch.__version__, torch.__file__, str(ROOT)]
    versions.append(printed(environment.get("CXX", "c++"), "--version"))
    versions += [printed(NVCC, "--version")] if NVCC else []
    asked = {name: value for name, value in environment.items() if name != "MAX_JOBS"}
    digest = hashlib.sha256(json.dumps([versions, asked], sort_keys=True).encode())
    sources = [ROOT / "setup.py", ROOT / "fassd_kernels" / "schemas.def"]
    for path in [*sources, *sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]:
        digest.update(f"{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other test run builds in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path) -> Built:
    """The wheel of the sources as they are, in a tree that `folder` keeps.

    ``compiled.json``, the key and the log of what was compiled, is written when all of it was.
    """
    environment = build_environment()
    key, kept, tree = compiled_key(environment), folder / "compiled.json", folder / "tree"
    content = json.loads(kept.read_text()) if kept.exists() else {}
    if content.get("key") != key:
        kept.unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
    for left in (tree / "dist", tree / "unpacked", *tree.glob("build/lib*")):
        shutil.rmtree(left, ignore_errors=True)
    result = pip_wheel(source_copy(tree), **environment)
    assert result.returncode == 0, result.stdout[-5000:]
    if not kept.exists():
        content = {"key": key, "log": result.stdout}
        kept.write_text(json.dumps(content))
    return unpack(tree, result.stdout, content["log"])


def kept_folder() -> Path:
    """Where what was built for these architectures stays."""
    return ROOT / "build" / "cuda_gate" / ("all" if all_architectures() else "few")


def built_wheel() -> Built:
    """A wheel built in isolation, the CUDA extension included where nvcc is."""
    with locked(kept_folder()):
        return build(kept_folder())


def compiled_tree() -> Path:
    """The tree that the wheel was built in, compiled from the sources as they are."""
    tree, kept = kept_folder() / "tree", kept_folder() / "compiled.json"
    with locked(kept_folder()):
        content = json.loads(kept.read_text()) if kept.exists() else {}
        whole = content.get("key") == compiled_key(build_environment())
        if not whole or not (tree / "unpacked").exists():
            build(kept_folder())
    return tree
