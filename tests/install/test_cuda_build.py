"""nvcc builds ``_C_cuda`` on any machine that has it, without warnings and within a budget."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from install.conftest import HAS_NVCC, Built

pytestmark = pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not on this machine")

# Kernel -> the most registers a thread and bytes of shared memory a block may take.
BUDGET: dict[str, dict[str, int]] = json.loads(
    (Path(__file__).with_name("cuda_budget.json")).read_text()
)
RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def resources(log: str) -> list[dict[str, str]]:
    """ptxas' figures of every kernel and architecture."""
    return [match.groupdict() for match in RESOURCES.finditer(log)]


def kernel_of(mangled: str) -> str:
    found = [name for name in BUDGET if name in mangled]
    assert len(found) == 1, f"{mangled} is not in cuda_budget.json"
    return found[0]


def test_the_extension_is_in_the_wheel(built: Built) -> None:
    assert (built.contents / "fassd_kernels" / "_C_cuda.abi3.so").exists()


def test_every_architecture_is_built(built: Built) -> None:
    record = json.loads((built.contents / "fassd_kernels" / "_build.json").read_text())
    asked = {f"sm_{a.replace('.', '')}" for a in re.findall(r"[\d.]+", record["architectures"])}
    assert asked == {kernel["arch"] for kernel in resources(built.log)}
    assert {"sm_80", "sm_90"} <= asked


def test_no_spills_and_within_the_budget(built: Built) -> None:
    kernels = resources(built.log)
    assert {kernel_of(kernel["name"]) for kernel in kernels} == set(BUDGET)
    for kernel in kernels:
        where = f"{kernel['name']} for {kernel['arch']}"
        assert (kernel["stores"], kernel["loads"], kernel["stack"]) == ("0", "0", "0"), where
        budget = BUDGET[kernel_of(kernel["name"])]
        assert int(kernel["registers"]) <= budget["registers"], where
        shared = re.search(r"(\d+) bytes smem", kernel["rest"])
        assert int(shared.group(1) if shared else 0) <= budget["shared_bytes"], where


def test_no_compiler_warnings(built: Built) -> None:
    """Of our own sources, by g++ and by nvcc."""
    warnings = re.findall(r"^.*csrc/\S+[:(]\d+.*warning.*$", built.log, re.M)
    assert not warnings, "\n".join(warnings)


def test_it_finds_torch_and_brings_its_own_runtime(built: Built) -> None:
    """libtorch is a dependency, so that libtorch_cuda is found; libcudart is not, so any serves."""
    library = built.contents / "fassd_kernels" / "_C_cuda.abi3.so"
    command = ["readelf", "--dynamic", str(library)]
    needed = re.findall(
        r"NEEDED.*\[(.+)\]",
        subprocess.run(command, capture_output=True, text=True, check=True).stdout,
    )
    assert "libtorch.so" in needed
    assert not [name for name in needed if "cudart" in name]
