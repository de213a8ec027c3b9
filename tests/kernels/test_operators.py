"""The table of operators, and what it takes to add one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

import fassd_kernels
from fassd_kernels import reference
from fassd_kernels.operators import OPERATORS

ROOT = Path(fassd_kernels.__file__).parents[1]

# --- a new operator, in three places --------------------------------------------------------------

SCHEMA = """
OPERATOR(fade, maps, R"(Tensor input, *, float by=0.5)")
"""

REFERENCE = '''
"""Images made darker."""

from torch import Tensor

from fassd_kernels.checks import check, check_images
from fassd_kernels.reference.conv_act import channels_last


def fade(input: Tensor, *, by: float = 0.5) -> Tensor:
    """``input * (1 - by)``."""
    check_fade(input, by=by)
    return channels_last(input * (1 - by))


def check_fade(input: Tensor, *, by: float = 0.5) -> tuple[int, ...]:
    check_images("fade", [("input", input)])
    check(0 <= by < 1, f"fade: by is {by}; expected at least 0, less than 1")
    return tuple(input.shape)
'''

BACKEND = '''
"""fade: a program takes BLOCK elements."""

import triton
import triton.language as tl

from fassd_kernels.reference.conv_act import channels_last
from fassd_kernels.triton.program import Pointer, Work, planned

BLOCK = 256


@triton.jit
def fade_kernel(image, out, count, factor, BLOCK_M: tl.constexpr):
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    value = tl.load(image + at, mask=at < count)
    tl.store(out + at, value * factor, mask=at < count)


@planned
def fade(program, size, input, by):
    given, out = program.argument(input), program.result(size)
    program.renew(given, program.dtype, channels_last)
    count = input.tensor.numel()
    if count:
        arguments = {
            "image": Pointer(given),
            "out": Pointer(out.slot),
            "count": count,
            "factor": 1 - by,
            "BLOCK_M": BLOCK,
        }
        work = Work(bytes=2 * count * program.itemsize, operations=count)
        program.launch(fade_kernel, (triton.cdiv(count, BLOCK),), arguments, work, "fade")
'''

LISTED = """
import torch
from fassd_kernels import backends, ops
from fassd_kernels.choices import shape_key
from fassd_kernels.operators import OPERATORS

schema = str(ops.fade.default._schema)
assert schema == "fassd_kernels::fade(Tensor input, *, float by=0.5) -> Tensor"
assert "fade" in OPERATORS and all("fade" in backend.operators for backend in backends())
image = torch.ones(1, 3, 4, 5)
assert torch.equal(torch.ops.fassd_kernels_triton.fade(image, by=0.25), image * 0.75)
assert ops.fade(image.to("meta")).stride() == (60, 1, 15, 3)
assert shape_key("fade", [image]) == "fade 1x3x4x5 float32"
for call in (ops.fade, torch.ops.fassd_kernels_triton.fade, torch.ops.fassd_kernels_cuda.fade):
    for refused, said in (((image[0],), "N x C x H x W"), ((image, 2.0), "less than 1")):
        try:
            call(refused[0], **dict(zip(["by"], refused[1:])))
        except RuntimeError as error:
            assert said in str(error), error
        else:
            raise AssertionError(said)
"""

DECLARED = """
#include "csrc/operators.h"
using fassd::Tensor;
static_assert(std::is_same_v<decltype(fassd::cpu::fade), Tensor(const Tensor&, double)>);
static_assert(std::is_same_v<decltype(fassd::cuda::fade), Tensor(const Tensor&, double)>);
#include "csrc/cuda/registration.cpp"
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These sources, not built, and one operator more."""
    copy = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    for folder in ("fassd_kernels", "tests/conformance", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    (copy / "fassd").symlink_to(ROOT / "fassd")
    shutil.copy(ROOT / "pyproject.toml", copy)
    with (copy / "fassd_kernels" / "schemas.def").open("a") as table:
        table.write(SCHEMA)
    (copy / "fassd_kernels" / "reference" / "fade.py").write_text(REFERENCE)
    (copy / "fassd_kernels" / "triton" / "fade.py").write_text(BACKEND)
    return copy


def run(copy: Path, *arguments: str) -> str:
    settings = {"TRITON_INTERPRET": "1", "FASSD_KERNELS_REQUIRE": "", "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_operator_is_registered_checked_and_listed(copy: Path) -> None:
    pytest.importorskip("triton")
    run(copy, "-c", LISTED)


def test_a_new_operator_is_judged_by_the_conformance_suite(copy: Path) -> None:
    pytest.importorskip("triton")
    backends = ("--backend", "triton", "--backend", "reference", "--every", "16")
    kinds = ("contract", "errors", "gradients", "registration", "sizes")
    files = [f"tests/conformance/test_{kind}.py" for kind in kinds]  # of any operator
    said = run(copy, "-m", "pytest", "-v", *files, "-k", "fade", *backends)
    for test in (
        "test_contract.py::test_samples[fade-triton-float16] PASSED",
        "test_contract.py::test_nothing_in_nothing_out[fade-reference-float64] PASSED",
        "test_gradients.py::test_gradients[fade-triton-float32] PASSED",
        "test_registration.py::test_opcheck[cpu-fade-True] PASSED",
        "test_registration.py::test_compile[fade-cpu] PASSED",
        "test_registration.py::test_fake_kernel_predicts_the_result[fade-cpu-stepped] PASSED",
        "test_errors.py::test_refused[fade-reference] PASSED",
        "test_errors.py::test_storage_freed_or_shrunk[fade-triton] PASSED",
        "test_sizes.py::test_any_sizes[fade-reference] PASSED",
    ):
        assert test in said


def test_a_new_operator_is_declared_and_registered_in_cpp(copy: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    headers = Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").exists():
        pytest.skip("no C++ compiler, or no headers of Python")
    (copy / "declared.cpp").write_text(DECLARED)
    included = [f"-isystem{path}" for path in (*include_paths(), headers)]
    macro = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # as in setup.py
    command = [compiler, "-std=c++17", "-fsyntax-only", macro, *included, "declared.cpp"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# --- the table ------------------------------------------------------------------------------------


def test_the_reference_exports_every_operator() -> None:
    assert {name: getattr(reference, name) for name in OPERATORS} == {
        name: row.reference for name, row in OPERATORS.items()
    }


def test_calls_are_bound_by_the_schema() -> None:
    row = OPERATORS["upsample_conv1x1"]
    bound = row.bind(([1], [2], 3), {"activation": "relu", "allow_tf32": True})
    assert bound == {"low": [1], "skip": [2], "weight": 3, "activation": "relu"}
    assert row.keyword_only == {"activation"} and row.images == ("low", "skip")
    assert row.cuda_schema.endswith('str activation="none", bool allow_tf32=False) -> Tensor')
    assert "*, bool allow_tf32" in OPERATORS["hardblock"].cuda_schema
