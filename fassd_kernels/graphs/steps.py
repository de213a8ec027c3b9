"""What takes the place of fused nodes: each one operator with weights that are packed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd_kernels import ops
from fassd_kernels.backends import AUTO, choose
from fassd_kernels.choices import shape_key
from fassd_kernels.modules.fused import kept
from fassd_kernels.packing import fold
from fassd_kernels.reference.conv_act import activate, same_padding

Read = Callable[[Any], "Tensor | None"]
"""The tensor that a placeholder has in a call; None for None."""

Call = Callable[[], Tensor]

TRIES = 3
MARGIN = 1.02
"""How much faster PyTorch has to be than the fused operator before it is taken."""

faster: dict[tuple[Any, ...], bool] = {}
"""Of calls that were measured in this process: whether PyTorch was faster."""


class Step(nn.Module):
    """A fused convolution. It stands in a graph as a module without parameters."""

    operator = "conv_act"
    kernel: tuple[int, int] | None = None  # height and width, where that matters

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
        self.laid_out: tuple[dict[str, Any], Tensor] | None = None  # for PyTorch, of which tensors

    def fold(self, read: Read) -> dict[str, Any]:
        """Weight, bias and slopes, with the batch norm in them."""
        weight, bias, norm, slope = self.placeholders
        conv: Any = SimpleNamespace(weight=read(weight), bias=read(bias))
        batch_norm = None
        if norm is not None:
            names = ("running_mean", "running_var", "weight", "bias")
            found = dict(zip(names, map(read, norm.tensors), strict=True))
            batch_norm = SimpleNamespace(**found, eps=norm.eps)
        dtype = conv.weight.dtype
        weights, biases = fold(conv, batch_norm, dtype)
        slopes = read(slope)
        if slopes is not None:  # one for all channels, or one for each
            slopes = slopes.to(dtype).expand(weights.shape[0]).contiguous()
        return {"weight": weights, "bias": biases, "slope": slopes}

    def pack(self, read: Read) -> None:
        """Take over the weights of a call."""
        tensors = {name: kept(found) for name, found in self.fold(read).items()}
        weight = tensors["weight"]
        self.backend = choose(AUTO, weight.device, self.operator, dtype=weight.dtype)
        tensors["packed"] = self.packed(weight, ops.packer(self.backend))
        self.tensors = tensors  # at once: another thread may be calling

    def packed(self, weight: Tensor, packer: Callable[..., Tensor]) -> Any:
        strides = {name: self.options[name] for name in ("stride", "dilation")}
        return packer(weight, **strides)

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
        return faster_of(
            self.key(images, residual),
            lambda: ops.operator("conv_act", self.backend)(images, **call),
            lambda: self.by_pytorch(images, residual),
        )

    def key(self, images: Sequence[Tensor], residual: Tensor | None = None) -> tuple[Any, ...]:
        """What the time of a call depends on."""
        sizes = (*(image.shape for image in images), self.tensors["weight"].shape)
        options = (*map(str, self.options.values()), residual is not None)
        return (*sizes, *options, images[0].dtype, torch.get_num_threads())

    def by_pytorch(self, images: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        """The same by PyTorch's own operators."""
        tensors, options, laid_out = self.tensors, self.options, self.laid_out
        if laid_out is None or laid_out[0] is not tensors:
            weight = tensors["weight"].contiguous(memory_format=torch.channels_last)
            self.laid_out = laid_out = (tensors, weight)
        x = images[0] if len(images) == 1 else torch.cat(list(images), 1)
        padding = same_padding(tensors["weight"], options["dilation"])
        place = (options["stride"], padding, options["dilation"])
        x = F.conv2d(x, laid_out[1], tensors["bias"], *place)
        if residual is not None:
            x = x.add_(residual)
        if options["activation"] == "relu":
            x = x.relu_()
        else:
            x = activate(x, options["activation"], tensors["slope"])
        return x if options["pool"] == 1 else F.avg_pool2d(x, 2)


def faster_of(key: tuple[Any, ...], ours: Call, others: Call) -> Tensor:
    """The result of the faster of two ways to compute the same, which is measured once."""
    if key not in faster:
        faster[key] = is_faster(ours, others)
    return others() if faster[key] else ours()


def is_faster(ours: Call, others: Call) -> bool:
    """Whether `others` take clearly less time, called in turns."""
    best = [float("inf"), float("inf")]
    for attempt in range(TRIES + 1):  # the first one warms up
        for index, call in enumerate((ours, others)):
            began = time.perf_counter()
            call()
            spent = time.perf_counter() - began
            if attempt:
                best[index] = min(best[index], spent)
    return best[0] > MARGIN * best[1]


class UpsampleStep(Step):
    """A 1x1 convolution of [upsampled, skip] in any order."""

    operator = "upsample_conv1x1"

    def __init__(self, *arguments: Any, low: Sequence[tuple[int, int]]) -> None:
        super().__init__(*arguments)
        self.low = low  # first channel of each upsampled image in the concatenation, and how many

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

    def forward(self, low: Sequence[Tensor], skip: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """`act(conv1x1(cat(upsample(cat(low)), cat(skip))) + bias)`."""
        activation = self.options["activation"]
        function = ops.operator("upsample_conv1x1", self.backend)
        return function(low, skip, **self.tensors, activation=activation)


class PairStep(nn.Module):
    """A 3x1 convolution and the 1x3 behind it, each with the same activation."""

    def __init__(self, vertical: Step, horizontal: Step) -> None:
        super().__init__()
        self.vertical, self.horizontal = vertical, horizontal

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """`act(conv1x3(act(conv3x1(images[0]) + bias)) + bias)`."""
        (image,) = images
        first, second = self.vertical, self.horizontal
        one, two = first.tensors, second.tensors
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
                [one["packed"], two["packed"]],
                dilation=first.options["dilation"][0],
                activation=first.options["activation"],
            )

        def apart() -> Tensor:
            return second([first(images)])

        if image.is_cuda:
            return together()
        return faster_of(("pair", *first.key(images), *second.key(images)), together, apart)


class Upsample(nn.Module):
    """`upsample`, or with the argmax behind it `upsample_argmax`."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, image: Tensor, size: Sequence[int]) -> Tensor:
        backend = choose(AUTO, image.device, self.operator, dtype=image.dtype)
        return ops.operator(self.operator, backend)(image, list(size))


class Labels(Upsample):
    """Labels as `torch.argmax` gives them."""

    def __init__(self) -> None:
        super().__init__("upsample_argmax")

    def forward(self, image: Tensor, size: Sequence[int]) -> Tensor:
        return super().forward(image, size).long()
