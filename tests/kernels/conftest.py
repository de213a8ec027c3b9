"""Reference modules with statistics and slopes worth testing, and what they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fassd
import fassd_kernels
from fassd.models import DAPF, MDA, AsymmetricConv2d, FASSDNet, HarDBlock, Stage
from fassd.models.aspp import ASPP
from fassd.models.layers import ConvLayer
from fassd_kernels import ops
from fassd_kernels.accelerate import FUSED
from fassd_kernels.modules import Fused

BACKENDS = [b.name for b in fassd_kernels.backends() if b.available and b.takes("cpu")]
FLOAT32 = 2e-6  # of `relative_error`, of one module


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics and PReLU slopes: the defaults would hide wrong folding."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.2, generator=generator)
            child.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(child.weight, 0.8, 1.2, generator=generator)
            nn.init.normal_(child.bias, 0, 0.2, generator=generator)
        elif isinstance(child, nn.PReLU):
            nn.init.uniform_(child.weight, 0.05, 0.4, generator=generator)
    return module


def relative_error(result: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((result.double() - expected).norm() / expected.norm())


def first(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return next(part for part in module.modules() if isinstance(part, kind))


def fuse(module: nn.Module, backend: str = "auto") -> Fused:
    fused_class = next(fused for plain, fused in FUSED.items() if isinstance(module, plain))
    return fused_class.from_reference(module, backend)


def expected_of(module: nn.Module, x: Tensor) -> Tensor:
    """What the plain class computes with the present parts of `module`, in float64."""
    exact = copy.deepcopy(module).double()
    for norm in exact.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean = norm.running_mean.double()  # which need not be a buffer
    plain_class = next(plain for plain in FUSED if isinstance(module, plain))
    with torch.no_grad():
        return plain_class.forward(exact, x.double())


def network(name: str = "fassd_net", classes: int = 7, seed: int = 0) -> nn.Module:
    """One of the family in eval mode, with random weights and statistics."""
    torch.manual_seed(seed)
    return shake(fassd.create_model(name, num_classes=classes), seed).eval()


def short() -> nn.Module:
    """Every kind of part in few layers, for what takes a compiler long."""
    torch.manual_seed(0)
    stages = (Stage(16, 6, 2), Stage(24, 8, 4))
    return shake(FASSDNet(4, 3, stages=stages)).eval()


def exact(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def random_picture(height: int = 97, width: int = 130, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# One of every module that can be fused, and how to make it.
MODULES = {
    "dapf": lambda: DAPF(24),
    "dapf_alpha3": lambda: DAPF(31, alpha=3),
    "mda": lambda: MDA(32, 8),
    "mda_odd": lambda: MDA(63, 2),
    "aspp": lambda: ASPP(18, width=12, dilations=(2, 7)),
    "hardblock": lambda: HarDBlock(24, 10, 1.7, 4),
    "conv_1x1": lambda: ConvLayer(31, 12, 1),
    "conv_3x3": lambda: ConvLayer(12, 18),
    "conv_strided": lambda: ConvLayer(8, 11, stride=2),
    "asymmetric": lambda: AsymmetricConv2d(12, 9, 2),
    "asymmetric_prelu": lambda: AsymmetricConv2d(7, 7, activation="prelu"),
}


# One of each class. What computes numbers meets the others, too: `every_module`.
KINDS = ("dapf", "mda_odd", "aspp", "hardblock", "conv_3x3", "asymmetric_prelu")
every_module = pytest.mark.parametrize("reference", MODULES, indirect=True)


@pytest.fixture(params=KINDS)
def reference(request: pytest.FixtureRequest) -> nn.Module:
    """A module in eval mode, with random weights and statistics."""
    torch.manual_seed(0)
    return shake(MODULES[request.param]()).eval()


@pytest.fixture
def picture(reference: nn.Module) -> Tensor:
    """An input of odd size on which every dilation reaches some pixels."""
    channels = next(p for p in reference.parameters() if p.dim() == 4).shape[1]
    return torch.randn(2, channels, 41, 50, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def operator_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused operators called: tells a fallback from the real thing."""
    calls: list[str] = []
    real = ops.operator

    def spy(name: str, backend: str) -> Callable[..., Tensor]:
        calls.append(name)
        return real(name, backend)

    monkeypatch.setattr(ops, "operator", spy)
    return calls
