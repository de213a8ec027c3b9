"""Convolutions of bytes in place of those of a graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.fx import GraphModule, Interpreter, Node

from fassd_kernels.graphs.fusing import replace
from fassd_kernels.graphs.patterns import (
    ADDITIONS,
    Norm,
    activation,
    addend,
    is_image,
    norm,
    only_user,
    value,
)
from fassd_kernels.graphs.quantized_steps import (
    Quantize,
    QuantizedStep,
    QuantizedSum,
    QuantizedUpsample,
    StepToBytes,
)
from fassd_kernels.graphs.ranges import Grid, Histogram
from fassd_kernels.graphs.steps import Packing, Step, Upsample

MOST_PRODUCTS = 65_793
"""Products of bytes, the sum of which 32 bits hold."""

LIMITS = {"stride": 8, "dilation": 512}
"""Largest step and distance across an image that the kernels of bytes take."""


class MeasuredGraph(Interpreter):
    """Runs a graph and measures the maps that its convolutions read or write."""

    def __init__(self, module: GraphModule, histograms: dict[str, Histogram]) -> None:
        super().__init__(module)
        names = maps(module)
        self.histograms = histograms
        self.names = {n: name for n, name in names.items() if not resizes(module, n)}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if n in self.names:
            self.histograms.setdefault(self.names[n], Histogram()).add(found)
        return found


def step_at(module: GraphModule, node: Any) -> Any:
    """The module that a node calls; None if it calls none."""
    calls = isinstance(node, Node) and node.op == "call_module"
    return module.get_submodule(str(node.target)) if calls else None


def maps(module: GraphModule) -> dict[Node, str]:
    """The maps that convolutions read or write, and their names.

    A name consists of that of a convolution's weight, which is the same in all graphs of a network:
    that of the convolution that writes the map, or else that of the first one that reads it. A
    resized map has the name of the map before, in whose range it stays.
    """
    found: dict[Node, str] = {}
    for node in module.graph.nodes:
        step: Any = step_at(module, node)
        if type(step) is Step:
            weight = str(step.placeholders[0].target)
            for number, image in enumerate(node.args[0]):
                found.setdefault(image, f"{weight} reads {number}")
            found[node] = weight
        elif resizes(module, node) and node.args[0] in found:
            found[node] = found[node.args[0]]
    return found


def resizes(module: GraphModule, node: Node) -> bool:
    """True if a node resizes a map."""
    step = step_at(module, node)
    return type(step) is Upsample and step.operator == "upsample"


def related(nodes: Iterable[Node], of: set[Node], attribute: str) -> set[Node]:
    """Those of the nodes, in this order, that are in `of` or next to one that is found."""
    found: set[Node] = set()
    for node in nodes:
        if any(each in found or each in of for each in getattr(node, attribute)):
            found.add(node)
    return found


class Sum(NamedTuple):
    """One or two maps that are added, and the batch norm and activation that read nothing else.

    Attributes:
        images: the maps.
        parts: nodes that compute it, but for the last one.
    """

    images: list[Node]
    parts: list[Node]
    norm: Norm
    activation: str
    slope: Any


def normalized(node: Node) -> tuple[Node, Sum] | None:
    """The last node of the sum whose batch norm `node` is, and the sum; None if it is none."""
    image: Any = node.args[0] if node.args else None
    found = norm(node, image) if node.op == "call_function" and is_image(image) else None
    if found is None:
        return None
    following = only_user(node)
    after = None if following is None else activation(following, node)
    images, parts = [image], [node] if after else []
    if image.target in ADDITIONS and only_user(image) and addend(image, image.args[0]):
        images, parts = list(image.args), [image, *parts]
    last = following if after and following is not None else node
    return last, Sum(images, parts, found, *(after or ("none", None)))


class Lowering:
    """Puts convolutions of bytes in place of a graph's.

    Attributes:
        measured: maps that were measured, and their grids.
        steps: convolutions of bytes, with the steps that they replace.
        writers: other convolutions, which may write bytes, with their steps.
        sums: last nodes of sums whose results are bytes.
        bytes: maps that are bytes.
    """

    def __init__(self, module: GraphModule, grids: Mapping[str, Grid]) -> None:
        names = maps(module)
        self.module = module
        self.measured = {n: grids[name] for n, name in names.items() if name in grids}
        nodes = list(module.graph.nodes)
        every = {n for n in nodes if isinstance(step_at(module, n), Step)}
        inner = related(nodes, every, "all_input_nodes") & related(nodes[::-1], every, "users")
        self.steps = {n: step_at(module, n) for n in nodes if n in inner and self.takes(n)}
        found = filter(None, map(normalized, nodes))
        self.sums = {n: each for n, each in found if n in self.measured}
        self.ends = {part: n for n, each in self.sums.items() for part in each.parts}
        self.writers = {n: step_at(module, n) for n in nodes if self.writes(n)}
        others = {n for n in nodes if n in self.sums or resizes(module, n)}
        self.bytes = self.steps.keys() | self.writers.keys() | others
        while any([self.drop(node) for node in [*self.bytes]]):
            pass

    def takes(self, node: Node) -> bool:
        """True if a node is a convolution for which there are kernels and ranges."""
        images: Any = node.args and node.args[0]
        step = step_at(self.module, node)
        if type(step) is not Step or not all(image in self.measured for image in images):
            return False
        products = math.prod(value(step.placeholders[0]).shape[1:])
        across = [step.options[name][1] for name in LIMITS]
        return products <= MOST_PRODUCTS and all(map(operator.le, across, LIMITS.values()))

    def writes(self, node: Node) -> bool:
        """True if a node is a convolution of values that can write bytes."""
        if type(step_at(self.module, node)) is not Step or node in self.steps:
            return False
        pool = step_at(self.module, node).options["pool"]
        return node in self.measured and node.args[1] is None and pool == 1

    def drop(self, node: Node) -> bool:
        """Keep a map in the model's type, if it is not yet, where not all nodes take bytes."""
        readers = {self.ends.get(user, user) for user in node.users}
        readers -= self.steps.keys()
        fits = readers <= self.bytes - self.writers.keys()
        fits &= not resizes(self.module, node) or node.args[0] in self.bytes
        if not fits:
            self.bytes.remove(node)
        return not fits

    def grid(self, node: Node) -> Grid | None:
        """The grid of a map of bytes; None for another."""
        return self.measured[node] if node in self.bytes else None

    def lower(self) -> list[Packing]:
        """Change the graph, and return the new steps with weights."""
        found: list[Packing] = []
        for node in self.bytes:
            if resizes(self.module, node):
                self.module.set_submodule(str(node.target), QuantizedUpsample())
        for node, step in self.steps.items():
            images, residual = node.args
            sources = [(self.measured[x], int(value(x).shape[1])) for x in images]
            new = QuantizedStep(
                *step.placeholders,
                *step.options.values(),
                sources=sources,
                residual=self.grid(residual),
                result=self.grid(node),
            )
            self.module.set_submodule(str(node.target), new)
            found.append(new)
        for node in self.writers.keys() & self.bytes:
            step, result = self.writers[node], self.measured[node]
            writer = StepToBytes(*step.placeholders, *step.options.values(), result=result)
            self.module.set_submodule(str(node.target), writer)
            found.append(writer)
        for image in [n for n in self.module.graph.nodes if n not in self.bytes]:
            readers = [user for user in image.users if user in self.steps and image in user.args[0]]
            if readers:
                self.read_bytes(image, readers)
        for node, each in self.sums.items():
            if node in self.bytes:
                grids = [*map(self.grid, each.images), self.measured[node]]
                total = QuantizedSum(each.norm, each.slope, each.activation, grids)
                replace(self.module, node, total, (each.images,))
                found.append(total)
        self.module.graph.lint()
        self.module.recompile()
        return found

    def read_bytes(self, image: Node, readers: Sequence[Node]) -> None:
        """Let convolutions read the bytes of a map of the model's type."""
        graph = self.module.graph
        name = f"quantize_{len(self.module._modules)}"
        self.module.add_module(name, Quantize(self.measured[image]))
        with graph.inserting_after(image):
            new = graph.call_module(name, (image,))
        for node in readers:
            images: Any = node.args[0]
            residual = node.args[1]
            node.args = ([new if each is image else each for each in images], residual)


def quantize(
    module: GraphModule, steps: Sequence[Packing], grids: Mapping[str, Grid]
) -> list[Packing]:
    """Put convolutions of bytes in place of a graph's, as far as it has them.

    Args:
        module: graph with steps, none of them joined; changed.
        steps: its steps with weights.
        grids: grids of the maps, by the names of `maps`.

    Returns:
        Its new steps with weights.
    """
    lowering = Lowering(module, grids)
    new = lowering.lower()
    kept = {*module.modules()}
    return [step for step in steps if step in kept] + new
