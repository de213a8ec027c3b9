"""Calls of every operator with random arguments.

Arguments are float64 on the CPU, of such a size that results are of the order of 1 whatever the
number of channels; ``Call.to`` and ``Call.laid_out`` do the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from conformance.harness import OPERATORS, TABLE, Call, Subject
from torch import Tensor

from fassd_kernels.operators import PICTURES

Pair = tuple[int, int]

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)

# --- arguments ------------------------------------------------------------------------------------


class Source:
    """Random tensors, the same every time."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def image(self, batch: int, channels: int, size: Pair) -> Tensor:
        shape = (batch, channels, *size)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def weight(self, out_channels: int, in_channels: int, kernel: Pair = (1, 1)) -> Tensor:
        fan_in = max(1, in_channels * kernel[0] * kernel[1])
        return self.image(out_channels, in_channels, kernel) / fan_in**0.5

    def vector(self, channels: int, mean: float = 0.0) -> Tensor:
        """Normal numbers, deviation 0.3: biases and shifts, or scales with a `mean` of 1."""
        noise = torch.randn(channels, generator=self.generator, dtype=torch.float64)
        return mean + 0.3 * noise

    def picture(self, batch: int, size: Pair) -> Tensor:
        """Bytes, N x H x W x 3."""
        picture = torch.randint(0, 256, (batch, *size, 3), generator=self.generator)
        return picture.to(torch.uint8)

    def slope(self, channels: int, activation: str = "prelu") -> Tensor | None:
        return self.vector(channels, 0.25) if activation == "prelu" else None


def conv_act(
    batch: int = 1,
    channels: Sequence[int] = (3,),
    out_channels: int = 4,
    size: Pair = (5, 7),
    kernel: Pair = (3, 3),
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    pool: int = 1,
) -> Call:
    source = Source()
    out_size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    return Call(
        "conv_act",
        {
            "inputs": [source.image(batch, c, size) for c in channels],
            "weight": source.weight(out_channels, sum(channels), kernel),
            "bias": source.vector(out_channels) if bias else None,
            "slope": source.slope(out_channels, activation),
            "residual": source.image(batch, out_channels, out_size) if residual else None,
            "stride": stride,
            "dilation": dilation,
            "activation": activation,
            "pool": pool,
        },
    )


def grouped_conv_act(
    batch: int = 1,
    channels: int = 4,
    groups: int = 4,
    multiple: int = 1,
    size: Pair = (5, 7),
    side: int = 3,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
) -> Call:
    """`channels` and `multiple` times as many output channels; as many groups as divide them."""
    source = Source()
    groups = math.gcd(channels, groups) or 1
    out_channels = channels * multiple
    out_size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    return Call(
        "grouped_conv_act",
        {
            "input": source.image(batch, channels, size),
            "weight": source.weight(out_channels, channels // groups, (side, side)),
            "bias": source.vector(out_channels) if bias else None,
            "slope": source.slope(out_channels, activation),
            "residual": source.image(batch, out_channels, out_size) if residual else None,
            "stride": stride,
            "dilation": dilation,
            "activation": activation,
            "groups": groups,
        },
    )


def asymmetric_conv(
    batch: int = 1,
    channels: int = 3,
    middle: int = 4,
    out_channels: int = 5,
    size: Pair = (5, 7),
    dilation: int = 1,
    activation: str = "relu",
    bias: bool = True,
) -> Call:
    source = Source()
    return Call(
        "asymmetric_conv",
        {
            "input": source.image(batch, channels, size),
            "vertical_weight": source.weight(middle, channels, (3, 1)),
            "horizontal_weight": source.weight(out_channels, middle, (1, 3)),
            "vertical_bias": source.vector(middle) if bias else None,
            "horizontal_bias": source.vector(out_channels) if bias else None,
            "vertical_slope": source.slope(middle, activation),
            "horizontal_slope": source.slope(out_channels, activation),
            "dilation": dilation,
            "activation": activation,
        },
    )


def branches(
    operator: str,
    kernels: Sequence[Pair],
    batch: int = 1,
    channels: int = 6,
    width: int = 3,
    out_channels: int = 5,
    size: Pair = (5, 7),
    dilations: Sequence[int] = (1, 2),
) -> Call:
    """Of dapf or aspp, with the kernels of each dilation; a 1x3 reads the 3x1 before it."""
    source = Source()
    each = [(1, 1), *(kernel for _ in dilations for kernel in kernels)]
    joined = 1 + len(dilations)
    if operator == "aspp":
        each, joined = [*each, (1, 1)], joined + 1
    weights = [source.weight(width, width if k == (1, 3) else channels, k) for k in each]
    weights.append(source.weight(out_channels, width * joined))
    return Call(
        operator,
        {
            "input": source.image(batch, channels, size),
            "weights": weights,
            "biases": [source.vector(weight.shape[0]) for weight in weights],
            "dilations": dilations,
        },
    )


def dapf(*sizes: Any, **settings: Any) -> Call:
    return branches("dapf", [(3, 1), (1, 3)], *sizes, **settings)


def aspp(*sizes: Any, **settings: Any) -> Call:
    return branches("aspp", [(3, 3)], *sizes, **settings)


def hardblock(
    batch: int = 1,
    channels: int = 6,
    widths: Sequence[int] = (4, 6, 4, 9),
    size: Pair = (5, 7),
) -> Call:
    source = Source()
    all_widths = (channels, *widths)
    weights = [
        source.weight(
            width, sum(all_widths[k - (1 << n)] for n in range(4) if k % (1 << n) == 0), (3, 3)
        )
        for k, width in enumerate(widths, start=1)
    ]
    return Call(
        "hardblock",
        {
            "input": source.image(batch, channels, size),
            "weights": weights,
            "biases": [source.vector(width) for width in widths],
        },
    )


def mda(
    batch: int = 1, channels: int = 6, width: int = 3, size: Pair = (5, 7), dilation: int = 2
) -> Call:
    source = Source()
    kernels = ((3, 3), (3, 3), (3, 1), (1, 3))
    widths = (channels, *[width] * 5)
    return Call(
        "mda",
        {
            "input": source.image(batch, channels, size),
            "weights": [
                *(
                    source.weight(width, channels if i == 0 else width, kernel)
                    for i, kernel in enumerate(kernels)
                ),
                source.weight(channels, width),
            ],
            "scales": [source.vector(channels, 1), source.vector(width, 1)],
            "shifts": [source.vector(w) for w in widths],
            "slopes": [source.slope(w) for w in widths],
            "dilation": dilation,
        },
    )


def upsample_conv1x1(
    batch: int = 1,
    low: Sequence[int] = (3,),
    skip: Sequence[int] = (2,),
    out_channels: int = 4,
    low_size: Pair = (3, 4),
    size: Pair = (5, 7),
    activation: str = "none",
    bias: bool = True,
) -> Call:
    source = Source()
    return Call(
        "upsample_conv1x1",
        {
            "low": [source.image(batch, c, low_size) for c in low],
            "skip": [source.image(batch, c, size) for c in skip],
            "weight": source.weight(out_channels, sum(low) + sum(skip)),
            "bias": source.vector(out_channels) if bias else None,
            "slope": source.slope(out_channels, activation),
            "activation": activation,
        },
    )


def upsample(
    batch: int = 1,
    channels: int = 3,
    low_size: Pair = (3, 4),
    size: Pair = (5, 7),
    align_corners: bool = True,
) -> Call:
    image = Source().image(batch, channels, low_size)
    return Call("upsample", {"input": image, "size": size, "align_corners": align_corners})


def upsample_argmax(batch: int = 1, channels: int = 19, *sizes: Any, **settings: Any) -> Call:
    return Call("upsample_argmax", upsample(batch, channels, *sizes, **settings).arguments)


def upsample_confidence(
    *sizes: Any, measure: str = "margin", temperature: float = 1.0, **settings: Any
) -> Call:
    given = {"measure": measure, "temperature": temperature}
    return Call("upsample_confidence", upsample_argmax(*sizes, **settings).arguments | given)


def max_pool(
    batch: int = 1,
    channels: int = 3,
    size: Pair = (5, 7),
    kernel: Pair = (3, 3),
    stride: Pair = (2, 2),
    padding: Pair = (1, 1),
) -> Call:
    """Of sides that the kernel and its half allow."""
    sides = {"kernel": tuple(max(1, min(k, n)) for k, n in zip(kernel, size, strict=True))}
    padding = tuple(min(p, k // 2) for p, k in zip(padding, sides["kernel"], strict=True))
    image = Source().image(batch, channels, size)
    return Call("max_pool", {"input": image, **sides, "stride": stride, "padding": padding})


def normalize(
    batch: int = 1, size: Pair = (5, 7), mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Call:
    image = Source().picture(batch, size)
    return Call("normalize", {"image": image, "mean": mean, "std": std, "dtype": torch.float32})


def normalize_conv_act(
    batch: int = 1,
    out_channels: int = 5,
    size: Pair = (5, 7),
    kernel: Pair = (3, 3),
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    activation: str = "none",
    bias: bool = True,
) -> Call:
    source = Source()
    return Call(
        "normalize_conv_act",
        {
            "image": source.picture(batch, size),
            "weight": source.weight(out_channels, 3, kernel),
            "bias": source.vector(out_channels) if bias else None,
            "slope": source.slope(out_channels, activation),
            "mean": MEAN,
            "std": STD,
            "stride": stride,
            "dilation": dilation,
            "activation": activation,
        },
    )


def from_schema(operator: str, batch: int = 1, size: Pair = (5, 7)) -> Call:
    """A call of an operator that has no function of its own here: what its schema asks for.

    Images have three channels, as have weights (1x1) and vectors; a number is 0.5 or 1.
    """
    source, row = Source(), TABLE[operator]

    def single(name: str, kind: str) -> Any:
        if "Tensor" not in kind:
            return 0.5 if "float" in kind else 1
        if name == PICTURES:
            return source.picture(batch, size)
        if name in row.images:
            return source.image(batch, 3, size)
        return source.weight(3, 3) if name in row.weights else source.vector(3)

    def value(argument: Any) -> Any:
        kind = str(argument.type)
        one = single(argument.name, kind)
        return [one] if kind.startswith("List") else one

    arguments = torch._C.parse_schema(row.schema).arguments
    required = [argument for argument in arguments if not argument.has_default_value()]
    return Call(operator, {argument.name: value(argument) for argument in required})


def builder(operator: str) -> Callable[..., Call]:
    """The function of this file that makes calls of an operator."""
    return globals().get(operator) or functools.partial(from_schema, operator)


UNKNOWN = tuple(name for name in OPERATORS if name not in globals())

# A few calls of each operator that differ in what is optional, for what all operators promise.
SAMPLES: dict[str, list[Call]] = {
    **{name: [from_schema(name), from_schema(name, batch=2)] for name in UNKNOWN},
    "conv_act": [
        conv_act(),
        conv_act(
            batch=2,
            channels=(3, 2),
            kernel=(3, 1),
            stride=(2, 1),
            dilation=(2, 1),
            activation="prelu",
            residual=True,
        ),
        conv_act(channels=(2, 1, 1), kernel=(1, 1), activation="relu", bias=False),
        conv_act(channels=(7,), out_channels=9, size=(8, 9), activation="relu"),
        conv_act(out_channels=9, size=(7, 6), activation="relu", pool=2),
        conv_act(out_channels=9, size=(7, 6), activation="hardswish", residual=True),
        conv_act(channels=(9,), size=(7, 6), kernel=(1, 1), activation="silu", pool=2),
    ],
    "grouped_conv_act": [
        grouped_conv_act(),
        grouped_conv_act(
            2, 18, 18, 1, (9, 13), 5, (2, 2), (1, 2), activation="prelu", residual=True
        ),
        grouped_conv_act(1, 6, 3, 2, side=3, activation="relu", bias=False),
        grouped_conv_act(1, 3, 1, 2, (8, 9), 7, (2, 2), activation="relu"),
    ],
    "asymmetric_conv": [
        asymmetric_conv(),
        asymmetric_conv(batch=2, dilation=3, activation="prelu"),
        asymmetric_conv(activation="none", bias=False),
    ],
    "dapf": [dapf(), dapf(batch=2, dilations=(1, 2, 9))],
    "aspp": [aspp(), aspp(batch=2, dilations=(1, 3, 9), width=4)],
    "hardblock": [hardblock(), hardblock(batch=2, channels=9, widths=(7, 8, 6, 9, 7, 8))],
    "mda": [mda(), mda(batch=2, channels=16, width=8, dilation=4)],
    "upsample_conv1x1": [
        upsample_conv1x1(),
        upsample_conv1x1(batch=2, low=(2, 1), skip=(1, 3), activation="prelu"),
        upsample_conv1x1(activation="relu", bias=False),
    ],
    "upsample": [upsample(), upsample(batch=2, size=(2, 9))],
    "upsample_argmax": [upsample_argmax(), upsample_argmax(batch=2, size=(2, 9))],
    "upsample_confidence": [
        upsample_confidence(),
        upsample_confidence(batch=2, size=(2, 9), measure="entropy", temperature=0.5),
        upsample_confidence(measure="probability", align_corners=False),
    ],
    "max_pool": [max_pool(), max_pool(2, 17, (9, 12), (2, 3), (2, 1), (0, 1))],
    "normalize": [normalize(), normalize(batch=2)],
    "normalize_conv_act": [
        normalize_conv_act(),
        normalize_conv_act(batch=2, out_channels=17, stride=(2, 2), activation="prelu"),
        normalize_conv_act(kernel=(1, 1), activation="relu", bias=False),
    ],
}


def empty_in_turn(make: Callable[..., Call], **settings: Any) -> list[Call]:
    """Calls without pictures, rows or columns; the first with `settings` besides."""
    return [make(batch=0, **settings), make(size=(0, 7)), make(size=(5, 0))]


# Calls whose result has no elements.
NOTHING: dict[str, list[Call]] = {
    **{name: [from_schema(name, batch=0), from_schema(name, size=(0, 7))] for name in UNKNOWN},
    **{each.__name__: empty_in_turn(each) for each in (dapf, aspp, hardblock, mda, normalize)},
    "conv_act": [
        conv_act(batch=0, channels=(3, 2), activation="prelu", residual=True),
        conv_act(batch=0, kernel=(1, 1), stride=(2, 2)),
        conv_act(size=(0, 7)),
        conv_act(size=(1, 7), pool=2),
        conv_act(size=(5, 0), channels=(3, 2), activation="relu", stride=(1, 3)),
    ],
    "grouped_conv_act": [
        *empty_in_turn(grouped_conv_act, activation="prelu", residual=True),
        *empty_in_turn(grouped_conv_act, groups=2, side=5),
    ],
    "asymmetric_conv": empty_in_turn(asymmetric_conv, activation="prelu"),
    "upsample_conv1x1": [
        upsample_conv1x1(batch=0, low=(2, 1), activation="prelu"),
        upsample_conv1x1(size=(0, 7)),
        upsample_conv1x1(size=(5, 0), activation="relu"),
    ],
    "max_pool": [max_pool(batch=0), max_pool(channels=0)],
    "upsample": [upsample(batch=0), upsample(channels=0)],
    "upsample_argmax": [upsample_argmax(batch=0)],
    "upsample_confidence": [upsample_confidence(batch=0)],
    "normalize_conv_act": empty_in_turn(normalize_conv_act, activation="prelu"),
}


def samples(subject: Subject, dtype: torch.dtype = torch.float32) -> list[Call]:
    """The sample calls of the subject's operator, on its device."""
    return [call.to(dtype, subject.device) for call in SAMPLES[subject.operator]]
