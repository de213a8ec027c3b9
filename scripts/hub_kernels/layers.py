"""Layers without state, whose `forward` `kernels.kernelize` puts in the place of a module's own.

Each takes the module that it stands in for as the fused module of the same name does
(`fassd_kernels.modules`): by its attributes, whatever its class.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .modules import (
    Fused,
    FusedASPP,
    FusedAsymmetricConv2d,
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
)

# The fused module that computes for a module, and shares all that it has.
_FUSED: WeakKeyDictionary[nn.Module, Fused] = WeakKeyDictionary()


def _fused(kind: type[Fused], module: nn.Module) -> Fused:
    found = _FUSED.get(module)
    if found is None:
        found = kind.take_over(module)
        found.__dict__.pop("forward", None)  # put there by `kernelize`, it calls this
        _FUSED[module] = found
    found.__dict__["training"] = module.training
    return found


class ASPP(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor) -> Tensor:
        return _fused(FusedASPP, self)(x)


class AsymmetricConv2d(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _fused(FusedAsymmetricConv2d, self)(x, residual)


class ConvLayer(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor) -> Tensor:
        return _fused(FusedConvLayer, self)(x)


class DAPF(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor) -> Tensor:
        return _fused(FusedDAPF, self)(x)


class HarDBlock(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor) -> Tensor:
        return _fused(FusedHarDBlock, self)(x)


class MDA(nn.Module):
    has_backward = True
    can_torch_compile = False

    def forward(self, x: Tensor) -> Tensor:
        return _fused(FusedMDA, self)(x)
