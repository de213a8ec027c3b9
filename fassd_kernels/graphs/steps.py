"""Replacements of fused nodes: one operator each, with weights that are packed once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd_kernels import ops
from fassd_kernels.backends import AUTO, choose
from fassd_kernels.choices import shape_key
from fassd_kernels.modules.fused import kept
from fassd_kernels.packing import fold
from fassd_kernels.reference.conv_act import activate, channels_last, same_padding

Read = Callable[[Any], "Tensor | None"]
"""Function that returns the tensor of a placeholder in a call; None for None."""

Call = Callable[[], Tensor]

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "relu6": partial(F.relu6, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True),
    "hardsigmoid": partial(F.hardsigmoid, inplace=True),
    "silu": partial(F.silu, inplace=True),
}
"""Activations that PyTorch can apply in place."""

ONEDNN: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "sigmoid": ("sigmoid", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "hardswish": ("hardswish", [], ""),
    "hardsigmoid": ("hardsigmoid", [], ""),
    "silu": ("swish", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
}
"""Activations that oneDNN can fuse with a convolution, by PyTorch's names for Inductor."""

LAYOUTS = ("packed", "plain", "phases")
"""Layout of the weight that each way of computing a convolution reads."""

TRIES = 3
SMALLEST_PHASE = 8
"""Minimum side in pixels at which computing a dilated convolution by phases is tried."""

MARGIN = 1.02
"""Factor by which the fused operator may be slower before another way is taken."""

fastest: dict[tuple[Any, ...], int] = {}
"""The fastest way of calls that were measured in this process."""

repeating = ContextVar("repeating", default=False)


@contextmanager
def repeatable() -> Iterator[None]:
    """On a CPU, let what is captured run on the fused operators even where another way is faster.

    Which way is the fastest is measured for each size, and each way rounds otherwise. Those of the
    fused operators round a pixel alike in an image of any size, at the same rows but for a multiple
    of four.
    """
    token = repeating.set(True)
    try:
        yield
    finally:
        repeating.reset(token)


class Packing(nn.Module):
    """The weights of a fused convolution, as a graph's module without parameters."""

    operator: ClassVar[str]

    def __init__(
        self,
        weight: Any,
        bias: Any,
        norm: Any,
        slope: Any,
        stride: Sequence[int],
        dilation: Sequence[int],
        activation: str,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.placeholders = (weight, bias, norm, slope)
        self.options: dict[str, Any] = {"stride": list(stride), "dilation": list(dilation)}
        self.options |= {"activation": activation, "pool": pool}
        self.tensors: dict[str, Any] = {}

    def fold(self, read: Read) -> dict[str, Any]:
        """Weight, bias and slopes, with the batch norm folded in."""
        weight, bias, norm = *map(read, self.placeholders[:2]), self.batch_norm(read)
        if weight is None:
            weight = torch.ones_like(norm.running_var)[:, None, None, None]
        weights, biases = fold(SimpleNamespace(weight=weight, bias=bias), norm, weight.dtype)
        return {"weight": weights, "bias": biases, "slope": self.slopes(read, weights)}

    def batch_norm(self, read: Read) -> Any:
        """The batch norm of a call, as `fold` takes it; None if there is none."""
        norm = self.placeholders[2]
        if norm is None:
            return None
        names = ("running_mean", "running_var", "weight", "bias")
        found = dict(zip(names, map(read, norm.tensors), strict=True))
        return SimpleNamespace(**found, eps=norm.eps)

    def slopes(self, read: Read, like: Tensor) -> Tensor | None:
        """The slopes of each channel, as many as `like` is long; None if there are none."""
        slope = self.placeholders[3]
        found = torch.tensor(slope) if isinstance(slope, float) else read(slope)
        if found is None:  # one slope for all channels, or one for each
            return None
        return found.to(like.device, like.dtype).expand(len(like)).contiguous()

    def pack(self, read: Read) -> None:
        """Read and pack the weights of a call; `read` must hold as long as they do."""
        tensors = {name: kept(found) for name, found in self.fold(read).items()}
        weight = tensors["weight"]
        self.backend = choose(AUTO, weight.device, self.operator, quiet=True, dtype=weight.dtype)
        tensors["packed"] = self.packed(weight, ops.packer(self.backend))
        if self.backend == "cpu":  # whose kernels read a packed weight, and only the shape of this
            tensors["weight"] = weight.new_full((1, 1, 1, 1), math.nan).expand(weight.shape)
        self.read = read
        self.tensors = tensors  # in one assignment: another thread may be calling

    def folded(self) -> Tensor:
        """The weight with the batch norm folded in; not kept, for its layouts are."""
        return cast(Tensor, kept(self.fold(self.read)["weight"]))

    def packed(self, weight: Tensor, packer: Callable[..., Tensor]) -> Any:
        strides = {name: self.options[name] for name in ("stride", "dilation")}
        return packer(weight, **strides)


class Step(Packing):
    """A fused convolution.

    Attributes:
        kernel: height and width of the kernel.
        groups: number of groups of channels.
        splits: True for a dilated 3x3, which equals a plain 3x3 on every d-th pixel, for which
            there is Winograd's algorithm.
    """

    operator = "conv_act"
    kernel: tuple[int, int] | None = None
    groups = 1
    splits = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.others: tuple[dict[str, Any], dict[str, Tensor]] = ({}, {})

    def forward(self, images: Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
        """`act(conv(cat(images)) + bias + residual)`, or its means of 2 x 2 pixels."""
        first = images[0]
        call = {**self.tensors, **self.options, "residual": residual}
        if first.is_cuda:
            key = shape_key("conv_act", images, call)
            backend = choose(AUTO, first.device, "conv_act", dtype=first.dtype, key=key)
            if backend != self.backend:
                call["packed"] = None
            return ops.operator("conv_act", backend)(images, **call)

        def ours() -> Tensor:
            own = {**call, "packed": self.kernels_weight()}
            return ops.operator("conv_act", self.backend)(images, **own)

        ways = [ours, lambda: self.by_pytorch(images, residual)]
        # Smaller images would read all weights for few pixels.
        if self.splits and min(first.shape[2:]) >= SMALLEST_PHASE * self.options["dilation"][0]:
            ways.append(lambda: self.by_phases(images, residual))
        return self.fastest_of(self.key(images, residual), ways)

    def packed(self, weight: Tensor, packer: Callable[..., Tensor]) -> Any:
        # On a CPU, the fastest way may read another layout.
        return super().packed(weight, packer) if weight.is_cuda else None

    def kernels_weight(self) -> Any:
        """The weight in the layout of the kernels."""
        tensors = self.tensors
        if tensors["packed"] is not None:
            return tensors["packed"]
        packer = ops.packer(self.backend)
        return self.derived(tensors, "packed", lambda w: Packing.packed(self, w, packer))

    def fastest_of(self, key: tuple[Any, ...], ways: Sequence[Call]) -> Tensor:
        """The result of the fastest way; the layouts that the others read are dropped.

        If a call of another size needs such a layout, it is made again, and kept.
        """
        measured = repeating.get() or key in fastest
        result = fastest_of(key, ways)
        tensors, layouts = self.others
        if not measured and key in fastest:
            chosen = LAYOUTS[fastest[key]]
            self.others = (tensors, {name: layouts[name] for name in (chosen,) if name in layouts})
        return result

    def derived(self, tensors: dict[str, Any], name: str, make: Callable[..., Tensor]) -> Tensor:
        """The weight in another layout, cached until the weights change."""
        if self.others[0] is not tensors:
            self.others = (tensors, {})
        layouts = self.others[1]
        if name not in layouts:
            layouts[name] = make(self.folded())
        return layouts[name]

    def key(self, images: Sequence[Tensor], residual: Tensor | None = None) -> tuple[Any, ...]:
        """Everything that the time of a call depends on."""
        sizes = (*(image.shape for image in images), self.tensors["weight"].shape)
        options = (*map(str, self.options.values()), residual is not None)
        return (*sizes, *options, images[0].dtype, torch.get_num_threads())

    def by_pytorch(self, images: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        """The same computed by PyTorch's own operators."""
        tensors, options = self.tensors, self.options
        x = images[0] if len(images) == 1 else torch.cat(list(images), 1)
        activation = options["activation"]
        if onednn_takes(x):
            x, activation = self.by_onednn(x, residual)
        else:
            weight = self.derived(tensors, "plain", channels_last)
            padding = same_padding(tensors["weight"], options["dilation"])
            place = (options["stride"], padding, options["dilation"], self.groups)
            x = F.conv2d(x, weight, tensors["bias"], *place)
            if residual is not None:
                x = x.add_(residual)
        if activation in IN_PLACE:
            x = IN_PLACE[activation](x)
        else:
            x = activate(x, activation, tensors["slope"])
        return x if options["pool"] == 1 else F.avg_pool2d(x, 2)

    def by_onednn(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, str]:
        """The convolution with the activation that oneDNN can fuse, and the activation left to do.

        Its weight is reordered for images of this size, as Inductor does with frozen weights;
        `torch.nn.functional`'s convolution would reorder it on each call.
        """
        tensors, options = self.tensors, self.options
        padding = same_padding(tensors["weight"], options["dilation"])
        place = (padding, options["stride"], options["dilation"], self.groups)

        def reordered(weight: Tensor) -> Tensor:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            return cast(Tensor, reorder(weight.contiguous(), *place, list(x.shape)))

        weight, bias = self.derived(tensors, "plain", reordered), tensors["bias"]
        convolve, activation = torch.ops.mkldnn._convolution_pointwise, options["activation"]
        if residual is None:
            known = activation if activation in ONEDNN else "none"
            return convolve(x, weight, bias, *place, *ONEDNN[known]), left(activation, known)
        known = activation if activation == "relu" else "none"
        after = None if known == "none" else known
        found = convolve.binary(x, residual, weight, bias, *place, "add", None, after, [], None)
        return found, left(activation, known)

    def by_phases(self, images: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        """The same computed as a plain 3x3 on the images of every d-th pixel."""
        tensors, d = self.tensors, self.options["dilation"][0]
        packed = self.derived(tensors, "phases", ops.packer(self.backend))
        function = ops.operator("conv_act", self.backend)
        options = {**tensors, **self.options, "packed": packed, "dilation": [1, 1]}
        n, _, height, width = images[0].shape
        shape = (n, height, width, tensors["weight"].shape[0])
        result = images[0].new_empty(shape).permute(0, 3, 1, 2)
        added = [] if residual is None else [residual]
        for part, *parts in zip(*(phases(x, d) for x in (result, *images, *added)), strict=True):
            options["residual"] = parts.pop() if added else None
            part.copy_(function(parts, **options))
        return result


def phases(x: Tensor, d: int) -> Iterator[Tensor]:
    """Views of every d-th pixel of an image, or several as a batch, which takes fewer calls."""
    width = x.shape[3]
    for row in range(d):
        rows = x[:, :, row::d]
        if len(x) == 1 and width % d == 0:
            yield rows[0].unflatten(2, (width // d, d)).permute(3, 0, 1, 2)
        else:
            yield from (rows[..., column::d] for column in range(d))


def left(activation: str, done: str) -> str:
    """The activation if it is not done yet, else "none"."""
    return "none" if activation == done else activation


def onednn_takes(x: Tensor) -> bool:
    """True if PyTorch's oneDNN operators, which it has for Inductor, support such an image."""
    if x.dtype != torch.float32 or not x.is_cpu or x.numel() == 0:
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


class GroupedStep(Step):
    """A fused convolution with groups of channels, or with a large kernel.

    PyTorch's own operators compute it, with the batch norm folded and the rest in place, if no
    backend has kernels for it, and on a GPU if it is not depthwise: cuDNN uses tensor cores for
    convolutions that are not bound by memory.
    """

    operator = "grouped_conv_act"

    def packed(self, weight: Tensor, packer: Callable[..., Tensor]) -> Any:
        return None

    def kernels_weight(self) -> Tensor:
        return self.derived(self.tensors, "packed", lambda weight: weight)

    def forward(self, images: Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
        """`act(conv(images[0]) + bias + residual)`."""
        (image,) = images
        tensors = self.tensors
        names = ("stride", "dilation", "activation")
        options = {name: self.options[name] for name in names} | {"groups": self.groups}
        options |= {name: tensors[name] for name in ("bias", "slope")}

        def ours() -> Tensor:
            weight = tensors["weight"] if image.is_cuda else self.kernels_weight()
            function = ops.operator(self.operator, self.backend)
            return function(image, weight, residual=residual, **options)

        def by_pytorch() -> Tensor:
            return self.by_pytorch(images, residual)

        if self.backend == "reference":
            return by_pytorch()
        if image.is_cuda:
            out_channels, _, side, _ = self.tensors["weight"].shape
            depthwise = self.groups == image.shape[1] == out_channels and side > 1
            return ours() if depthwise else by_pytorch()
        return self.fastest_of(self.key(images, residual), (ours, by_pytorch))


def fastest_of(key: tuple[Any, ...], ways: Sequence[Call]) -> Tensor:
    """The result of the fastest of several ways to compute the same, which are measured once.

    When it is to be `repeatable`, that of the first, which is the fused operators'.
    """
    if repeating.get():
        return ways[0]()
    if key not in fastest:
        fastest[key] = fastest_way(ways)
    return ways[fastest[key]]()


def fastest_way(ways: Sequence[Call]) -> int:
    """The index of the fastest way, called in turns: the first one if the times are close."""
    best = [math.inf] * len(ways)
    for attempt in range(TRIES + 1):  # the first one warms up
        for index, call in enumerate(ways):
            began = time.perf_counter()
            call()
            if attempt:
                best[index] = min(best[index], time.perf_counter() - began)
    return 0 if best[0] <= MARGIN * min(best) else best.index(min(best))


class UpsampleStep(Packing):
    """A 1x1 convolution of [upsampled, skip] in any order."""

    operator = "upsample_conv1x1"

    def __init__(self, *arguments: Any, low: Sequence[tuple[int, int]]) -> None:
        super().__init__(*arguments)
        self.low = low  # first channel and number of channels of each upsampled image

    def fold(self, read: Read) -> dict[str, Any]:
        found = super().fold(read)
        weight = found["weight"]
        ours = [channel for first, count in self.low for channel in range(first, first + count)]
        others = sorted(set(range(weight.shape[1])) - set(ours))
        self.low_channels = len(ours)
        return {**found, "weight": weight[:, [*ours, *others]].contiguous()}

    def packed(self, weight: Tensor, packer: Callable[..., Tensor]) -> Any:
        parts = (weight[:, : self.low_channels], weight[:, self.low_channels :])
        return [packer(part, stride=(1, 1), dilation=(1, 1)) for part in parts]

    def forward(self, low: Sequence[Tensor], skip: Sequence[Tensor]) -> Tensor:
        """`act(conv1x1(cat(upsample(cat(low)), cat(skip))) + bias)`."""
        activation = self.options["activation"]
        function = ops.operator("upsample_conv1x1", self.backend)
        return function(low, skip, **self.tensors, activation=activation)


class PairStep(nn.Module):
    """A 3x1 convolution and the 1x3 after it, each with the same activation."""

    def __init__(self, vertical: Step, horizontal: Step) -> None:
        super().__init__()
        self.vertical, self.horizontal = vertical, horizontal

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """`act(conv1x3(act(conv3x1(images[0]) + bias)) + bias)`."""
        (image,) = images
        first, second = self.vertical, self.horizontal
        one, two = first.tensors, second.tensors
        backend = first.backend
        if image.is_cuda:
            backend = choose(AUTO, image.device, "asymmetric_conv", dtype=image.dtype)

        def together() -> Tensor:
            return ops.operator("asymmetric_conv", backend)(
                image,
                one["weight"],
                two["weight"],
                one["bias"],
                two["bias"],
                one["slope"],
                two["slope"],
                [each.kernels_weight() for each in (first, second)],
                dilation=first.options["dilation"][0],
                activation=first.options["activation"],
            )

        def apart() -> Tensor:
            return second([first(images)])

        if image.is_cuda:
            return together()
        key = ("pair", *first.key(images), *second.key(images))
        return fastest_of(key, (together, apart))


class MaxPool(nn.Module):
    """`max_pool`, or PyTorch's own if there are no kernels for it."""

    def __init__(self, *window: Sequence[int]) -> None:
        super().__init__()
        self.window = [list(each) for each in window]  # kernel, stride and padding

    def forward(self, image: Tensor) -> Tensor:
        kernel, stride, padding = self.window
        backend = choose(AUTO, image.device, "max_pool", quiet=True, dtype=image.dtype)

        def ours() -> Tensor:
            function = ops.operator("max_pool", backend)
            return function(image, kernel=kernel, stride=stride, padding=padding)

        def by_pytorch() -> Tensor:
            return F.max_pool2d(image, kernel, stride, padding)

        if backend == "reference":
            return by_pytorch()
        if image.is_cuda:
            return ours()
        place = (image.shape, image.stride(), image.dtype, torch.get_num_threads())
        key = ("max_pool", *place, *map(str, self.window))
        return fastest_of(key, (ours, by_pytorch))


def resized(
    operator: str, image: Tensor, size: Sequence[int], backend: str = AUTO, **options: Any
) -> Tensor:
    """Call a resizing operator: `upsample`, `upsample_argmax` or `upsample_confidence`."""
    key = shape_key(operator, [image], {"size": size, **options}) if image.is_cuda else ""
    found = choose(backend, image.device, operator, dtype=image.dtype, key=key)
    return ops.operator(operator, found)(image, list(size), **options)


class Upsample(nn.Module):
    """`upsample`, or `upsample_argmax` with the argmax after it."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, image: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
        return resized(self.operator, image, size, align_corners=align_corners)


class Labels(Upsample):
    """Labels of the same type as those of `torch.argmax`."""

    def __init__(self) -> None:
        super().__init__("upsample_argmax")

    def forward(self, image: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
        return super().forward(image, size, align_corners).long()
