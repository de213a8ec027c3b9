"""Modules of any project, whose graphs run on the fused operators in eval mode."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from fassd_kernels.graphs.ranges import Quantization
from fassd_kernels.modules.fused import Fused, is_traced, runs_as_written
from fassd_kernels.modules.snapshot import Snapshot, hooked_globally, replaced_forward


class Capturing(nn.Module):
    """Mixin for modules of which one method runs as the graphs that Dynamo captures of it.

    Attributes:
        quantization: grids of the maps with which convolutions compute in bytes; None where all
            computes in the module's own type.
    """

    quantization: Quantization | None = None
    _parts_seen: Snapshot | None = None
    _compiled: Callable[..., Any] | None = None

    def as_written(self, *inputs: Any, **keywords: Any) -> Any:
        """The method to capture."""
        raise NotImplementedError(f"{type(self).__name__} must define as_written")

    def compiled(self) -> Callable[..., Any] | None:
        """The compiled `as_written`; None if a part carries hooks."""
        now = self._parts_seen
        if now is None or not now.holds(self):  # Dynamo does not guard hooks
            self._parts_seen = now = Snapshot(self)
        if now.hooked:
            return None
        if self._compiled is None:
            # Imported late: Dynamo takes a second, and fails if no temporary folder can be written.
            from fassd_kernels.graphs.backend import compile_graph

            backend = functools.partial(compile_graph, quantization=self.quantization)
            self._compiled = self.compiled_by(backend)
        return self._compiled

    def compiled_by(self, backend: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        """`as_written` compiled by a backend, with other settings of `torch.compile`."""
        # Its own code object: Dynamo counts the graphs of each, up to eight.
        written = type(self).as_written
        frame = FunctionType(written.__code__.replace(), written.__globals__, "as_written")
        return torch.compile(frame, backend=backend, **settings)

    def quantize(self, quantization: Quantization | None) -> None:
        """Compute with other grids from now on."""
        self.quantization, self._compiled = quantization, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_parts_seen": None}


class Captured(Capturing):
    """Mixin that `accelerate` puts in front of a module's own class.

    In eval mode ``forward`` runs the graphs that Dynamo captures of it on the fused operators
    (:func:`fassd_kernels.graphs.compile_graph`); another shape, setting or attribute gets another
    graph. Parameters, state dict, hooks and mode are the module's own. The module's own ``forward``
    runs in training mode; where the kernels are disabled; where a part carries hooks, which a fused
    operator would pass by; inside another compiler, tracer, exporter or ``torch.func`` transform.
    """

    original: type[nn.Module]
    _told = False  # True once the warning about an incomplete capture was issued

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the module: same arguments and result as its own ``forward``."""
        plain = runs_as_written(self, *inputs, *keywords.values()) or is_traced()
        compiled = None if plain or hooked_globally() else self.compiled()
        if compiled is None:
            return self.as_written(*inputs, **keywords)
        if self._told:
            return compiled(self, *inputs, **keywords)
        breaks = torch._dynamo.utils.counters["graph_break"]
        before = breaks.copy()
        result = compiled(self, *inputs, **keywords)
        self._told = True
        new = breaks - before
        if new:
            reason = next(iter(new)).splitlines()[0]
            warnings.warn(
                f"accelerate: {self.original.__name__} is captured in parts, and runs as it stands "
                f"between them ({new.total()} times); the first time because of: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return result

    def as_written(self, *inputs: Any, **keywords: Any) -> Any:
        return self.original.forward(self, *inputs, **keywords)

    def __reduce__(self) -> Any:
        return restore, (self.original,), self.__getstate__()


@functools.cache
def captured_class(original: Any) -> Any:
    """The class of a captured module of class `original`."""
    name = f"Captured{original.__name__}"
    return type(name, (Captured, original), {"original": original, "__doc__": original.__doc__})


def restore(original: Any) -> Any:
    """An empty captured module, whose state is set afterwards."""
    kind = captured_class(original)
    return kind.__new__(kind)


def capture(module: nn.Module) -> bool:
    """Let a module's graphs run on the fused operators: the module's own, or those of its parts.

    Returns:
        True if there was anything to capture.
    """
    if isinstance(module, (torch.jit.ScriptModule, Fused, Captured)):
        return isinstance(module, Captured)
    parts = list(module.modules())
    several = sum(isinstance(part, nn.Conv2d) for part in parts) > 1
    fused = any(isinstance(part, Fused) for part in parts)
    called = type(module).forward is not nn.Module.forward  # not for lists of modules
    whole = called and not fused and not replaced_forward(module)
    if several and whole:
        kind: Any = type(module)
        module.__class__ = captured_class(kind)
        return True
    return any([capture(child) for child in module.children()])
