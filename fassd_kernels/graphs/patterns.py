"""Operations of the nodes of Dynamo's graphs, as far as the fused operators support them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fassd.models.layers import interpolate_rows
from fassd_kernels.checks import FLOATING, MAX_LABELS
from fassd_kernels.reference.conv_act import KERNELS
from fassd_kernels.reference.grouped_conv import GROUPED_KERNELS

ADDITIONS = {operator.add, torch.add, "add"}
PRODUCTS = {operator.mul, torch.mul, "mul"}
ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    F.silu: "silu",
}
CLAMPS = {torch.clamp, torch.clip, "clamp", "clip"}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
MAX_POOLS = {F.max_pool2d, torch.max_pool2d}
ARGMAXES = {torch.argmax, "argmax"}
Static = tuple[int, int]


def value(node: Any) -> Any:
    """The (fake) tensor that a node returned when the graph was captured; None if none."""
    found = node.meta.get("example_value") if isinstance(node, Node) else None
    return found if isinstance(found, Tensor) else None


def is_image(node: Any) -> bool:
    found = value(node)
    return found is not None and found.dim() == 4 and found.dtype in FLOATING


def is_input(node: Any) -> bool:
    """True if a node is an input of the graph, as all parameters are."""
    return isinstance(node, Node) and node.op == "placeholder"


def reads(node: Node, image: Node) -> bool:
    """True if `image` is a node's first argument."""
    return (node.args[0] if node.args else node.kwargs.get("input")) is image


def arguments(node: Node, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a node by their names."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def only_user(node: Node) -> Node | None:
    """The only node that reads a node's result; None if there are several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


@dataclass
class Convolution:
    """A convolution with "same" padding that `conv_act` or `grouped_conv_act` computes.

    Attributes:
        weight: None for ones, where a batch norm stands alone.
        norm: batch norm that stands alone.
    """

    node: Node
    image: Node
    weight: Node | None
    bias: Node | None
    kernel: Static
    stride: Static
    dilation: Static
    groups: int
    norm: Norm | None = None

    @property
    def grouped(self) -> bool:
        """True for `grouped_conv_act`."""
        return self.groups != 1 or self.kernel not in KERNELS


def convolution(node: Node) -> Convolution | None:
    """The convolution that a node computes; None if it is none, or of another kind."""
    if node.op != "call_function" or node.target is not torch.conv2d:
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = arguments(node, names)
    image, weight, bias = given["input"], given["weight"], given.get("bias")
    stride, dilation = pair(given.get("stride", 1)), pair(given.get("dilation", 1))
    weights = value(weight)
    if not is_image(image) or not is_input(weight) or stride is None or dilation is None:
        return None  # a computed weight, as in weight standardisation
    if not (bias is None or is_input(bias)) or value(image).dtype != weights.dtype:
        return None
    kernel = (int(weights.shape[2]), int(weights.shape[3]))
    around = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    padding = given.get("padding", 0)
    same = padding == "same" or pair(padding) == around
    found = Convolution(node, image, weight, bias, kernel, stride, dilation, given.get("groups", 1))
    return found if same and (kernel in GROUPED_KERNELS or not found.grouped) else None


def pair(found: Any) -> Static | None:
    """Two integers, given as one or as two; None for anything else."""
    if isinstance(found, int):
        return found, found
    several = isinstance(found, (tuple, list)) and 1 <= len(found) <= 2
    if several and all(isinstance(each, int) for each in found):
        return found[0], found[-1]
    return None


@dataclass
class Norm:
    """A batch norm with running statistics.

    Attributes:
        tensors: mean, variance, weight and bias; the last two may be missing.
    """

    tensors: tuple[Node | None, ...]
    eps: float


def norm(node: Node, image: Node) -> Norm | None:
    """The batch norm that a node applies to `image`."""
    if node.target is not F.batch_norm or not reads(node, image):
        return None
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = arguments(node, ("input", *names))
    tensors = tuple(given.get(name) for name in names[:4])
    known = all(each is None or is_input(each) for each in tensors)
    eps = given.get("eps", 1e-5)  # a node, once it was changed
    counts = tensors[0] is not None and tensors[1] is not None and isinstance(eps, float)
    return Norm(tensors, eps) if counts and known and not given.get("training", False) else None


def lone_norm(node: Node) -> Convolution | None:
    """The batch norm that a node applies to an image on a CPU, as a depthwise 1x1 convolution.

    That takes one pass together with an activation, in memory that is used again.
    """
    image: Any = arguments(node, ("input",)).get("input")
    found = norm(node, image) if is_image(image) and value(image).is_cpu else None
    if found is None or value(found.tensors[0]).dtype != value(image).dtype:
        return None
    one, channels = (1, 1), int(value(image).shape[1])
    return Convolution(node, image, None, None, one, one, one, channels, found)


def addend(node: Node, image: Node) -> Node | None:
    """The tensor that a node adds to `image`, of the same shape and type."""
    if node.target not in ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    other: Any = second if first is image else first
    a, b = value(image), value(other)
    if other is image or not is_image(other) or a.dtype != b.dtype or a.device != b.device:
        return None
    return other if same_sizes(a.shape, b.shape) else None


def gated(node: Node) -> tuple[Node, Node] | None:
    """The image that a node multiplies by one value per channel, and these values."""
    if node.target not in PRODUCTS or node.kwargs or len(node.args) != 2:
        return None
    factors: tuple[Any, ...] = node.args
    for image, gate in (factors, factors[::-1]):
        if is_image(image) and is_image(gate) and value(image).dtype == value(gate).dtype:
            n, channels, *_ = value(image).shape
            if image is not gate and same_sizes(value(gate).shape, (n, channels, 1, 1)):
                return image, gate
    return None


def same_sizes(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """True if sizes are equal, whatever the value of free ones."""
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(known_true(a == b) for a, b in pairs)


def known_true(condition: Any) -> bool:
    """True if a condition holds whatever the value of free sizes."""
    if isinstance(condition, bool):
        return condition
    # Half a second, which a graph without free sizes does not need.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def activation(node: Node, image: Node) -> tuple[str, Node | float | None] | None:
    """The activation that a node applies to `image`, and PReLU's slopes, or its single slope."""
    if not reads(node, image):
        return None
    if node.target in ACTIVATIONS:
        return ACTIVATIONS[node.target], None
    if node.target in (torch.prelu, F.prelu) and len(node.args) == 2:
        slope: Any = node.args[1]
        return ("prelu", slope) if is_input(slope) else None
    if node.target is F.leaky_relu:
        slope = arguments(node, ("input", "negative_slope")).get("negative_slope", 0.01)
        return ("prelu", float(slope)) if isinstance(slope, (int, float)) else None
    if node.target is F.gelu:
        kind = node.kwargs.get("approximate", "none")
        return {"none": "gelu", "tanh": "gelu_tanh"}[str(kind)], None
    if node.target is F.hardtanh:
        given = arguments(node, ("input", "min_val", "max_val"))
        return six(given.get("min_val", -1.0), given.get("max_val", 1.0))
    if node.target in CLAMPS:
        given = arguments(node, ("input", "min", "max"))
        return six(given.get("min"), given.get("max"))
    return None


def six(least: Any, most: Any) -> tuple[str, None] | None:
    """ReLU6, if these are the bounds of its values."""
    numbers = isinstance(least, (int, float)) and isinstance(most, (int, float))
    return ("relu6", None) if numbers and (least, most) == (0, 6) else None


def halved(node: Node, image: Node) -> bool:
    """True if a node returns the means of 2 x 2 pixels of `image`."""
    if node.target is not F.avg_pool2d or not reads(node, image):
        return False
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count", "divisor_override")
    given = arguments(node, names)
    stride = given.get("stride") or given["kernel_size"]
    plain = pair(given.get("padding", 0)) == (0, 0) and not given.get("ceil_mode", False)
    twos = pair(given["kernel_size"]) == pair(stride) == (2, 2)
    return plain and twos and given.get("divisor_override") is None


def largest(node: Node) -> tuple[Node, Static, Static, Static] | None:
    """The image whose windows' maxima a node returns; kernel, stride and padding."""
    if node.op != "call_function" or node.target not in MAX_POOLS:
        return None
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = arguments(node, (*names, "return_indices"))
    image, kernel = given["input"], pair(given["kernel_size"])
    stride = pair(given.get("stride") or given["kernel_size"])
    padding = pair(given.get("padding", 0))
    plain = pair(given.get("dilation", 1)) == (1, 1)
    plain &= not given.get("ceil_mode", False) and not given.get("return_indices", False)
    if not plain or not is_image(image) or kernel is None or stride is None or padding is None:
        return None
    return image, kernel, stride, padding


def concatenated(node: Node) -> list[Node]:
    """The images that a node concatenates along their channels; the node itself otherwise.

    Those of a concatenation among them take its place.
    """
    if node.op != "call_function" or node.target not in CONCATENATIONS:
        return [node]
    given = arguments(node, ("tensors", "dim"))
    images = given["tensors"]
    if given.get("dim", 0) not in (1, -3) or not isinstance(images, (list, tuple)):
        return [node]
    dtypes = {value(each).dtype if is_image(each) else None for each in (node, *images)}
    return (
        [each for image in images for each in concatenated(image)] if len(dtypes) == 1 else [node]
    )


class Resized(NamedTuple):
    """A resizing as in `upsample`: the image, and the height and width of the result.

    `rows` is the position of both, if they are strips of images.
    """

    image: Node
    size: Any
    align_corners: bool
    rows: Any = None


def resized(node: Node) -> Resized | None:
    """The bilinear resizing that a node computes; None if it computes none."""
    if node.op == "call_function" and node.target is interpolate_rows:
        strip: Any = node.args
        image, size, rows = strip
        return Resized(image, size, True, rows)
    if node.op != "call_function" or node.target is not F.interpolate:
        return None
    names = ("input", "size", "scale_factor", "mode", "align_corners")
    given = arguments(node, (*names, "recompute_scale_factor", "antialias"))
    image, size, corners = given["input"], given.get("size"), bool(given.get("align_corners"))
    if given.get("mode") != "bilinear" or given.get("antialias"):
        return None
    if value(node) is None:  # in a recorded graph
        return None if size is None else Resized(image, size, corners)
    if not is_image(image):
        return None
    sizes = value(node).shape[2:]
    known = all(isinstance(each, int) for each in (*sizes, *value(image).shape[2:]))
    if size is None and not corners and not given.get("recompute_scale_factor"):
        # PyTorch uses the factors for positions, and the sizes may have been rounded.
        factors = given.get("scale_factor")
        both = factors if isinstance(factors, (tuple, list)) else (factors, factors)
        if not known or any(
            not isinstance(factor, (int, float)) or before * factor != after
            for factor, before, after in zip(both, value(image).shape[2:], sizes, strict=True)
        ):
            return None
    if known:
        return Resized(image, list(sizes), corners)
    return None if size is None else Resized(image, size, corners)


def best_class(node: Node, image: Node) -> bool:
    """True if a node returns the class of every pixel, and 8 bits can hold it."""
    if node.target not in ARGMAXES or not reads(node, image):
        return False
    given = arguments(node, ("input", "dim", "keepdim"))
    classes = value(image).shape[1]
    small = isinstance(classes, int) and classes <= MAX_LABELS
    return given.get("dim") in (1, -3) and not given.get("keepdim", False) and small
