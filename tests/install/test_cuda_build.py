"""nvcc builds ``_C_cuda`` on any machine that has it, without warnings, and what was meant.

sm_90 unless ``FASSD_TEST_ARCHITECTURES=all``. Where Triton is not there, nothing can be
disassembled, and those tests are skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from install.cuda_budget import Budget, excesses, looseness
from install.cuda_expected import unmeant
from install.cuda_resources import Kernel, kernels_of, warnings_of
from install.cuda_sass import Code, disassemble, oversized
from install.wheels import HAS_NVCC, Built, build_environment, nvcc_release

pytestmark = pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not on this machine")


def library_of(built: Built) -> Path:
    return built.contents / "fassd_kernels" / "_C_cuda.abi3.so"


@pytest.fixture(scope="module")
def kernels(built: Built) -> list[Kernel]:
    return kernels_of(built.compile_log)


@pytest.fixture(scope="module")
def codes(built: Built) -> dict[tuple[str, str], Code]:
    pytest.importorskip("triton", reason="cuobjdump and nvdisasm come with Triton")
    return disassemble(library_of(built))


def test_the_extension_is_in_the_wheel(built: Built) -> None:
    assert library_of(built).exists()


def test_every_architecture_is_built(built: Built, kernels: list[Kernel]) -> None:
    record = json.loads((built.contents / "fassd_kernels" / "_build.json").read_text())
    asked = build_environment()["TORCH_CUDA_ARCH_LIST"]
    assert record["architectures"] == asked
    assert {f"sm_{arch.replace('.', '')}" for arch in asked.split(";")} == {k.arch for k in kernels}


def test_no_spills(kernels: list[Kernel]) -> None:
    spilling = [
        f"{kernel.name} for {kernel.arch}: {kernel.registers} registers, "
        f"{kernel.spills} bytes of spills, a stack of {kernel.stack} bytes"
        for kernel in kernels
        if kernel.spills or kernel.stack
    ]
    assert not spilling, "\n".join(spilling)


def test_within_the_budget(kernels: list[Kernel]) -> None:
    found = excesses(kernels, Budget.read())
    assert not found, "\n".join(found)


def test_the_budget_is_tight(kernels: list[Kernel]) -> None:
    budget = Budget.read()
    if nvcc_release() != budget.nvcc:
        pytest.skip(f"the budget fits the code of nvcc {budget.nvcc}, this is {nvcc_release()}")
    found = looseness(kernels, budget)
    assert not found, "\n".join(found)


def test_no_compiler_warnings(built: Built) -> None:
    """Of our own sources, by g++, nvcc and ptxas."""
    warnings = warnings_of(built.compile_log)
    assert not warnings, "\n".join(warnings)


def test_instructions_are_those_meant(codes: dict[tuple[str, str], Code]) -> None:
    found = [each for (arch, name), code in codes.items() for each in unmeant(arch, name, code)]
    assert not found, "\n".join(found)


def test_the_instruction_cache_holds_every_kernel(codes: dict[tuple[str, str], Code]) -> None:
    assert not oversized(codes), "\n".join(oversized(codes))


def test_every_kernel_was_disassembled(
    codes: dict[tuple[str, str], Code], kernels: list[Kernel]
) -> None:
    assert set(codes) == {(kernel.arch, kernel.name) for kernel in kernels}
    assert all(len(code.instructions) > 50 for code in codes.values())


def test_it_finds_torch_and_brings_its_own_runtime(built: Built) -> None:
    """libtorch is a dependency, so that libtorch_cuda is found; libcudart is not, so any serves."""
    command = ["readelf", "--dynamic", str(library_of(built))]
    needed = re.findall(
        r"NEEDED.*\[(.+)\]",
        subprocess.run(command, capture_output=True, text=True, check=True).stdout,
    )
    assert "libtorch.so" in needed
    assert not [name for name in needed if "cudart" in name]
