"""One wheel, built as a user's pip would build it, for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_NVCC = bool(shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists())


@dataclass(frozen=True)
class Built:
    """A wheel, what was printed while it was built, and its contents, unpacked."""

    wheel: Path
    log: str
    contents: Path


def source_copy(folder: Path) -> Path:
    """The sources, without what an earlier build left beside them."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build.json", "*.egg-info")
    for name in ("build_backend", "csrc", "fassd", "fassd_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / name)
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
        timeout=900,
    )


def unpack(source: Path, log: str) -> Built:
    (wheel,) = (source / "dist").glob("*.whl")
    contents = source / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(contents)
    return Built(wheel, log, contents)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel built in isolation, the CUDA extension included where nvcc is."""
    source = source_copy(tmp_path_factory.mktemp("wheel"))
    result = pip_wheel(source, FASSD_KERNELS_CUDA="1" if HAS_NVCC else "0")
    assert result.returncode == 0, result.stdout[-5000:]
    return unpack(source, result.stdout)


@pytest.fixture(scope="session")
def built_without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel built without isolation on a machine whose C++ compiler is not there."""
    source = source_copy(tmp_path_factory.mktemp("pure"))
    result = pip_wheel(source, "--no-build-isolation", CXX="no-such-compiler")
    assert result.returncode == 0, result.stdout[-5000:]
    return unpack(source, result.stdout)
