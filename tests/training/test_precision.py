import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fassd.models import MDA, create_model
from fassd.training.precision import avoid_unsound_gradients, resolve_precision

CPU = torch.device("cpu")
POISONED = """
import torch
from fassd.models import MDA
from fassd.training.precision import avoid_unsound_gradients
torch.manual_seed(0)
model = MDA(118, 4).to(memory_format=torch.channels_last).train()
avoid_unsound_gradients(model, torch.device("cpu"), "bfloat16")
x = torch.randn(2, 118, 48, 64).contiguous(memory_format=torch.channels_last)
with torch.autocast("cpu", torch.bfloat16):
    y = model(x)
y.float().square().mean().backward()
gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
assert (gradients.abs() < 1e3).all(), gradients.abs().max()
"""


def test_a_named_precision_stays():
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_precision(name, CPU) == name


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == expected


def test_gradients_read_no_memory_that_nobody_wrote():
    """Fresh memory is filled with huge numbers (where the C library is glibc)."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "MALLOC_PERTURB_": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", POISONED], env=environment, check=True)


def test_only_odd_dilated_convolutions_leave_channels_last():
    model = create_model("fassd_net").to(memory_format=torch.channels_last)
    avoid_unsound_gradients(model, CPU, "bfloat16")
    watched = {
        name for name, module in model.named_modules() if getattr(module, "_forward_pre_hooks", {})
    }
    odd = {f"mda.{i}.parallel_ddconv{k}.conv" for i in (1, 2) for k in ("3x1", "1x3")}
    # The coarsest MDA is 96 wide inside and DAPF 112, whole blocks of 16.
    assert watched == odd
    assert all(model.get_submodule(name).weight.is_contiguous() for name in odd)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_elsewhere_nothing_changes(precision):
    model = MDA(118, 4).to(memory_format=torch.channels_last)
    avoid_unsound_gradients(model, CPU, precision)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_detour_gives_the_same_numbers():
    torch.manual_seed(0)
    model = nn.Conv2d(31, 31, (3, 1), padding=(2, 0), dilation=(2, 1))
    x = torch.randn(1, 31, 12, 14).contiguous(memory_format=torch.channels_last)
    expected = model(x)
    avoid_unsound_gradients(model, CPU, "bfloat16")
    torch.testing.assert_close(model(x), expected)
