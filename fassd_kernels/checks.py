"""Argument checks of the operators, for the reference and the fake kernels.

``csrc/checks.h`` has the same rules for the compiled backends: a call that one backend refuses is
refused by all, with a message that names the operator, the argument, what came and what is
accepted. ``torch._check`` raises :class:`RuntimeError`, like PyTorch's own operators, and supports
the symbolic sizes of ``torch.compile(dynamic=True)``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

KINKED = ("none", "relu", "prelu")
ACTIVATIONS = (
    *KINKED, "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "gelu_tanh",
)  # fmt: skip
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LABELS = 256  # labels are uint8
MAX_STEP = 2**31 - 1  # largest stride or dilation; positions of taps stay within 64 bits


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a function that may be left out, with their values."""
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


def checked(
    check: Callable[..., tuple[int, ...]], differentiable: bool = True
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator of a reference operator: `check` sees its arguments, and tells the result's shape.

    A result of no elements is connected to all tensors, whose gradients are therefore zero:
    PyTorch's convolution, PReLU and interpolation refuse some empty shapes; the operators do not.

    Args:
        check: function of all arguments, by name.
        differentiable: True if the result has gradients.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names, defaults = list(inspect.signature(function).parameters), defaults_of(function)

        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Tensor:
            given = {**dict(zip(names, arguments, strict=False)), **keywords}
            size = check(**{**defaults, **given})
            if not differentiable or not any(side == 0 for side in size):
                return function(*arguments, **keywords)
            each = (x for v in given.values() for x in (v if isinstance(v, list | tuple) else [v]))
            found = [x for x in each if isinstance(x, Tensor) and x.is_floating_point()]
            zeros = [x.flatten()[:0].sum() for x in found if x.dtype == found[0].dtype]
            result = torch.stack(zeros).sum().expand(size)
            return result.contiguous(memory_format=torch.channels_last)

        return wrapper

    return decorate


def check(condition: Any, message: str) -> None:
    """Raise RuntimeError(`message`) unless `condition` (a bool or SymBool) holds."""
    torch._check(condition, lambda: message)


def has_storage(tensor: Tensor) -> bool:
    """True if a tensor's storage contains all elements that its sizes and strides reach.

    It does not after ``tensor.untyped_storage().resize_(0)``, which frees the memory, as FSDP does.
    Tensors without memory of their own (fake ones, those of ``torch.func``, on the meta device) are
    not checked.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not torch._C._has_storage(tensor):
        return True
    if tensor.device.type not in ("cpu", "cuda"):
        return True
    return holds(tensor, span(tensor))


def span(tensor: Tensor) -> int:
    """Number of elements of the storage from a tensor's first element to its last."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.numel()
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def holds(tensor: Tensor, elements: int) -> bool:
    """True if a tensor's storage has that many elements, counted from the tensor's first one."""
    end = (tensor.storage_offset() + elements) * tensor.element_size()
    return elements == 0 or end <= tensor.untyped_storage().nbytes()


def check_storage(op: str, name: str, tensor: Tensor) -> None:
    """Check that a tensor's storage is complete (:func:`has_storage`)."""
    if not has_storage(tensor):
        held = tensor.untyped_storage().nbytes()
        raise RuntimeError(
            f"{op}: {name} has shape {shape(tensor)}, but its storage holds {held} bytes, "
            "and ends before its last element"
        )


def shape(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape)


def check_images(op: str, named: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Check that the tensors are N x C x H x W of one dtype, device, batch and size."""
    first_name, first = named[0]
    for name, image in named:
        check(
            image.dim() == 4,
            f"{op}: {name} has shape {shape(image)}; expected four dimensions, N x C x H x W",
        )
        check(
            image.dtype in FLOATING,
            f"{op}: {name} has dtype {image.dtype}; expected float32, float16, bfloat16 or float64",
        )
        check_storage(op, name, image)
        check_like(op, name, image, first_name, first)
        check(
            image.shape[0] == first.shape[0]
            and image.shape[2] == first.shape[2]
            and image.shape[3] == first.shape[3],
            f"{op}: {name} has shape {shape(image)}, but {first_name} has {shape(first)}; "
            "batch, height and width must agree",
        )
    return first


def check_list(op: str, name: str, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Check that a virtual concatenation is not empty; give its tensors names for messages."""
    check(len(tensors) > 0, f"{op}: {name} is an empty list; expected at least one tensor")
    return [(f"{name}[{i}]", tensor) for i, tensor in enumerate(tensors)]


def check_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Check that `tensor` has the dtype and device of `other`."""
    check(
        tensor.dtype == other.dtype,
        f"{op}: {name} has dtype {tensor.dtype}, but {other_name} has {other.dtype}; "
        "all tensors must have one dtype",
    )
    check(
        tensor.device == other.device,
        f"{op}: {name} is on {tensor.device}, but {other_name} is on {other.device}; "
        "all tensors must be on one device",
    )


def check_weight(
    op: str,
    name: str,
    weight: Tensor,
    in_channels: Any,
    like: Tensor,
    kernels: Sequence[tuple[int, int]],
) -> None:
    """Check an O x I x kH x kW convolution weight."""
    check(
        weight.dim() == 4,
        f"{op}: {name} has shape {shape(weight)}; expected four dimensions, O x I x kH x kW",
    )
    check_like(op, name, weight, "the input", like)
    check_storage(op, name, weight)
    accepted = ", ".join(f"{h}x{w}" for h, w in kernels)
    check(
        (weight.shape[2], weight.shape[3]) in kernels,
        f"{op}: {name} has a {weight.shape[2]}x{weight.shape[3]} kernel; expected {accepted}",
    )
    check(
        weight.shape[1] == in_channels,
        f"{op}: {name} takes {weight.shape[1]} input channels, but {in_channels} come in",
    )
    check(weight.shape[0] > 0, f"{op}: {name} has no output channels")
    check(in_channels > 0, f"{op}: {name} has no input channels")


def check_branches(
    op: str,
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None,
    dilations: Sequence[int],
    kernels: Sequence[tuple[int, int]],
    branches: int,
) -> tuple[int, int, int, int]:
    """Check a module whose first weight gives the width of all its branches, which a 1x1 joins.

    Args:
        kernels: kernel of each weight except the last; a 1x3 follows a 3x1, all others read the
            input.
        branches: number of them.

    Returns:
        The shape of the result.
    """
    check_images(op, [("input", input)])
    check_positive(op, "dilations", dilations)
    count = len(kernels) + 1
    for name, tensors in (("weights", weights), ("biases", biases)):
        check(
            len(tensors) == count,
            f"{op}: {name} has {len(tensors)} tensors; "
            f"expected {count} for {len(dilations)} dilations",
        )
    check_packed(op, packed, count, input)
    check(
        weights[0].dim() == 4,
        f"{op}: weights[0] has shape {shape(weights[0])}; "
        "expected four dimensions, O x I x kH x kW",
    )
    width = weights[0].shape[0]
    for i, kernel in enumerate([*kernels, (1, 1)]):
        last = i == count - 1
        in_channels = width if kernel == (1, 3) else input.shape[1]
        check_weight(
            op,
            f"weights[{i}]",
            weights[i],
            width * branches if last else in_channels,
            input,
            [kernel],
        )
        check(
            last or weights[i].shape[0] == width,
            f"{op}: weights[{i}] has {weights[i].shape[0]} output channels; expected {width}, "
            "as weights[0]",
        )
        check_vector(op, f"biases[{i}]", biases[i], weights[i].shape[0], input)
    return input.shape[0], weights[-1].shape[0], input.shape[2], input.shape[3]


def check_vector(op: str, name: str, vector: Tensor | None, channels: Any, like: Tensor) -> None:
    """Check a per-channel vector (bias, slope, scale); None passes."""
    if vector is None:
        return
    check(
        vector.dim() == 1 and vector.shape[0] == channels,
        f"{op}: {name} has shape {shape(vector)}; expected ({channels},), one per output channel",
    )
    check_like(op, name, vector, "the input", like)
    check_storage(op, name, vector)


def check_packed(op: str, packed: Sequence[Tensor] | None, expected: int, like: Tensor) -> None:
    """Check that packed weights are given for all weights or for none, on the device of `like`."""
    if packed is None:
        return
    check(
        len(packed) == expected,
        f"{op}: packed has {len(packed)} tensors; expected none or {expected}, one per weight",
    )
    for i, tensor in enumerate(packed):
        check_place(op, f"packed[{i}]", tensor, like)


def check_place(op: str, name: str, tensor: Tensor | None, like: Tensor) -> None:
    """Check that a tensor is on the device of `like`; None passes."""
    if tensor is None:
        return
    check(
        tensor.device == like.device,
        f"{op}: {name} is on {tensor.device}, but the weight is on {like.device}; "
        "all tensors must be on one device",
    )
    check_storage(op, name, tensor)


def check_positive(op: str, name: str, values: Sequence[int]) -> None:
    check(
        all(1 <= value <= MAX_STEP for value in values),
        f"{op}: {name} is {list(values)}; expected at least 1, at most {MAX_STEP}",
    )


def check_activation(
    op: str,
    activation: str,
    slope: Tensor | None,
    channels: Any,
    like: Tensor,
    name: str = "slope",
    accepted: Sequence[str] = ACTIVATIONS,
) -> None:
    """Check an activation's name, and that PReLU, and only PReLU, has a slope per channel."""
    check(
        activation in accepted,
        f"{op}: activation is '{activation}'; expected one of {', '.join(accepted)}",
    )
    check(
        (slope is not None) == (activation == "prelu"),
        f"{op}: activation is '{activation}' and {name} is "
        f"{'missing' if slope is None else 'given'}; 'prelu' needs {name}, the others take none",
    )
    check_vector(op, name, slope, channels, like)


def check_size(op: str, size: Sequence[Any]) -> None:
    check(
        len(size) == 2 and size[0] >= 1 and size[1] >= 1,
        f"{op}: size is {tuple(size)}; expected (height, width), each at least 1",
    )
