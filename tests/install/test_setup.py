"""setup.py: which architectures it chooses, and what it says while it compiles."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from install.wheels import ROOT

from fassd_kernels.ops import runs_on


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which builds nothing where it is asked for help."""
    monkeypatch.chdir(ROOT)  # as it does itself
    monkeypatch.setattr(sys, "argv", ["setup.py", "sdist", "--help"])
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_fassd", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("nvcc", "machine", "expected"),
    [
        ("13.0.88", "x86_64", "7.5;8.0;9.0;10.0;12.0+PTX"),
        ("13.0.88", "aarch64", "7.5;8.0;8.7;9.0;10.0;12.0+PTX"),
        ("12.6.20", "x86_64", "7.5;8.0;9.0+PTX"),
    ],
)
def test_without_a_gpu(
    setup: Any, monkeypatch: pytest.MonkeyPatch, nvcc: str, machine: str, expected: str
) -> None:
    monkeypatch.setattr(setup, "seen_architectures", list)
    monkeypatch.setattr(setup, "nvcc_version", lambda: nvcc)
    monkeypatch.setattr(setup.platform, "machine", lambda: machine)
    assert setup.architectures() == expected


def test_what_is_left_out_runs_other_code(setup: Any) -> None:
    """Every architecture that the kernels are tested for, but a Jetson's."""
    for name in setup.ARCHITECTURES:
        major, minor = map(int, name.split("."))
        assert name == setup.JETSON or runs_on(setup.DEFAULT_ARCHITECTURES, (major, minor))


def test_a_gpu_that_is_seen_is_built_for_alone(
    setup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '8.9\\n8.6\\n8.9\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.architectures() == "8.6;8.9+PTX"


def test_a_gpu_that_only_torch_sees(
    setup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    assert setup.architectures() == "8.7+PTX"


def test_progress_counts_what_was_compiled(
    setup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(setup, "say", lines.append)
    objects = {tmp_path / f"{name}.o": f"csrc/{name}.cu" for name in "abc"}
    old = tmp_path / "a.o"
    old.touch()
    os.utime(old, (1, 1))
    with setup.progress("_C_cuda", objects):
        (tmp_path / "b.o").touch()
    assert lines == ["_C_cuda: 1 of 3 compiled, 0 s: csrc/b.cu"]  # nothing of what was up to date
    lines.clear()
    with pytest.raises(RuntimeError), setup.progress("_C_cuda", objects):
        old.touch()
        raise RuntimeError("nvcc failed")
    assert lines == ["_C_cuda: 1 of 3 compiled, 0 s: csrc/a.cu"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FASSD_KERNELS_CUDA": "1", "CUDA_HOME": "/nowhere"}, "nvcc was not found"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0", "CUDA_HOME": "/nowhere"}, "nvcc was not found"),
        ({"FASSD_KERNELS_CUDA": "yes"}, "FASSD_KERNELS_CUDA is 'yes'; expected 0, 1 or nothing"),
        ({"FASSD_KERNELS_CUDA": "1", "CXX": "no-such-compiler"}, r"cannot be built: no C\+\+ comp"),
    ],
)
def test_what_is_asked_for_and_impossible_fails(
    setup: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        setup.plan()
