"""Removing in-place writes from graphs, so that their steps can be moved and merged."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

IN_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
OTHERS_IN_PLACE = {
    operator.iand,
    operator.ifloordiv,
    operator.ilshift,
    operator.imatmul,
    operator.imod,
    operator.ior,
    operator.ipow,
    operator.irshift,
    operator.ixor,
    operator.setitem,
}
METHODS_IN_PLACE = ("add_", "mul_", "sub_", "relu_", "sigmoid_", "clamp_")
FUNCTIONS_IN_PLACE: dict[str, Callable[..., Any]] = {
    "relu_": torch.relu,
    "sigmoid_": torch.sigmoid,
    "clamp_": torch.clamp,
    "hardtanh_": F.hardtanh,
    "leaky_relu_": F.leaky_relu,
}
"""Functions of `torch` and `torch.nn.functional` that write in place, by name."""

# Functions and methods that return new memory, never a view of an argument.
FRESH = {
    torch.conv2d,
    torch.conv_transpose2d,
    torch.clone,
    "clone",
    torch.relu,
    torch.prelu,
    torch.sigmoid,
    torch.clamp,
    torch.cat,
    torch.concat,
    torch.add,
    torch.mul,
    torch.sub,
    operator.add,
    operator.mul,
    operator.sub,
    operator.truediv,
    F.batch_norm,
    F.layer_norm,
    F.relu,
    F.relu6,
    F.hardtanh,
    F.hardswish,
    F.hardsigmoid,
    F.sigmoid,
    F.silu,
    F.gelu,
    F.elu,
    F.leaky_relu,
    F.interpolate,
    F.max_pool2d,
    F.avg_pool2d,
}


def make_functional(graph: Graph) -> str:
    """Replace functions that write in place by functions that return a new tensor.

    Args:
        graph: graph of Dynamo; changed only if all of it can be made functional.

    Returns:
        Empty text; or the reason why it cannot: a node writes into an input of the graph or into
        memory that may be shared with another tensor, or is not known.
    """
    drop_dropouts(graph)
    order = {node: place for place, node in enumerate(graph.nodes)}
    found = [(node, replacement(node)) for node in graph.nodes]
    writing = [(node, new) for node, new in found if new is not None]
    for node, (target, _) in writing:
        if target is None or not node.args:
            return f"{shown(node)} writes in place"
        into = node.args[0]
        earlier = [user for user in into.users if order[user] < order[node]]
        if not all(each.target in FRESH or each in dict(writing) for each in (into, *earlier)):
            return f"{shown(node)} writes into what {shown(into)} gave, which may be seen elsewhere"
    for node, (target, keywords) in writing:
        into = node.args[0]
        node.op, node.target = "call_function", target
        node.kwargs = {name: value for name, value in node.kwargs.items() if name not in keywords}
        node.kwargs = {**node.kwargs, **keywords}
        for user in list(into.users):
            if order[user] > order[node]:
                user.replace_input_with(into, node)
    return ""


def drop_dropouts(graph: Graph) -> None:
    """Remove dropouts in eval mode, which return their input."""
    for node in graph.nodes:
        if node.op == "call_function" and "dropout" in shown(node) and has(node.target, "training"):
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            if bound.arguments.get("training") is False:
                node.replace_all_uses_with(bound.arguments["input"])
                graph.erase_node(node)


def replacement(node: Node) -> tuple[Any, dict[str, Any]] | None:
    """The function that computes the result of an in-place `node`, and its keywords, or None.

    Target None: the node writes, and no replacement is known.
    """
    if node.op == "call_method":
        name = str(node.target)
        if not name.endswith("_") or name.endswith("__"):
            return None
        return (getattr(torch, name[:-1]) if name in METHODS_IN_PLACE else None), {}
    if node.op != "call_function":
        return None
    if writes_by_schema(node.target) or node.target in OTHERS_IN_PLACE:
        return None, {}
    if node.target in IN_PLACE:
        return IN_PLACE[node.target], {}
    if "out" in node.kwargs or node.target is torch._C._set_grad_enabled:
        return None, {}
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return FUNCTIONS_IN_PLACE.get(name), {}
    if "autocast" in name:  # starts or ends autocast: nodes in between must not be moved
        return None, {}
    if not has(node.target, "inplace"):
        return None
    function: Any = node.target
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    if not bound.arguments.get("inplace", False):
        return None
    if "inplace" in node.kwargs:
        return node.target, {"inplace": False}
    place = list(bound.signature.parameters).index("inplace")
    node.args = (*node.args[:place], False, *node.args[place + 1 :])
    return node.target, {}


def writes_by_schema(target: Any) -> bool:
    """True if the schema of an operator of `torch.ops` says that it writes into an argument."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return any(writes_by_schema(getattr(target, name)) for name in target.overloads())
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def has(target: Any, parameter: str) -> bool:
    """True if a function is known to take a parameter."""
    try:
        return parameter in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False


def shown(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
