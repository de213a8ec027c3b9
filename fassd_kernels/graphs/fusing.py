"""Replacing nodes of a graph by steps that compute them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fassd_kernels.checks import KINKED
from fassd_kernels.graphs import patterns
from fassd_kernels.graphs.patterns import Convolution, only_user, value
from fassd_kernels.graphs.steps import (
    GroupedStep,
    Labels,
    MaxPool,
    Packing,
    PairStep,
    Step,
    Upsample,
    UpsampleStep,
)

MEANS = {F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"}
"""Functions and methods that read an image and return new memory."""


def fuse(module: GraphModule, joins: bool = True) -> list[Packing]:
    """Put steps into the graph of `module`, which is functional.

    Args:
        joins: False leaves each resizing and each convolution a step of its own, and a batch norm
            behind no convolution as it is.

    Returns:
        The steps that have weights.
    """
    graph = module.graph
    steps: list[Packing] = []
    if not joins:
        resize_parts(graph)
    for node in list(graph.nodes):
        found = patterns.convolution(node)
        if found is not None:
            steps.append(fuse_convolution(module, found, joins))
    for node in list(graph.nodes):
        found = patterns.lone_norm(node) if joins else None
        if found is not None:
            steps.append(fuse_convolution(module, found))
    for node in list(graph.nodes):
        fuse_resizing(module, node)
        fuse_pooling(module, node)
        if joins:
            fuse_pair(module, node)
    multiply_in_place(module)
    graph.lint()
    module.recompile()
    return steps


def fuse_convolution(module: GraphModule, conv: Convolution, joins: bool = True) -> Packing:
    """Fuse a convolution with as many of the following nodes as one operator computes."""
    last = conv.node

    def read(reader: Callable[[Node, Node], Any]) -> Any:
        """Match the only reader of the last node with `reader`; it then becomes the last node."""
        nonlocal last
        following = only_user(last)
        found = None if following is None else reader(following, last)
        if found and following is not None:
            last = following
        return found

    norm = conv.norm or read(patterns.norm)
    residual = read(patterns.addend)
    activation, slope = read(patterns.activation) or ("none", None)
    if conv.grouped:
        options = (conv.weight, conv.bias, norm, slope, conv.stride, conv.dilation, activation)
        grouped = GroupedStep(*options)
        grouped.groups = conv.groups
        replace(module, last, grouped, ([conv.image], residual))
        return grouped
    pool = 2 if read(patterns.halved) else 1
    images = patterns.concatenated(conv.image)
    options = (conv.weight, conv.bias, norm, slope, conv.stride, conv.dilation, activation)
    low = upsampled(conv, images) if joins and residual is None and pool == 1 else []
    if low:
        sources = [source(image) for image in low]
        skips = [image for image in images if image not in low]
        place, places = 0, []
        for image in images:
            channels = int(value(image).shape[1])
            if image in low:
                places.append((place, channels))
            place += channels
        upsampling = UpsampleStep(*options, low=places)
        replace(module, last, upsampling, (sources, skips))
        return upsampling
    step = Step(*options, pool)
    step.kernel = conv.kernel
    d = conv.dilation[0]
    step.splits = conv.kernel == (3, 3) and conv.dilation == (d, d) and d > 1
    step.splits &= conv.stride == (1, 1) and pool == 1
    replace(module, last, step, (images, residual))
    return step


def upsampled(conv: Convolution, images: list[Node]) -> list[Node]:
    """Images that need not be resized before a 1x1 convolution; empty if there are none."""
    if conv.kernel != (1, 1) or conv.stride != (1, 1) or not 1 < len(images) == len(set(images)):
        return []
    found = [image for image in images if aligned(image) and only_user(image)]
    if not found or len(found) == len(images):
        return []
    first, *others = (value(source(image)).shape[2:] for image in found)
    return found if all(patterns.same_sizes(first, each) for each in others) else []


def aligned(image: Node) -> bool:
    """True if an image was resized as in `upsample_conv1x1`."""
    found = patterns.resized(image)
    return found is not None and found.align_corners


def source(resized: Node) -> Node:
    """The image that is resized."""
    found = patterns.resized(resized)
    assert found is not None
    return found.image


def fuse_resizing(module: GraphModule, node: Node) -> None:
    """Replace a resize, together with an argmax if that is its only reader."""
    found = patterns.resized(node)
    if found is None:
        return
    following, arguments = only_user(node), found[:3]
    if following is not None and patterns.best_class(following, node):
        replace(module, following, Labels(), arguments)
    else:
        replace(module, node, Upsample("upsample"), arguments)


def resize_parts(graph: Graph) -> None:
    """Concatenate resized images in place of resizing concatenated ones."""
    for node in list(graph.nodes):
        found = patterns.resized(node)
        images = patterns.concatenated(found.image) if found else []
        if found is None or len(images) < 2:
            continue
        whole, first, parts = found.image, 0, []
        with graph.inserting_before(node):
            for image in images:
                part = graph.node_copy(node)
                part.replace_input_with(whole, image)
                last = first + int(value(image).shape[1])
                part.meta = {**node.meta, "example_value": value(node)[:, first:last]}
                parts.append(part)
                first = last
            put(graph, node, graph.call_function(torch.cat, (parts, 1)))


def multiply_in_place(module: GraphModule) -> None:
    """Multiply images by a gate of one value per channel in their own memory.

    Squeeze-and-excitation does so: only the mean that the gate depends on reads the image before,
    and nothing does afterwards. It takes a third to a half of the time of a product in new memory.
    """
    graph: Graph = module.graph
    order = {node: place for place, node in enumerate(graph.nodes)}

    def is_step(node: Node) -> bool:  # which returns new memory
        return node.op == "call_module" and isinstance(
            module.get_submodule(str(node.target)), (Packing, PairStep, MaxPool, Upsample)
        )

    for node in list(graph.nodes):
        image, gate = patterns.gated(node) or (None, None)
        if image is None or not is_step(image):
            continue
        others = [user for user in image.users if user is not node]
        fresh = all(is_step(each) or each.target in MEANS for each in others)
        if fresh and all(order[each] < order[node] for each in others):
            with graph.inserting_before(node):
                put(graph, node, graph.call_method("mul_", (image, gate)))


def fuse_pooling(module: GraphModule, node: Node) -> None:
    found = patterns.largest(node)
    if found is not None:
        image, *windows = found
        replace(module, node, MaxPool(*windows), (image,))


def fuse_pair(module: GraphModule, node: Node) -> None:
    """Replace a 3x1 convolution and its only reader, a 1x3 of the same dilation and activation."""
    following = only_user(node)
    vertical, horizontal = step_of(module, node), step_of(module, following)
    if vertical is None or horizontal is None or following is None:
        return
    first, second = vertical.options, horizontal.options
    (d, one), (other, e) = first["dilation"], second["dilation"]
    plain = all(each["stride"] == [1, 1] and each["pool"] == 1 for each in (first, second))
    alike = first["activation"] == second["activation"] and (d, one) == (e, other)
    alike &= first["activation"] in KINKED
    kernels = (vertical.kernel, horizontal.kernel) == ((3, 1), (1, 3))
    calls: Any = node.args, following.args
    (images, residual), (read, added) = calls
    lone = len(images) == 1 and read == [node] and residual is None and added is None
    if plain and alike and kernels and lone:
        replace(module, following, PairStep(vertical, horizontal), (images,))


def step_of(module: GraphModule, node: Node | None) -> Step | None:
    """The step of the convolution that a node calls; None if it calls something else."""
    if node is None or node.op != "call_module":
        return None
    found = module.get_submodule(str(node.target))
    return found if type(found) is Step else None


def fuse_layers(graph: Graph, layers: Collection[str]) -> None:
    """Fuse the calls of `FusedConvLayer` with what is before or behind them, in a recorded graph.

    Args:
        graph: graph that calls modules by their names; changed.
        layers: names of the layers.
    """
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in layers:
            continue
        following, images = only_user(node), patterns.concatenated(node.args[0])
        low = patterns.resized(images[0]) if only_user(images[0]) else None
        if following is not None and patterns.halved(following, node):
            call_layer(graph, following, node, "pooled", node.args)
        elif len(images) == 2 and low is not None and low.align_corners:
            arguments = (low.image, images[1], low.rows)
            call_layer(graph, node, node, "after_upsample", arguments)


def call_layer(
    graph: Graph, node: Node, layer: Node, method: str, arguments: tuple[Any, ...]
) -> None:
    """Call a method of a layer, which `layer` calls as a module, in place of `node`."""
    with graph.inserting_before(node):
        itself = graph.get_attr(str(layer.target))
        put(graph, node, graph.call_method(method, (itself, *arguments)))


def replace(module: GraphModule, node: Node, step: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Call `step` in place of `node`."""
    graph: Graph = module.graph
    name = f"step_{sum(1 for _ in module.children())}"
    module.add_module(name, step)
    with graph.inserting_before(node):
        put(graph, node, graph.call_module(name, arguments))


def put(graph: Graph, node: Node, new: Node) -> None:
    """Let `new` take the place of `node`, and remove what is not read any more."""
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    unread = [node]
    for each in unread:  # grows: nodes that are not read any more are removed at once
        read = each.all_input_nodes
        graph.erase_node(each)
        unread += [other for other in read if not other.users and other.op != "placeholder"]
