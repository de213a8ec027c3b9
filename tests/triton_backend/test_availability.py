"""Bad input: no Triton, an old one, no GPU, an old GPU, a type that is not taken."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings

import pytest
import torch
from conformance import cases
from triton_backend.conftest import compiled, interpreted

from fassd.models import MDA
from fassd_kernels import BackendError, accelerate, backends, ops
from fassd_kernels.backends import choose
from fassd_kernels.backends import refusal as backend_refusal
from fassd_kernels.triton import availability

CALL = cases.conv_act(1, (8,), 8, (4, 5))


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@compiled
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("sys.modules['triton'] = None", "Triton is not installed"),
        ("triton.__version__ = '3.5.1'", "Triton is 3.5.1; at least 3.6 is needed"),
    ],
)
def test_no_triton_or_an_old_one(change, reason):
    code = f"""
import sys, triton
{change}
import torch, fassd_kernels
from fassd_kernels import ops
backend = fassd_kernels.backends()["triton"]
print(backend.available, backend.reason)
try:
    ops.operator("upsample", "triton")(torch.zeros(1, 1, 2, 2), (3, 3))
except RuntimeError as error:
    print(error)
"""
    first, second = python(code).splitlines()
    assert first.startswith(f"False {reason}")
    assert second.startswith(f"upsample: {reason}")


@compiled
def test_no_gpu():
    code = """
import torch, fassd_kernels
torch.cuda.is_available = lambda: False
print(fassd_kernels.backends()["triton"].reason)
try:
    fassd_kernels.ops.operator("upsample", "triton")(torch.zeros(1, 1, 2, 2), (3, 3))
except RuntimeError as error:
    print(error)
"""
    first, second = python(code).splitlines()
    assert first == "no GPU is seen"
    assert second == "upsample: the triton backend takes tensors on a GPU, not on cpu"


def forget() -> None:
    for asked in (
        availability.reason, availability.gpu_refusal, availability.bfloat16_refusal,
    ):  # fmt: skip
        asked.cache_clear()


@pytest.fixture
def turing(monkeypatch):
    """As if this process saw an NVIDIA GPU of a given capability."""

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(availability, "INTERPRETED", False)
        monkeypatch.setattr(availability, "DTYPES", availability.TYPES)
        for name, answer in {
            "is_available": True,
            "current_device": 0,
            "device_count": 1,
            "get_device_name": "NVIDIA Pretended",
            "get_device_capability": capability,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        forget()

    yield pretend
    forget()


def test_an_old_gpu(turing):
    turing((7, 0))
    assert availability.reason() == "NVIDIA Pretended is sm_70; at least sm_75 is needed"


def test_a_gpu_without_bfloat16(turing):
    turing((7, 5))
    place = torch.device("cuda", 0)
    assert availability.reason() == ""
    assert availability.refusal(place, torch.float16) == ""
    why = availability.refusal(place, torch.bfloat16)
    assert why == "bfloat16 needs sm_80; NVIDIA Pretended is older"
    assert availability.refuses(torch.device("cuda"), torch.bfloat16) == why


def test_auto_falls_back_where_the_gpu_refuses(turing, monkeypatch):
    row = backends()["triton"]
    turing((7, 5))
    gpu_row = dataclasses.replace(row, device="cuda", dtypes=availability.TYPES)
    assert backend_refusal(gpu_row, torch.device("cuda", 0), "mda", torch.float16) == ""
    why = backend_refusal(gpu_row, torch.device("cuda", 0), "mda", torch.bfloat16)
    assert why.startswith("bfloat16 needs sm_80")


def test_a_machine_without_a_c_compiler(turing, monkeypatch):
    turing((9, 0))
    monkeypatch.setattr(availability.shutil, "which", lambda name: None)
    assert "Triton needs a C compiler" in availability.reason()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_that_are_not_taken(dtype):
    call = CALL.to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(RuntimeError, match=f"conv_act: the triton backend takes .*, not {name}"):
        call(ops.operator("conv_act", "triton"))
    # What is wrong in itself is said first.
    with pytest.raises(RuntimeError, match="conv_act: weight takes 8 input channels, but 7 come"):
        call.with_(inputs=[call.arguments["inputs"][0][:, :7]])(ops.operator("conv_act", "triton"))
    with pytest.raises(BackendError, match=f"'triton' cannot run conv_act on cpu: .* not {dtype}"):
        choose("triton", "cpu", "conv_act", dtype=dtype)


def test_auto_passes_over_a_type_that_is_not_taken():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert choose("auto", "cuda", "conv_act", dtype=torch.float64) == "reference"


def test_the_interpreter_is_never_chosen():
    best = "cpu" if backends()["cpu"].available else "reference"
    assert choose("auto", "cpu", "conv_act", quiet=True) == best


@compiled
def test_asked_for_and_impossible():
    if not backends()["triton"].available:
        with pytest.raises(BackendError, match=r"'triton': \w+"):
            accelerate(MDA(8, 2), backend="triton")
    with pytest.raises(BackendError, match="'triton' cannot run mda on cpu: it takes cuda tensors"):
        choose("triton", "cpu", "mda")
