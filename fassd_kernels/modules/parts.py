"""What the parts of a module must be for a fused operator to compute the same."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fassd import models
from fassd_kernels.modules.snapshot import DEFINED, METHODS, SETTINGS, replaced_forward
from fassd_kernels.reference.conv_act import KERNELS

KINDS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    **{kind: (kind,) for kind in (nn.Conv2d, nn.ReLU, nn.PReLU, nn.ModuleList)},
}
"""Kinds of parts with those that do the same."""


def missing_attribute(module: nn.Module, names: Sequence[str]) -> str:
    """A message about the first of the dotted `names` that is not a submodule; empty if all are."""
    for name in names:
        try:
            module.get_submodule(name)
        except AttributeError:
            return f"it has no submodule {name!r}"
    return ""


def mismatch(module: nn.Module, expected: nn.Module) -> str:
    """The reason why parts of `module` cannot do what those of `expected` do; empty if they can.

    They are found by their names. Numbers of channels, biases and eps may differ, and dilations
    along an axis on which the kernel has one tap.
    """
    missing = missing_attribute(module, [name for name, _ in expected.named_modules()])
    if missing:
        return missing
    for name, right in expected.named_modules():
        part: Any = module.get_submodule(name)
        why = part_mismatch(name, part, type(right)) if type(right) in KINDS else ""
        if not why and isinstance(right, nn.Conv2d):
            why = conv_mismatch(name, part, right)
        if why:
            return why
    return ""


def part_mismatch(name: str, part: nn.Module, kind: type[nn.Module]) -> str:
    """The reason why a part is not of a kind, nor of one that does the same; empty if it is."""
    fits = is_plain(part, *KINDS[kind])
    return "" if fits else f"{name} is {described(part)}; expected {kind.__name__}"


def conv_mismatch(name: str, conv: Any, expected: Any) -> str:
    """The reason why a convolution differs from another one."""
    for setting in SETTINGS[nn.Conv2d]:
        found, right = getattr(conv, setting), getattr(expected, setting)
        if setting == "dilation":
            taps = zip(found, right, expected.kernel_size, strict=True)
            found = tuple(own if k > 1 else other for own, other, k in taps)
        if found != right:
            return f"{name} is {conv}; expected {setting} {right}"
    return ""


@functools.cache
def reference_of(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """A reference module to compare others with, without values."""
    with torch.device("meta"):
        return kind(*arguments)


def dilation_of(module: nn.Module, name: str) -> int:
    """The first dilation of the convolution `name`; 1 if there is none."""
    conv = dict(module.named_modules()).get(name)
    return conv.dilation[0] if isinstance(conv, nn.Conv2d) else 1


def same_padding_mismatch(name: str, conv: Any, kind: type[nn.Module] = nn.Conv2d) -> str:
    """The reason why ``conv_act`` cannot compute `conv`; empty if it can."""
    if not is_plain(conv, nn.Conv2d, kind):
        return f"{name} is {described(conv)}; expected Conv2d"
    padding = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    settings = (conv.groups, conv.padding_mode, conv.padding)
    if conv.kernel_size not in KERNELS or settings != (1, "zeros", padding):
        return f'{name} is {conv}; expected a 3x3, 3x1, 1x3 or 1x1 kernel with "same" padding'
    return ""


def described(module: nn.Module) -> str:
    """Description of a part that is not plain, for an error message."""
    kind = type(module)
    changed = kind.__module__.startswith("torch.nn.modules.") and not is_plain(module, kind)
    return f"a {kind.__name__}" + (", of which a method or tensor was replaced" if changed else "")


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """True if `module` is of one of the kinds and computes what that kind does."""
    return not replaced_forward(module) and any(
        isinstance(module, kind) and inherits(module, kind) for kind in kinds
    )


def inherits(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a module inherits everything that it computes with from `kind`, unmodified."""
    classes = type(module).__mro__
    # The class that a parametrization adds in front provides the weight to compute with.
    first = 1 if nn.utils.parametrize.is_parametrized(module) else 0
    between = classes[first : classes.index(kind)]
    methods = (name for name in METHODS if hasattr(kind, name))
    return all(DEFINED.isdisjoint(vars(each)) for each in between) and all(
        is_as_written(kind, name) for name in methods
    )


def is_as_written(kind: type[nn.Module], method: str = "forward") -> bool:
    """True if a method of a class is the one in its source, and was not replaced."""
    owner = next(each for each in kind.__mro__ if method in vars(each))
    found = vars(owner)[method]
    place = (getattr(found, "__module__", ""), getattr(found, "__qualname__", ""))
    written = place == (owner.__module__, f"{owner.__qualname__}.{method}")
    return (written and not hasattr(found, "__wrapped__")) or found is nn.Module.forward


def is_ours(kind: type[nn.Module]) -> bool:
    """True for a class of this project or of PyTorch, which can be trusted to do its job."""
    return kind.__module__.startswith((f"{models.__name__}.", "torch.nn.modules."))


def structure(module: nn.Module) -> list[Any]:
    """Kinds of the parts of a module that have parts themselves, and the names of these."""
    inner = (part for part in module.modules() if part is not module and part._modules)
    return [(type(part), *part._modules) for part in inner]
