"""Graphs of bytes with their weights as constants, for programs that run without Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental import _config

from fassd_kernels.graphs.backend import FusedGraph, compile_graph, placeholders
from fassd_kernels.graphs.captured import Capturing
from fassd_kernels.graphs.patterns import value
from fassd_kernels.graphs.steps import Packing, Step, repeatable
from fassd_kernels.modules.fused import own


def constant_graph(module: Capturing, image: Tensor) -> GraphModule:
    """The graph that a quantised module computes of an image, as a function of the image alone.

    Args:
        module: calibrated module of one image and one result, whose graph is captured whole.
        image: N x C x H x W image. The graph takes others of any height and width; of any number
            if that is more than 1.

    Raises:
        ValueError: no part of it computes on the fused operators.
    """
    found: list[tuple[Any, Sequence[Any]]] = []

    def keep(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled = compile_graph(graph, inputs, module.quantization)

        def run(*arguments: Any) -> Any:
            found.append((compiled, arguments))
            return compiled(*arguments)

        return run

    image = image.clone()
    torch._dynamo.maybe_mark_dynamic(image, [0, 2, 3])
    # Otherwise, sides that are equal in this image would have to be in others. PyTorch gives the
    # module its `patch` when it is imported, where mypy does not see it.
    different = _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    with torch.no_grad(), repeatable(), different:
        module.compiled_by(keep, fullgraph=True)(module, image)
        graph, arguments = found[0]
        if not isinstance(graph, FusedGraph):
            raise ValueError(f"no part of {type(module).__name__} runs on the fused operators")
        for step in graph.steps:
            complete(step)
    bind(graph.fused, arguments, image)
    return graph.fused


def complete(step: Packing) -> None:
    """Let a step hold the layout that its kernel reads, and the weight for other CPUs' layouts."""
    tensors = step.tensors
    if hasattr(step, "read"):  # bytes always have their weight
        tensors = {**tensors, "weight": step.folded()}
    step.tensors = {name: own(each) for name, each in tensors.items()}
    if isinstance(step, Step):
        step.tensors["packed"] = step.kernels_weight()


def bind(module: GraphModule, arguments: Sequence[Any], image: Tensor) -> None:
    """Let a graph read all inputs but the image from itself, and the image's sizes from it.

    Args:
        module: graph; changed.
        arguments: inputs of a call.
    """
    pairs = list(zip(placeholders(module), arguments, strict=True))
    first = next(node for node, argument in pairs if argument is image)
    for node, argument in pairs:
        if node is first:
            continue
        if node.users:
            with module.graph.inserting_after(first):
                node.replace_all_uses_with(bound(module, node, argument, first))
        module.graph.erase_node(node)
    for node in module.graph.nodes:
        if node.target is torch.sym_sum:
            node.target = sum  # torch.export cannot save the other
    module.graph.lint()
    module.recompile()


def bound(module: GraphModule, node: Node, argument: Any, image: Node) -> Node:
    """A new node for an input that is a tensor, or a side of the image."""
    if isinstance(argument, Tensor):
        name = f"constant_{len(module._buffers)}"
        module.register_buffer(name, argument.detach())
        return module.graph.get_attr(name)
    sides = [getattr(side, "node", None) and side.node.expr for side in value(image).shape]
    side = sides.index(node.meta["example_value"].node.expr)
    return module.graph.call_function(torch.ops.aten.sym_size.int, (image, side))
