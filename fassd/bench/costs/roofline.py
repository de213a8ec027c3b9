"""Predicted time of a call of a fused operator, from its operations and this machine's rates.

The roofline model (Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance
Model for Multicore Architectures", CACM 2009): a call is bound by its arithmetic or by its memory
traffic, whichever takes longer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fassd.models.clock import sample
from fassd_kernels.tuning.calls import OperatorCall

WINOGRAD_CHANNELS = 6
LINE_CHANNELS = 24
"""Minimum input and output channels for Winograd's form of 3x3 kernels, and of 3x1 and 1x3
(`method_for` in `csrc/cpu/packing.cpp`)."""

LINE_DILATIONS = (1, 2, 4, 8, 16)
"""Dilations of 1x3 kernels that have one."""

COPIED_BYTES = 256 << 20
MATRIX_SIDES = (1024, 2048)
CONVOLUTION_WIDTHS = (128, 256, 512)


@dataclass(frozen=True)
class Machine:
    """The best rates of the machine: multiply-accumulates and bytes per second."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class CallConvolution:
    """One convolution inside a call.

    Attributes:
        shape: shape of its weight, (out channels, in channels, height, width).
        pixels: number of pixels of its output, over the whole batch, before any pooling.
        stride, dilation: stride and dilation, (vertical, horizontal).
    """

    shape: tuple[int, ...]
    pixels: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the definition, padding included."""
        return math.prod(self.shape) * self.pixels

    @property
    def saving(self) -> float:
        """Ratio of the sum's multiply-accumulates to those that the CPU kernels take.

        Winograd's F(4x4, 3x3) has 36 products for sixteen outputs of nine taps; F(4, 3), along the
        axis of a 3x1 or 1x3, 6 for four outputs of three.
        """
        kernel, (down, across) = self.shape[2:], self.dilation
        channels = min(self.shape[:2]) if self.stride == (1, 1) else 0
        if channels >= WINOGRAD_CHANNELS and kernel == (3, 3) and down == across == 1:
            return 144 / 36
        apart = (kernel == (3, 1) and down == 1) or (kernel == (1, 3) and across in LINE_DILATIONS)
        return 12 / 6 if channels >= LINE_CHANNELS and apart else 1.0


@dataclass(frozen=True)
class CallWork:
    """The work of one call.

    Attributes:
        convolutions: convolutions of the call, in order.
        bytes: bytes of its input and output images.
        dtype: dtype of the images and weights.
    """

    convolutions: tuple[CallConvolution, ...]
    bytes: int
    dtype: torch.dtype

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions' definitions."""
        return sum(convolution.macs for convolution in self.convolutions)


@dataclass(frozen=True)
class RooflineTime:
    """Predicted seconds of a call, by possible bounds."""

    arithmetic: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.memory)


def predict(work: CallWork, machine: Machine) -> RooflineTime:
    """Predict the seconds of `work` without any losses.

    It assumes that

    * multiply-accumulates run at the rate of a float32 matrix product, whatever the dtype: the
      kernels widen 16 bits as they load them (but for bfloat16 where the CPU has AMX, which takes
      less than this says). Neither Winograd's transformations nor biases,
      activations, pooling and interpolation count;
    * convolutions that have a form of Winograd's take fewer products (`CallConvolution.saving`);
      all others take every multiply-accumulate, those of taps in the padding included;
    * every input image is read and every output image written once, at the rate of a copy;
      weights, and what a call keeps in the cache, are free;
    * arithmetic and memory traffic overlap.
    """
    products = sum(c.macs / c.saving for c in work.convolutions)
    return RooflineTime(products / machine.macs_per_s, work.bytes / machine.bytes_per_s)


def measure_machine(repeats: int = 10) -> Machine:
    """Measure the best of `repeats` calls of each kernel tried, on PyTorch's present threads.

    The rate of arithmetic is the best that PyTorch's own libraries reach in a float32 matrix
    product, a practical ceiling: `torch.mm` (BLAS) on squares of 1024 and 2048, and 1x1
    convolutions in channels_last (oneDNN). On processors other than Intel's, MKL alone would give
    too low a rate: 113 GFLOP/s on two cores of an EPYC with AVX-512, where oneDNN reaches 522.

    The bandwidth is that of copying 256 MiB, counting each byte twice, as read and as written.
    """
    calls: dict[str, Callable[[], object]] = {}
    macs: dict[str, int] = {}
    for side in MATRIX_SIDES:
        a, b, product = (torch.ones(side, side) for _ in range(3))
        calls[f"mm {side}"] = functools.partial(torch.mm, a, b, out=product)
        macs[f"mm {side}"] = side**3
    for width in CONVOLUTION_WIDTHS:
        image, weight = (
            torch.ones(shape).contiguous(memory_format=torch.channels_last)
            for shape in ((1, width, 64, 64), (width, width, 1, 1))
        )
        calls[f"conv2d {width}"] = functools.partial(torch.conv2d, image, weight)
        macs[f"conv2d {width}"] = 64 * 64 * width**2
    source = torch.ones(COPIED_BYTES // 4)
    calls["copy"] = functools.partial(torch.empty_like(source).copy_, source)
    # Each alone, after a call that is not timed: a ceiling is what is reached with warm caches.
    best = {
        name: min(sample(call, torch.device("cpu")) for _ in range(repeats))
        for name, call in calls.items()
    }
    rates = [products / best[name] for name, products in macs.items()]
    return Machine(max(rates), 2 * COPIED_BYTES / best["copy"])


# ---------------------------------------------------------------------------------- work of a call


def convolutions(call: OperatorCall) -> list[CallConvolution]:
    """The convolutions in a call of an operator."""
    arguments = call.complete
    if call.operator in ("conv_act", "grouped_conv_act"):
        image, weight = call.images[0], arguments["weight"]
        (down, right), dilation = arguments["stride"], tuple(arguments["dilation"])
        sides = math.ceil(image.shape[2] / down), math.ceil(image.shape[3] / right)
        pixels = image.shape[0] * math.prod(sides)
        return [CallConvolution(tuple(weight.shape), pixels, (down, right), dilation)]
    if call.operator == "upsample_conv1x1":  # the part of `low` at its own size
        parts = (arguments["low"], arguments["skip"])
        outputs = arguments["weight"].shape[0]
        return [
            CallConvolution((outputs, sum(x.shape[1] for x in part), 1, 1), _pixels(part[0]))
            for part in parts
        ]
    weights = [tuple(weight.shape) for weight in arguments.get("weights", ())]
    counts = [_pixels(call.images[0])] * len(weights)
    dilations = [1] * len(weights)
    if call.operator == "aspp":
        dilations[1:-2] = arguments["dilations"]
        counts[-2] = call.images[0].shape[0]  # of the mean over the image
    return [
        CallConvolution(shape, count, dilation=(d, d))
        for shape, count, d in zip(weights, counts, dilations, strict=True)
    ]


def work_of(call: OperatorCall, output: Tensor) -> CallWork:
    """The work of a call of an operator."""
    residual = call.arguments.get("residual")
    touched = [*call.images, *([] if residual is None else [residual]), output]
    return CallWork(
        tuple(convolutions(call)),
        sum(image.numel() * image.element_size() for image in touched),
        touched[0].dtype,
    )


def _pixels(image: Tensor) -> int:
    return image.shape[0] * image.shape[2] * image.shape[3]
