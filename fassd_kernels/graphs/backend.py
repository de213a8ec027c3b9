"""The backend that Dynamo calls, and the callable that it returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from fassd_kernels.backends import AUTO, choose, meant
from fassd_kernels.graphs.fusing import fuse
from fassd_kernels.graphs.mutation import make_functional
from fassd_kernels.graphs.quantizing import MeasuredGraph, quantize
from fassd_kernels.graphs.ranges import Quantization
from fassd_kernels.graphs.steps import Packing, fastest, repeating
from fassd_kernels.modules.fused import packing
from fassd_kernels.modules.snapshot import Contents
from fassd_kernels.modules.tape import Tape, is_observed, repeated
from fassd_kernels.ops import release_memory

log = logging.getLogger(__name__)


def compile_graph(
    module: GraphModule, inputs: Sequence[Any], quantization: Quantization | None = None
) -> Callable[..., Any]:
    """Compile a captured graph to the fused operators: Dynamo's backend `fassd_kernels`.

    >>> fast = torch.compile(model.eval(), backend="fassd_kernels")
    >>> with torch.no_grad():
    ...     y = fast(x)

    Args:
        module: graph, with its parameters among its inputs.
        inputs: inputs of a call, whose device determines the available kernels.
        quantization: grids of the maps with which convolutions compute in bytes, or which are to
            be measured.

    Returns:
        A callable that computes the same: a `FusedGraph`, or the unchanged graph if nothing can be
        fused. The unchanged graph also runs if gradients are needed.
    """
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    why = reason_against(tensors)
    plain = GraphModule(module, module.graph)
    fused = GraphModule(module, type(module.graph)())
    copies: dict[Node, Node] = {}
    fused.graph.output(fused.graph.graph_copy(module.graph, copies))
    for old, new in copies.items():
        new.meta = dict(old.meta)
    why = why or make_functional(fused.graph)
    steps = [] if why else fuse(fused, joins=quantization is None)
    if why:
        log.warning("a graph runs as it stands: %s", why)
    if not steps:
        return plain.forward
    run = None
    if quantization is not None and quantization.histograms is not None:
        run = MeasuredGraph(fused, quantization.histograms).run
    elif quantization is not None:
        steps = quantize(fused, steps, quantization.grids)
    return FusedGraph(plain, fused, steps, run)


def reason_against(tensors: Sequence[Tensor]) -> str:
    """The reason why a graph with such inputs cannot be fused; empty if it can."""
    devices = {tensor.device.type for tensor in tensors}
    if len(devices) != 1:
        return f"its inputs are on {' and '.join(sorted(devices)) or 'no device'}"
    (device,) = devices
    if torch.is_autocast_enabled(device):
        return "autocast is on"
    if meant(AUTO) == "reference":
        return "the environment asks for plain PyTorch"
    if choose(AUTO, device, "conv_act", quiet=True) == "reference":
        return f"there are no kernels for {device}"
    return ""


class FusedGraph:
    """A graph with steps, and the weights that these have packed.

    Every call compares the values of all weights (on a GPU, their numbers of edits), and packs them
    again if one has changed.
    """

    def __init__(
        self,
        plain: GraphModule,
        fused: GraphModule,
        steps: Sequence[Packing],
        run: Callable[..., Any] | None = None,
    ) -> None:
        self.plain, self.fused, self.steps = plain, fused, steps
        self.run = run or fused
        places = {node: i for i, node in enumerate(placeholders(fused))}
        self.places = places
        read: dict[int, None] = {}
        for step in steps:
            for node in nodes_of(step):
                read[places[node]] = None
        self.read = list(read)
        self.others = [place for place in places.values() if place not in read]
        self.known: tuple[list[Tensor], Contents, dict[Any, Tape | None]] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(each, Tensor) and each.requires_grad for each in inputs
        ):
            return self.plain(*inputs)
        weights = [inputs[place] for place in self.read]
        known = self.known
        fresh = known is not None and all(map(is_, known[0], weights)) and known[1].last()
        if not fresh:
            contents = Contents(weights)  # before they are packed: see `Fused.packed`
            with packing(weights) as lasting:
                held = dict(zip(self.read, weights, strict=True))
                for step in self.steps:
                    step.pack(lambda node: None if node is None else held[self.places[node]])
            self.known = (weights, contents, {}) if lasting else None
        measured = len(fastest)
        # Every operator would come to its kernel through autograd, which is written in Python.
        below = torch._C._AutoDispatchBelowAutograd
        with nullcontext() if torch.is_grad_enabled() else below():
            if fresh and known is not None and self.is_repeatable(inputs):
                result = repeated(known[2], self.key(inputs), self.run, *inputs)
            else:
                result = self.run(*inputs)
        if not fresh or len(fastest) > measured:
            self.known = self.known and (*self.known[:2], {})  # the ways that were tried were taped
            release_memory()  # of folding, and of the ways that were tried
        return result

    def is_repeatable(self, inputs: Sequence[Any]) -> bool:
        """True if the operators that a call makes depend on nothing but its `key`."""
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        plain = all(each.is_cpu and type(each) in (Tensor, Parameter) for each in tensors)
        return plain and self.run is self.fused and not (torch.is_grad_enabled() or is_observed())

    def key(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """What the operators of a call depend on beside the weights that are packed."""
        seen = [
            (each.shape, each.stride(), each.dtype) if isinstance(each, Tensor) else each
            for each in map(inputs.__getitem__, self.others)
        ]
        onednn = torch.backends.mkldnn.enabled
        return (*seen, meant(AUTO), torch.get_num_threads(), onednn, repeating.get())


def placeholders(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def nodes_of(step: Packing) -> list[Node]:
    """The placeholders from which a step reads its weights."""
    weight, bias, norm, slope = step.placeholders
    found = (weight, bias, slope, *(norm.tensors if norm else ()))
    return [node for node in found if isinstance(node, Node)]
