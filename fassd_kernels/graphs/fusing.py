"""Steps in place of the nodes that they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from fassd_kernels.graphs import patterns
from fassd_kernels.graphs.patterns import Convolution, only_user, value
from fassd_kernels.graphs.steps import Labels, Step, Upsample, UpsampleStep


def fuse(module: GraphModule) -> list[Step]:
    """Put steps into the graph of `module`, which is functional.

    Returns:
        The steps that have weights.
    """
    graph = module.graph
    steps: list[Step] = []
    for node in list(graph.nodes):
        found = patterns.convolution(node)
        if found is not None:
            steps.append(fuse_convolution(module, found))
    for node in list(graph.nodes):
        fuse_resizing(module, node)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return steps


def fuse_convolution(module: GraphModule, conv: Convolution) -> Step:
    """A convolution, and what follows it as far as one operator has it."""
    last = conv.node

    def read(reader: Callable[[Node, Node], Any]) -> Any:
        """What alone reads the last node, if `reader` knows it; that is the last one then."""
        nonlocal last
        following = only_user(last)
        found = None if following is None else reader(following, last)
        if found and following is not None:
            last = following
        return found

    norm, residual = read(patterns.norm), read(patterns.addend)
    activation, slope = read(patterns.activation) or ("none", None)
    pool = 2 if read(patterns.halved) else 1
    images = patterns.concatenated(conv.image)
    options = (conv.weight, conv.bias, norm, slope, conv.stride, conv.dilation, activation)
    low = upsampled(conv, images) if residual is None and pool == 1 else []
    if low:
        sources = [image.args[0] for image in low]
        skips = [image for image in images if image not in low]
        place, places = 0, []
        for image in images:
            channels = int(value(image).shape[1])
            if image in low:
                places.append((place, channels))
            place += channels
        step: Step = UpsampleStep(*options, low=places)
        replace(module, last, step, (sources, skips))
    else:
        step = Step(*options, pool)
        replace(module, last, step, (images, residual))
    return step


def upsampled(conv: Convolution, images: list[Node]) -> list[Node]:
    """Those of the images that need not be resized before a 1x1 convolution; empty if none."""
    if conv.kernel != (1, 1) or conv.stride != (1, 1) or not 1 < len(images) == len(set(images)):
        return []
    found = [image for image in images if patterns.resized(image) and only_user(image)]
    if not found or len(found) == len(images):
        return []
    first, *others = (value(image.args[0]).shape[2:] for image in found)
    return found if all(patterns.same_sizes(first, each) for each in others) else []


def fuse_resizing(module: GraphModule, node: Node) -> None:
    """A resize, with the argmax that alone reads it."""
    found = patterns.resized(node)
    if found is None:
        return
    following = only_user(node)
    if following is not None and patterns.best_class(following, node):
        replace(module, following, Labels(), found)
    else:
        replace(module, node, Upsample("upsample"), found)


def replace(module: GraphModule, node: Node, step: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Call `step` where `node` stands."""
    graph: Graph = module.graph
    name = f"step_{sum(1 for _ in module.children())}"
    module.add_module(name, step)
    with graph.inserting_before(node):
        new = graph.call_module(name, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
