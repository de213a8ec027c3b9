"""What backends() tells, and how a backend is chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fassd_kernels
from fassd_kernels import BackendError, backends, ops
from fassd_kernels.backends import choose


def run_python(code: str, **environment: str) -> tuple[list[str], str]:
    """The lines that a program prints, and what it says on standard error when it ends well."""
    done = attempt(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def attempt(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


needs_cpp = pytest.mark.skipif(
    not backends()["cpu"].available, reason=backends()["cpu"].reason or "it is available"
)


def test_report_names_every_backend_and_fact() -> None:
    report = str(backends())
    for word in ("torch", "compiler", "python", "cpu", "cuda", "reference", torch.__version__):
        assert word in report
    for backend in backends():
        assert backend.available == (not backend.reason)
        assert backend.operators <= set(ops.SCHEMAS)


def test_command_prints_the_report() -> None:
    command = [sys.executable, "-m", "fassd_kernels"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "reference" in result.stdout and "torch" in result.stdout


def test_import_and_use_need_no_temporary_folder() -> None:
    code = """
import tempfile
tempfile._candidate_tempdir_list = list  # as in a container whose file system is read-only
import fassd, fassd_kernels, torch
fast = fassd_kernels.accelerate(fassd.create_model("fassd_net_l2").eval(), output="labels")
with torch.no_grad():
    print(tuple(fast(torch.zeros(1, 3, 64, 70)).shape))
fast.train()(torch.randn(2, 3, 64, 64)).sum().backward()
try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    print(error.strerror)
"""
    (shape, refused), _ = run_python(code)
    assert shape == "(1, 64, 70)"
    assert refused.startswith("No usable temporary directory")


def test_auto_prefers_the_compiled_kernels() -> None:
    best = "cpu" if backends()["cpu"].available else "reference"
    assert choose("auto", "cpu", "dapf", quiet=True) == best


def test_auto_falls_back_and_says_so_once() -> None:
    code = """
import warnings
from fassd_kernels.backends import choose
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(choose("auto", "meta", "dapf"), choose("auto", "meta", "dapf"), len(caught))
    print(caught[0].message)
"""
    (chosen, warning), _ = run_python(code)
    assert chosen == "reference reference 1"
    assert "dapf on meta runs on the reference operators" in warning


def test_named_and_impossible_says_why() -> None:
    with pytest.raises(BackendError, match="expected one of auto, cpu, cuda, triton, reference"):
        choose("gpu", "cpu", "dapf")
    if not backends()["cuda"].available:
        with pytest.raises(BackendError, match=r"'cuda' cannot run dapf on cpu: \S+"):
            choose("cuda", "cpu", "dapf")


def test_work_on_the_cpu_does_not_ask_for_cuda() -> None:
    """Asking would start CUDA in a process that has no use for it."""
    code = """
import torch
from fassd.models import MDA
import fassd_kernels, fassd_kernels.backends as backends
def fail(): raise AssertionError("CUDA was asked for")
torch.cuda.is_available = torch.cuda.get_device_name = fail
torch.version.cuda = "13.0"
with torch.no_grad():
    fassd_kernels.FusedMDA(8, 2).eval()(torch.zeros(1, 8, 4, 4))
"""
    run_python(code)


INSTRUCTION_SETS = {
    "portable": "portable vectors",
    "avx2": "AVX2 + FMA",
    "amx": "AVX-512 + AMX",
    "neon": "NEON",
}


@needs_cpp
@pytest.mark.parametrize("choice", INSTRUCTION_SETS)
def test_an_instruction_set_is_chosen(choice: str) -> None:
    """Or refused where this machine lacks it. `make isa` holds all to the conformance suite."""
    code = """
import torch
from fassd_kernels import backends, ops, reference
print(backends()["cpu"].detail)
x, w = torch.randn(2, 19, 9, 14), torch.randn(33, 19, 3, 3)
for dtype, off in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
    near = ops.conv_act([x.to(dtype)], w.to(dtype)).float()
    torch.testing.assert_close(near, reference.conv_act([x], w), atol=off, rtol=0.02)
"""
    result = attempt(code, FASSD_KERNELS_CPU=choice)
    if result.returncode:
        assert f"FASSD_KERNELS_CPU is '{choice}', which this CPU does not offer" in result.stderr
        assert choice in ("amx", "neon") or (
            choice == "avx2" and not torch.cpu._is_avx2_supported()
        )
    else:
        assert result.stdout.strip() == f"C++, {INSTRUCTION_SETS[choice]}"


@needs_cpp
def test_unknown_instruction_set_is_refused() -> None:
    result = attempt("import fassd_kernels; fassd_kernels.backends()", FASSD_KERNELS_CPU="mmx")
    assert result.returncode != 0
    expected = "expected portable, avx2, avx512 or amx"
    assert f"FASSD_KERNELS_CPU is 'mmx'; {expected}" in result.stderr


def test_source_only_checkout_runs_on_the_reference() -> None:
    """Without the extension the schemas come from schemas.def and everything still works."""
    code = """
import sys
sys.modules["fassd_kernels._C"] = None  # as if it were not built
import torch, fassd, fassd_kernels
model = fassd.create_model("fassd_net_l2").eval()
fast = fassd_kernels.accelerate(model)
x = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    assert torch.allclose(fast(x), model(x), atol=1e-3)
print(fassd_kernels.backends()["cpu"].available, torch.ops.fassd_kernels.dapf.default._schema.name)
"""
    printed, warned = run_python(code)
    assert printed == ["False fassd_kernels::dapf"]
    assert "runs on the reference operators" in warned


@needs_cpp
def test_an_extension_of_other_sources_counts_as_missing() -> None:
    """One that lacks what these sources ask it for: its kernels are not used either."""
    code = """
import _ctypes, ctypes
load = ctypes.PyDLL
ctypes.PyDLL = lambda path: load(_ctypes.__file__)  # without our function
import torch, fassd_kernels
from fassd_kernels import backends, ops, reference
print(ops.CPU_MISSING)
print(backends()["cpu"].reason)
x, w = torch.randn(1, 3, 5, 6), torch.randn(2, 3, 3, 3)
print(torch.equal(ops.conv_act([x], w), reference.conv_act([x], w)), ops.held_memory())
"""
    (missing, reason, computed), _ = run_python(code)
    assert missing.startswith("it was built from other sources than these, build it again: ")
    assert missing.endswith("undefined symbol: fassd_kernels_checksum")
    assert reason == f"fassd_kernels._C: {missing}"
    assert computed == "True 0"


def test_public_names() -> None:
    for name in fassd_kernels.__all__:
        assert getattr(fassd_kernels, name) is not None
