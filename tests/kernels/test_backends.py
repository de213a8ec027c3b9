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


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
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
    result = run_python(code)
    assert result.stdout.splitlines()[0] == "(1, 64, 70)", result.stderr
    assert result.stdout.splitlines()[1].startswith("No usable temporary directory")


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
    out = run_python(code).stdout.splitlines()
    assert out[0] == "reference reference 1"
    assert "dapf on meta runs on the reference operators" in out[1]


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
    print(fassd_kernels.FusedMDA(8, 2).eval()(torch.zeros(1, 8, 4, 4)).shape)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_schemas_are_the_registered_ones() -> None:
    for name, schema in ops.SCHEMAS.items():
        registered = str(getattr(torch.ops.fassd_kernels, name).default._schema)
        names = [part.split()[-1].split("=")[0] for part in schema[len(name) + 1 :].split(",")]
        assert registered.startswith(f"fassd_kernels::{name}(")
        for argument in names[:-1]:
            assert argument.strip("()* ") in registered


@pytest.mark.parametrize("choice", ["portable", "avx2", "avx512"])
def test_instruction_sets_agree(choice: str) -> None:
    """FASSD_KERNELS_CPU chooses the instruction set, or says that this machine lacks it."""
    if not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
    code = """
import torch
from fassd_kernels import backends, ops, reference
print(backends()["cpu"].detail)
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 2e-3), (torch.float64, 1e-13)):
    for out in (1, 7, 16, 31, 33, 70):
        x, y = (torch.randn(2, c, 9, 14).to(dtype) for c in (19, 5))
        w, b = torch.randn(out, 24, 3, 3).to(dtype), torch.randn(out).to(dtype)
        kwargs = dict(dilation=[1, 2], activation="relu")
        exact = reference.conv_act([x.double(), y.double()], w.double(), b.double(), **kwargs)
        result = ops.conv_act([x, y], w, b, **kwargs)
        assert (result.double() - exact).norm() <= tolerance * exact.norm(), (dtype, out)
    up = ops.upsample(x, [20, 31]).double() - reference.upsample(x.double(), [20, 31])
    assert up.norm() <= tolerance * x.double().norm() * 3
print("agree")
"""
    result = run_python(code, FASSD_KERNELS_CPU=choice)
    if result.returncode:
        assert f"FASSD_KERNELS_CPU is '{choice}', which this CPU does not offer" in result.stderr
        assert choice == "avx512" or (choice == "avx2" and not torch.cpu._is_avx2_supported())
    else:
        assert result.stdout.splitlines()[-1] == "agree"


def test_unknown_instruction_set_is_refused() -> None:
    if not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
    result = run_python("import fassd_kernels; fassd_kernels.backends()", FASSD_KERNELS_CPU="mmx")
    assert result.returncode != 0
    assert "FASSD_KERNELS_CPU is 'mmx'; expected portable, avx2 or avx512" in result.stderr


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
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False fassd_kernels::dapf"
    assert "runs on the reference operators" in result.stderr


def test_an_extension_of_other_sources_counts_as_missing() -> None:
    """One that lacks what these sources ask it for: its kernels are not used either."""
    if not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
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
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    missing, reason, computed = result.stdout.splitlines()
    assert missing.startswith("it was built from other sources than these, build it again: ")
    assert missing.endswith("undefined symbol: fassd_kernels_checksum")
    assert reason == f"fassd_kernels._C: {missing}"
    assert computed == "True 0"


def test_public_names() -> None:
    for name in fassd_kernels.__all__:
        assert getattr(fassd_kernels, name) is not None
