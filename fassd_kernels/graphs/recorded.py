"""Methods of a network's own code as functions in which its modules are fused with each other.

The code is recorded by calling it with stand-ins for modules and tensors. This takes milliseconds
where Dynamo takes seconds, but guards nothing: it is for code that depends on nothing but the
modules, which `outline` describes, and on what the caller names.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Proxy
from torch.fx.proxy import GraphAppendingTracer

from fassd_kernels.backends import constant_result
from fassd_kernels.graphs.fusing import fuse_layers
from fassd_kernels.modules.conv import FusedConvLayer
from fassd_kernels.modules.fused import is_traced
from fassd_kernels.modules.parts import is_plain
from fassd_kernels.modules.snapshot import SETTINGS, has_hooks, hooked_globally

Pairs = tuple[tuple[str, Any], ...]
"""Names and values."""


def outline(network: nn.Module) -> Pairs:
    """Everything of a network's modules that recorded code depends on: `outlined`, with names."""
    return tuple([(name, outlined(part)) for name, part in network._modules.items()])


def outlined(part: nn.Module | None) -> tuple[Any, bool, tuple[Any, ...], Pairs]:
    """The class of a part, whether nothing observes its calls, settings, and parts of a list."""
    fusible = part is not None and not has_hooks(part)
    fusible = fusible and (is_traced() or not hooked_globally())
    pools = fusible and part is not None and is_plain(part, nn.AvgPool2d)
    found = [getattr(part, name) for name in SETTINGS[nn.AvgPool2d]] if pools else []
    settings = tuple([tuple(each) if isinstance(each, list) else each for each in found])
    holds = type(part) is nn.ModuleList or type(part) is nn.Sequential
    return type(part), fusible, settings, outline(part) if holds and part is not None else ()


class Recordings:
    """All functions recorded so far, as attributes: a compiler finds them by their names."""


NUMBERS = itertools.count()  # threads may record at the same time


@constant_result
def recorded(kind: Any, method: str, parts: Pairs, others: Pairs, fixed: Pairs) -> str:
    """Name in `Recordings` of a method as a function of the network and of its other arguments.

    Args:
        kind: class whose method is recorded.
        method: name of the method.
        parts: the network's modules by `outline`.
        others: other attributes of the network that the code reads.
        fixed: arguments of the method that do not change.
    """
    return record(kind, method, parts, others, fixed)


@functools.cache
def record(kind: Any, method: str, parts: Pairs, others: Pairs, fixed: Pairs) -> str:
    graph = Graph()
    tracer = GraphAppendingTracer(graph)
    network = kind.__new__(kind)
    stand_ins = [StandIn(tracer, name, *found) for name, found in parts]
    network.__dict__.update(others, **{each.path: each for each in stand_ins})
    call = functools.partial(getattr(kind, method), network, **dict(fixed))
    inputs = [name for name in inspect.signature(call).parameters if name not in dict(fixed)]
    result = call(**{name: Proxy(graph.placeholder(name), tracer) for name in inputs})
    graph.output(tracer.create_arg(result))
    every = [each for top in stand_ins for each in top.walk()]
    fuse_layers(graph, [each.path for each in every if each.is_layer])
    module = GraphModule({each.path: nn.Module() for each in every}, graph)
    name = f"{method}_{next(NUMBERS)}"
    setattr(Recordings, name, staticmethod(type(module).forward))
    return name


class StandIn:
    """Records the calls of a module; to `isinstance` an instance of the module's class."""

    def __init__(
        self, tracer: Any, path: str, kind: Any, fusible: bool, settings: Any, parts: Pairs
    ) -> None:
        self.tracer, self.path, self.kind, self.settings = tracer, path, kind, settings
        self.is_layer = fusible and issubclass(kind, FusedConvLayer)
        self.parts = [StandIn(tracer, f"{path}.{name}", *found) for name, found in parts]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self.kind

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> StandIn:
        return self.parts[index]

    def __call__(self, x: Any) -> Any:
        if self.settings:
            return F.avg_pool2d(x, *self.settings)
        return self.tracer.create_proxy("call_module", self.path, (x,), {})

    def walk(self) -> Iterator[StandIn]:
        """The stand-in, and those of the parts inside."""
        yield self
        for part in self.parts:
            yield from part.walk()
