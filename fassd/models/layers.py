"""The layers that the rest of the family is built from.

Attribute names (``conv``, ``norm``, ``bn``, ``acti``, ``bn_prelu``) are those of the published
checkpoints, so that a state dict is read and written without a mapping; they cannot be changed.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def positive_int(name: str, value: Any, at_most: int | None = None) -> int:
    """Return `value` as an int from 1 to `at_most`, or raise a ``ValueError`` naming `name`."""
    accepted = "an integer of at least 1" if at_most is None else f"an integer from 1 to {at_most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {accepted}, got {value!r}") from None
    if isinstance(value, bool) or number < 1 or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


Activation = nn.Module | Literal["relu"]


class Computing(threading.local):
    """Functions that compute `resize` and `norm_act` in this thread; None: PyTorch's operators."""

    resize: Callable[[Tensor, tuple[int, int]], Tensor] | None = None
    norm_act: Callable[[Tensor, nn.Module, Activation], Tensor] | None = None


COMPUTING = Computing()


def interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` as computed by PyTorch."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class Rows(NamedTuple):
    """Position of the rows held by strips of two maps; the second map is the first one resized.

    Attributes:
        low: number of the first row that the strip of the first map holds.
        low_height: number of rows of the whole first map.
        first: number of the first row that the strip of the second map holds.
        height: number of rows of the whole second map.
    """

    low: int
    low_height: int
    first: int
    height: int

    def read(self, count: int) -> tuple[int, int]:
        """Rows [first, last) of the first map that `count` rows of the second are computed from."""
        step = (self.low_height - 1) / (self.height - 1) if self.height > 1 else 0.0
        last = int((self.first + count - 1) * step) + 3  # enough for any backend's rounding
        return max(0, int(self.first * step) - 1), min(last, self.low_height)


def resize(x: Tensor, size: tuple[int, int], rows: Rows | None = None) -> Tensor:
    """Resize (N, C, H, W) to (N, C, *size) bilinearly, with aligned corner pixels.

    With `rows`, `x` and the result are strips of two maps, in that position (`interpolate_rows`).
    """
    if rows is not None:
        return interpolate_rows(x, size, rows)
    # Compilers see PyTorch's operators.
    if not torch.compiler.is_compiling() and COMPUTING.resize is not None:
        return COMPUTING.resize(x, size)
    return interpolate(x, size)


def interpolate_rows(x: Tensor, size: tuple[int, int], rows: Rows) -> Tensor:
    """Compute a strip of `interpolate`'s result from a strip of its input.

    Args:
        x: (N, C, h, w), the rows of the input that `rows.read` names, or more.
        size: number of rows wanted and width of the result.
        rows: position of both strips in their maps.
    """
    if torch.overrides.has_torch_function_unary(x):  # one operation in a recorded graph
        made: Tensor = torch.overrides.handle_torch_function(interpolate_rows, (x,), x, size, rows)
        return made
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = interpolate(x.to(dtype), (x.shape[2], size[1]))
    # Positions are computed in PyTorch's type.
    numbers = torch.arange(rows.first, rows.first + size[0], dtype=dtype, device=x.device)
    # PyTorch computes a number divided by a tensor as the number times the reciprocal: it rounds
    # twice.
    steps = torch.tensor([rows.low_height - 1, max(rows.height - 1, 1)], dtype=dtype)
    position = numbers * float(steps[0] / steps[1])
    above = position.long().clamp(max=rows.low_height - 1)
    below = (above + 1).clamp(max=rows.low_height - 1)
    weight = (position - above).clamp(0, 1)[:, None]
    # This is how PyTorch's CPU kernel for larger images rounds.
    upper, lower = wide[:, :, above - rows.low], wide[:, :, below - rows.low]
    return torch.addcmul(lower * weight, upper, (1 - weight).expand_as(upper)).to(x.dtype)


def norm_act(x: Tensor, norm: nn.Module, activation: Activation) -> Tensor:
    """Batch norm and the activation behind it. (N, C, H, W) to the same."""
    if not torch.compiler.is_compiling() and COMPUTING.norm_act is not None:
        return COMPUTING.norm_act(x, norm, activation)
    return apply_norm_act(x, norm, activation)


def apply_norm_act(x: Tensor, norm: nn.Module, activation: Activation) -> Tensor:
    """`norm_act` as computed by PyTorch's modules."""
    x = norm(x)
    return activation(x) if isinstance(activation, nn.Module) else F.relu(x)


def logits_of(output: Any) -> Tensor:
    """The logits in what a segmentation network returns.

    Args:
        output: a tensor (N, classes, H, W); a dict that holds it under "out" (torchvision) or
            "logits" (transformers), or that holds no other such tensor; an object with an attribute
            of these names; or a tuple or list whose first item it is (auxiliary outputs follow).

    Raises:
        TypeError: the output is none of these; the message names what came.
    """
    if isinstance(output, Mapping):
        named = [output[name] for name in ("out", "logits") if name in output]
        images = [
            value for value in output.values() if isinstance(value, Tensor) and value.dim() == 4
        ]
        found = named[0] if named else images[0] if len(images) == 1 else None
        came = f"a {type(output).__name__} with the keys {', '.join(map(str, output))}"
    elif isinstance(output, (tuple, list)) and output:
        found, came = output[0], f"a {type(output).__name__} of {len(output)}"
    else:
        found = getattr(output, "out", getattr(output, "logits", output))
        came = f"a {type(output).__name__}"
    if isinstance(found, Tensor) and found.dim() == 4:
        return found
    if isinstance(found, Tensor):
        came = f"a tensor of shape {tuple(found.shape)}"
    raise TypeError(
        "the network must return logits (N, classes, H, W), or a dict with them under 'out' or "
        f"'logits', or a tuple that begins with them; it returned {came}"
    )


def init_weights(module: nn.Module) -> None:
    """Initialise one layer in place; meant for ``network.apply(init_weights)``.

    Convolutions: Kaiming normal for ReLU over the fan-in (He et al., ICCV 2015, eq. 10), bias 0.
    Batch norm: weight 1, bias 0. PReLU slopes keep PyTorch's 0.25.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Initialise a convolution in place as FASSD-Net's authors did; other layers are left alone.

    Weights: Xavier normal (Glorot and Bengio, AISTATS 2010, eq. 12); the bias: PyTorch's default.
    """
    if isinstance(module, nn.Conv2d):
        module.reset_parameters()
        nn.init.xavier_normal_(module.weight)


class ConvLayer(nn.Module):
    """Convolution without bias, batch norm (eps 1e-5), ReLU.

    Args:
        in_channels, out_channels: channel counts.
        kernel_size: odd side of the square kernel; padded so that stride 1 keeps the size.
        stride, dilation: stride and dilation of the convolution.

    Shape: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.conv(x), self.norm, self.relu)


class BNPReLU(nn.Module):
    """Batch norm (eps 1e-3) and a PReLU with one slope per channel. (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.acti = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, self.bn, self.acti)


class ConvBNPReLU(nn.Module):
    """Convolution at stride 1 without bias that keeps the size, then, if asked for, `BNPReLU`.

    Args:
        in_channels, out_channels: channel counts.
        kernel_size: (height, width), both odd.
        dilation: dilation along the axes on which the kernel is longer than one tap.
        bn_prelu: False leaves the convolution bare.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        dilation: int = 1,
        bn_prelu: bool = True,
    ) -> None:
        super().__init__()
        height, width = kernel_size
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=(height // 2 * dilation, width // 2 * dilation),
            dilation=(dilation if height > 1 else 1, dilation if width > 1 else 1),
            bias=False,
        )
        self.bn_prelu = BNPReLU(out_channels) if bn_prelu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn_prelu is None else self.bn_prelu(x)


class AsymmetricConv2d(nn.Module):
    """A 3x3 convolution factorised into 3x1 and 1x3: half of ERFNet's "non-bottleneck-1D" block.

    3x1, activation, 1x3, batch norm (eps 1e-3), addition if one is given, activation. Two in a row,
    the second with the block's input as `residual`, are the block (Romera et al., "ERFNet", IEEE
    T-ITS 2018, figure 2c); ESNet, LEDNet and others are made of variants of it.

    Args:
        in_channels, out_channels: channel counts.
        dilation: dilation of both convolutions, each along its own axis.
        activation: "relu", or "prelu" with one slope per channel, after both convolutions.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W); `residual` as the result.

    Raises:
        ValueError: the activation is another, or a count is below 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int = 1, activation: str = "relu"
    ) -> None:
        super().__init__()
        if activation not in ("relu", "prelu"):
            raise ValueError(f"activation must be 'relu' or 'prelu', got {activation!r}")
        inputs, outputs = (
            positive_int(name, value)
            for name, value in (("in_channels", in_channels), ("out_channels", out_channels))
        )
        d = positive_int("dilation", dilation)
        self.conv3x1 = nn.Conv2d(inputs, outputs, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3 = nn.Conv2d(outputs, outputs, (1, 3), padding=(0, d), dilation=(1, d))
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        one, two = (nn.ReLU() if activation == "relu" else nn.PReLU(outputs) for _ in range(2))
        self.acti3x1, self.acti1x3 = one, two

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv1x3(self.acti3x1(self.conv3x1(x))))
        return self.acti1x3(x if residual is None else x + residual)
