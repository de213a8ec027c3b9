"""The operators as FASSD-Net calls them: what PyTorch does in their place, and our call.

`dapf`, `hardblock`, `mda` and `aspp` are not here: each is the one call that its module makes, and
the modules are measured as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import (
    COMPILE,
    EAGER,
    NATIVE,
    TRITON,
    Candidate,
    accelerated,
    randomised,
    require_operators,
)
from benchmarks.timing import Call
from fassd.models import create_model
from fassd.models.dapf import AsymmetricAtrousBranch
from fassd.models.layers import ConvLayer, resize

CLASSES = 19
LOGITS_REDUCTION = 4
"""The finest map's sides are the picture's divided by this."""


@dataclass(frozen=True)
class OperatorPlace:
    """A call of an operator in FASSD-Net.

    Attributes:
        operator: its name.
        build: makes the module of PyTorch's operators that computes the same.
        maps: of each input, its channels, and by what its sides are smaller than the picture's.
        fuse: as in `benchmarks.peers.Form`.
    """

    operator: str
    build: Callable[[], nn.Module]
    maps: tuple[tuple[int, int], ...]
    fuse: Callable[[Any, torch.dtype, str], Call]


# --- what PyTorch does ----------------------------------------------------------------------------


class UpsampleConv(nn.Module):
    """The decoder's 1x1 on [`low` upsampled, `skip`].

    Shape: (N, C, h, w) and (N, D, H, W) to (N, O, H, W).
    """

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        up = resize(low, (skip.shape[2], skip.shape[3]))
        return self.layer(torch.cat([up, skip], 1))


class Upsample(nn.Module):
    """Logits (N, C, h, w) to the picture's size."""

    def forward(self, logits: Tensor) -> Tensor:
        return resize(logits, picture_size(logits))


class UpsampleArgmax(Upsample):
    """Logits (N, C, h, w) to labels (N, H, W) of the picture's size."""

    def forward(self, logits: Tensor) -> Tensor:
        return super().forward(logits).argmax(1)


def picture_size(logits: Tensor) -> tuple[int, int]:
    return LOGITS_REDUCTION * logits.shape[2], LOGITS_REDUCTION * logits.shape[3]


def part_of_network(path: str) -> nn.Module:
    return create_model("fassd_net").get_submodule(path)


def decoder_join(level: int) -> nn.Module:
    layer = part_of_network(f"conv1x1_up.{level}")
    assert isinstance(layer, ConvLayer)
    return UpsampleConv(layer)


def dilated_pair(level: int) -> nn.Module:
    """The 3x1 and 1x3 of an MDA."""
    mda: Any = part_of_network(f"mda.{level}")
    return nn.Sequential(mda.parallel_ddconv3x1, mda.parallel_ddconv1x3)


# --- what ours does -------------------------------------------------------------------------------


def fused_branch(branch: AsymmetricAtrousBranch, dtype: torch.dtype, backend: str) -> Call:
    pair = (branch.atrous_conv3x1, branch.atrous_conv1x3)
    norms = (branch.bn3x1, branch.bn1x3)
    return asymmetric_call(pair, norms, (None, None), "relu", dtype, backend)


def fused_pair(pair: nn.Sequential, dtype: torch.dtype, backend: str) -> Call:
    layers: list[Any] = list(pair)
    slopes = [layer.bn_prelu.acti.weight.to(dtype) for layer in layers]
    norms = [layer.bn_prelu.bn for layer in layers]
    return asymmetric_call([layer.conv for layer in layers], norms, slopes, "prelu", dtype, backend)


def asymmetric_call(
    pair: Sequence[nn.Conv2d],
    norms: Sequence[nn.BatchNorm2d],
    slopes: Sequence[Tensor | None],
    activation: str,
    dtype: torch.dtype,
    backend: str,
) -> Call:
    """`asymmetric_conv` with weights folded and packed once."""
    from fassd_kernels import ops
    from fassd_kernels.packing import fold

    with torch.no_grad():
        folded = [fold(conv, norm, dtype) for conv, norm in zip(pair, norms, strict=True)]
        pack = ops.operator("pack_weight", backend)
        packed = [
            pack(weight, dilation=conv.dilation)
            for (weight, _), conv in zip(folded, pair, strict=True)
        ]
    (vertical, vertical_bias), (horizontal, horizontal_bias) = folded
    biases = (vertical_bias, horizontal_bias)
    function = ops.operator("asymmetric_conv", backend)
    dilation = pair[0].dilation[0]
    return lambda x: function(
        x, vertical, horizontal, *biases, *slopes, packed, dilation=dilation, activation=activation
    )


def fused_join(join: UpsampleConv, dtype: torch.dtype, backend: str) -> Call:
    """`upsample_conv1x1` with the weight folded, and packed for each part, when `low` is seen."""
    from fassd_kernels import ops
    from fassd_kernels.packing import fold

    with torch.no_grad():
        weight, bias = fold(join.layer.conv, join.layer.norm, dtype)
    pack = ops.operator("pack_weight", backend)
    function = ops.operator("upsample_conv1x1", backend)
    packed: list[Tensor] = []

    def call(low: Tensor, skip: Tensor) -> Tensor:
        if not packed:
            channels = low.shape[1]
            packed.extend(pack(part) for part in (weight[:, :channels], weight[:, channels:]))
        return function([low], [skip], weight, bias, packed=packed, activation="relu")

    return call


def fused_resize(name: str, module: nn.Module, dtype: torch.dtype, backend: str) -> Call:
    from fassd_kernels import ops

    function = ops.operator(name, backend)
    return lambda logits: function(logits, picture_size(logits))


# --- the table ------------------------------------------------------------------------------------


def _conv(path: str, channels: int, reduction: int) -> OperatorPlace:
    return OperatorPlace(
        "conv_act", partial(part_of_network, path), ((channels, reduction),), accelerated
    )


def _branch(path: str) -> OperatorPlace:
    build = partial(part_of_network, path)
    return OperatorPlace("asymmetric_conv", build, ((224, 32),), fused_branch)


def _pair(level: int, channels: int, reduction: int) -> OperatorPlace:
    build = partial(dilated_pair, level)
    return OperatorPlace("asymmetric_conv", build, ((channels, reduction),), fused_pair)


def _join(level: int, low: tuple[int, int], skip: tuple[int, int]) -> OperatorPlace:
    return OperatorPlace("upsample_conv1x1", partial(decoder_join, level), (low, skip), fused_join)


def _resize(name: str, build: Callable[[], nn.Module]) -> OperatorPlace:
    maps = ((CLASSES, LOGITS_REDUCTION),)
    return OperatorPlace(name, build, maps, partial(fused_resize, name))


OPERATORS = {
    "conv_act base.0": _conv("base.0", 3, 1),
    "conv_act base.3": _conv("base.3", 32, 4),
    "conv_act base.5": _conv("base.5", 48, 4),
    "asymmetric_conv DAPF.pyBranch2": _branch("DAPF.pyBranch2"),
    "asymmetric_conv mda.2": _pair(2, 31, 4),
    "upsample_conv1x1 conv1x1_up.0": _join(0, (224, 32), (160, 16)),
    "upsample_conv1x1 conv1x1_up.2": _join(2, (78, 8), (48, 4)),
    "upsample": _resize("upsample", Upsample),
    "upsample_argmax": _resize("upsample_argmax", UpsampleArgmax),
}
"""By name: the operator and where in FASSD-Net it stands. Those of `PICTURES` are beside it."""


# --- operators on pictures of bytes ---------------------------------------------------------------

NORMALIZE = "normalize"
NORMALIZE_CONV = "normalize_conv_act base.0"
PICTURES = (NORMALIZE, NORMALIZE_CONV)

MEAN = tuple(255 * value for value in (0.406, 0.456, 0.485))
STD = tuple(255 * value for value in (0.225, 0.224, 0.229))


class Normalize(nn.Module):
    """The operator `normalize` as one writes it in PyTorch: float32 arithmetic, then the cast.

    Shape: (N, H, W, 3) uint8 RGB to (N, 3, H, W) BGR of `dtype`, channels_last.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        pixels = (image.flip(-1).float() - self.mean) / self.std
        return pixels.to(self.dtype).permute(0, 3, 1, 2)


class NormalizeConv(nn.Module):
    """`normalize` and the first layer of FASSD-Net.

    Shape: (N, H, W, 3) uint8 RGB to (N, O, h, w) of the layer's type, channels_last.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalize = Normalize(dtype)
        self.layer = first_layer()

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(self.normalize(image))


def first_layer() -> ConvLayer:
    """With seeded weights: the same at every call."""
    layer = randomised(part_of_network("base.0"))
    assert isinstance(layer, ConvLayer)
    return layer


def picture_module(subject: str, dtype: torch.dtype) -> nn.Module:
    """What PyTorch does in an operator's place, with float32 weights."""
    return Normalize(dtype) if subject == NORMALIZE else NormalizeConv(dtype)


def picture_candidate(
    name: str, subject: str, dtype: torch.dtype, device: torch.device, compiler: str
) -> Candidate:
    """The candidate `name` of a row of `PICTURES`.

    Raises:
        UnavailableError: it is ours, and its backend is not there.
    """
    if name in (TRITON, NATIVE):
        backend = "triton" if name == TRITON else device.type
        return Candidate(name, picture_call(subject, backend, dtype, device))
    module = picture_module(subject, dtype).to(device)
    if isinstance(module, NormalizeConv):
        module.layer.to(dtype)
    if name == EAGER:
        return Candidate(EAGER, module)
    return Candidate(COMPILE, torch.compile(module, dynamic=False, backend=compiler))


def picture_call(subject: str, backend: str, dtype: torch.dtype, device: torch.device) -> Call:
    """The operator on a backend of ours.

    Raises:
        UnavailableError: the backend is not there.
    """
    from fassd_kernels import ops
    from fassd_kernels.packing import fold

    name = subject.partition(" ")[0]
    require_operators(backend, frozenset({name}), device)
    function = ops.operator(name, backend)
    if subject == NORMALIZE:
        return lambda image: function(image, mean=MEAN, std=STD, dtype=dtype)
    layer = first_layer().to(device)
    stride = layer.conv.stride
    with torch.no_grad():
        weight, bias = fold(layer.conv, layer.norm, dtype)
        packed = ops.operator("pack_weight", backend)(weight, stride=stride)
    options = {"mean": MEAN, "std": STD, "stride": stride, "activation": "relu"}
    return lambda image: function(image, weight, bias, packed=packed, **options)


def picture_reference(subject: str, image: Tensor) -> Tensor:
    """A row of `PICTURES` in float64, (N, C, H, W)."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64, device=image.device) for values in (MEAN, STD)
    )
    pixels = ((image.flip(-1).double() - mean) / std).permute(0, 3, 1, 2)
    if subject == NORMALIZE:
        return pixels
    with torch.no_grad():
        return first_layer().to(image.device, torch.float64)(pixels)
