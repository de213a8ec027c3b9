"""The subjects to measure: an operator, a module or a network, at one size, batch and dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fassd_kernels
from fassd.bench.candidates import BuildContext, Candidate, accelerated, form_named
from fassd.bench.folding import randomised
from fassd.bench.plain import (
    CLASSES,
    LOGITS_REDUCTION,
    MEAN,
    STD,
    Labelled,
    Normalize,
    NormalizeConv,
    PlainUpsample,
    UpsampleArgmax,
    UpsampleConfidence,
    UpsampleConv,
    decoder_join,
    depthwise,
    dilated_pair,
    part_of_network,
    picture_size,
)
from fassd.bench.stopwatch import Call, Inputs
from fassd.evaluation.agreement import TOLERANCES
from fassd.models import DAPF, MDA, create_model
from fassd.models.aspp import ASPP
from fassd.models.device import DTYPES
from fassd_kernels import ops
from fassd_kernels.packing import fold


@dataclass(frozen=True)
class Case:
    """One subject at one size, dtype and batch.

    Attributes:
        part: name of the part: ``operators``, ``modules`` or ``networks``.
        subject: key of `PARTS`, or a network's name.
        height, width: size of the *network's* input in pixels, whatever the subject.
        dtype: key of `DTYPES`.
        batch: number of pictures at a time.
    """

    part: str
    subject: str
    height: int
    width: int
    dtype: str
    batch: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class NetworkPart:
    """A call of an operator, or a module, as used in FASSD-Net.

    Attributes:
        operator: name of our operator that computes it.
        build: function that makes the module of PyTorch's operators that computes the same.
        maps: number of channels of each input, and the ratio of the picture's sides to its sides.
        fuse: function that makes ours, as in `fassd.bench.candidates.BuildContext`.
    """

    operator: str
    build: Callable[[], nn.Module]
    maps: tuple[tuple[int, int], ...]
    fuse: Callable[[Any, torch.dtype, str], Call] = accelerated


# --- our own calls --------------------------------------------------------------------------------


def fused_join(join: UpsampleConv, dtype: torch.dtype, backend: str) -> Call:
    """`upsample_conv1x1` with the weight folded, and packed for each part at the first call."""
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
    function = ops.operator(name, backend)
    return lambda logits: function(logits, picture_size(logits))


def fused_depthwise(layers: nn.Sequential, dtype: torch.dtype, backend: str) -> Call:
    """`grouped_conv_act` with the batch norm folded."""
    conv: Any = layers[0]
    norm: Any = layers[1]
    with torch.no_grad():
        weight, bias = fold(conv, norm, dtype)
    function = ops.operator("grouped_conv_act", backend)
    return lambda x: function(x, weight, bias, groups=conv.groups, activation="relu")


def fused_pool(module: nn.MaxPool2d, dtype: torch.dtype, backend: str) -> Call:
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    return partial(ops.operator("max_pool", backend), **window)


def fused_normalize(module: Normalize, dtype: torch.dtype, backend: str) -> Call:
    return partial(ops.operator("normalize", backend), mean=MEAN, std=STD, dtype=dtype)


def fused_normalize_conv(module: NormalizeConv, dtype: torch.dtype, backend: str) -> Call:
    """`normalize_conv_act` with the layer's weight folded and packed once."""
    layer: Any = module.layer
    with torch.no_grad():
        weight, bias = fold(layer.conv, layer.norm, dtype)
        packed = ops.operator("pack_weight", backend)(weight, stride=layer.conv.stride)
    function = ops.operator("normalize_conv_act", backend)
    options = {"mean": MEAN, "std": STD, "stride": layer.conv.stride, "activation": "relu"}
    return lambda image: function(image, weight, bias, packed=packed, **options)


def fused_network(network: Labelled, dtype: torch.dtype, backend: str) -> nn.Module:
    """The network through `fassd_kernels.accelerate`, labels out."""
    return fassd_kernels.accelerate(network.network, dtype=dtype, backend=backend, output="labels")


# --- the table ------------------------------------------------------------------------------------


def _at(operator: str, path: str, channels: int, reduction: int) -> NetworkPart:
    return NetworkPart(operator, partial(part_of_network, path), ((channels, reduction),))


def _join(level: int, low: tuple[int, int], skip: tuple[int, int]) -> NetworkPart:
    return NetworkPart("upsample_conv1x1", partial(decoder_join, level), (low, skip), fused_join)


def _resize(name: str, build: Callable[[], nn.Module]) -> NetworkPart:
    maps = ((CLASSES, LOGITS_REDUCTION),)
    return NetworkPart(name, build, maps, partial(fused_resize, name))


def _dapf(alpha: int) -> NetworkPart:
    return NetworkPart("dapf", partial(DAPF, 224, alpha=alpha), ((224, 32),))


# `dapf`, `hardblock`, `mda` and `aspp` are not among the operators: each is the only call of its
# module, and is measured with the modules.
OPERATORS = {
    "conv_act base.0": _at("conv_act", "base.0", 3, 1),
    "conv_act base.3": _at("conv_act", "base.3", 32, 4),
    "conv_act base.5": _at("conv_act", "base.5", 48, 4),
    "asymmetric_conv DAPF.pyBranch2": _at("asymmetric_conv", "DAPF.pyBranch2", 224, 32),
    "asymmetric_conv mda.2": NetworkPart("asymmetric_conv", partial(dilated_pair, 2), ((31, 4),)),
    "upsample_conv1x1 conv1x1_up.0": _join(0, (224, 32), (160, 16)),
    "upsample_conv1x1 conv1x1_up.2": _join(2, (78, 8), (48, 4)),
    "grouped_conv_act depthwise": NetworkPart(
        "grouped_conv_act", depthwise, ((96, 8),), fused_depthwise
    ),
    "max_pool": NetworkPart("max_pool", partial(nn.MaxPool2d, 3, 2, 1), ((64, 2),), fused_pool),
    "upsample": _resize("upsample", PlainUpsample),
    "upsample_argmax": _resize("upsample_argmax", UpsampleArgmax),
    "upsample_confidence": _resize("upsample_confidence", UpsampleConfidence),
}
"""By name: an operator and its place in FASSD-Net, or else in timm's encoders. Those of `PICTURES`
are listed beside it."""

NORMALIZE = "normalize"
NORMALIZE_CONV = "normalize_conv_act base.0"
PICTURES = (NORMALIZE, NORMALIZE_CONV)
"""Operators on pictures of bytes, for which there is only one layout."""

MODULES = {
    "DAPF(224)": _dapf(2),
    **{
        f"MDA({channels}, {dilation})": NetworkPart(
            "mda", partial(MDA, channels, dilation), ((channels, reduction),)
        )
        for channels, dilation, reduction in ((192, 8, 16), (119, 4, 8), (63, 2, 4))
    },
    **{
        f"HarDBlock {path}": _at("hardblock", path, channels, reduction)
        for path, channels, reduction in (
            ("base.4", 48, 4),
            ("base.7", 64, 8),
            ("base.10", 96, 16),
            ("base.13", 160, 32),
            ("denseBlocksUp.0", 192, 16),
            ("denseBlocksUp.1", 119, 8),
            ("denseBlocksUp.2", 63, 4),
        )
    },
    # From the baselines, where it replaces DAPF.
    "ASPP(224)": NetworkPart("aspp", partial(ASPP, 224), ((224, 32),)),
}

MODULE_VARIANTS = {f"DAPF(224), alpha {alpha}": _dapf(alpha) for alpha in (1, 4, 6, 8)}
"""DAPF with alphas other than FASSD-Net's 2; not in the GPU report, whose time is limited."""

PARTS = {
    **OPERATORS,
    NORMALIZE: NetworkPart("normalize", Normalize, ((3, 1),), fused_normalize),
    NORMALIZE_CONV: NetworkPart(
        "normalize_conv_act", NormalizeConv, ((3, 1),), fused_normalize_conv
    ),
    **MODULES,
    **MODULE_VARIANTS,
}

NETWORK_NEEDS = frozenset({"conv_act", "dapf", "mda"})
"""Operators without which an accelerated network is still mostly PyTorch."""


# --- a case made concrete -------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A case with its modules and seeded random weights.

    Attributes:
        case: case that it was made from.
        context: objects that its candidates are built from.
        shapes: shapes of one input set.
    """

    case: Case
    context: BuildContext
    shapes: tuple[tuple[int, ...], ...]

    @property
    def module(self) -> nn.Module:
        """PyTorch's module: float32, evaluation mode, on the CPU."""
        return self.context.module

    @property
    def labels(self) -> bool:
        """True if candidates return the labels of the reference's scores."""
        return isinstance(self.module, Labelled)

    @property
    def arithmetic(self) -> str:
        """Permitted arithmetic: ``tf32`` if cuDNN may use it for float32."""
        convolves = any(isinstance(layer, nn.Conv2d) for layer in self.module.modules())
        on_gpu = self.context.device.type == "cuda"
        tf32 = convolves and on_gpu and torch.backends.cudnn.allow_tf32
        return "tf32" if tf32 and self.case.dtype == "float32" else self.case.dtype

    def tolerance(self, expected: Tensor) -> float:
        """Largest error of an output that matches the reference's."""
        part = self.case.part if expected.is_floating_point() else "labels"
        return TOLERANCES[part][self.arithmetic]

    def candidate(self, name: str) -> BuiltCandidate:
        """A candidate of `FORMS`, or our backend of that name.

        Raises:
            UnavailableError: it cannot be built here; the message says why.
        """
        form = form_named(name)
        return BuiltCandidate(form, form.build(self.context, self.case.torch_dtype))

    def inputs(self, index: int) -> Inputs:
        """The seeded random input set of that number, contiguous; bytes for `PICTURES`."""
        device = self.context.device
        generator = torch.Generator(device).manual_seed(index)
        if self.case.subject in PICTURES:
            image = torch.randint(256, self.shapes[0], generator=generator, device=device)
            return (image.to(torch.uint8),)
        return tuple(
            torch.randn(shape, generator=generator, device=device).to(self.case.torch_dtype)
            for shape in self.shapes
        )

    def reference(self, *inputs: Tensor) -> Tensor:
        """The float64 output that all candidates must give, with TF32 forbidden.

        If they return labels, it is the scores of all classes, in float32: a network in float64
        takes as long as all of its measurements.
        """
        module, precision = self.module, torch.float64
        if isinstance(module, Labelled):
            module, precision = module.network, torch.float32
        reference = copy.deepcopy(module).to(self.context.device, precision)
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.no_grad():
                return reference(*(x.to(precision) if x.is_floating_point() else x for x in inputs))
        finally:
            torch.backends.cudnn.allow_tf32 = allowed


@dataclass(frozen=True)
class BuiltCandidate:
    """A candidate of a subject, and its function from inputs to output, on the device."""

    form: Candidate
    call: Call


def subject_of(case: Case, device: torch.device, compiler: str) -> Subject:
    """Make the subject of a case."""
    if case.part == "networks":
        part, needs = network_part(case.subject), NETWORK_NEEDS
    else:
        part = PARTS[case.subject]
        needs = frozenset({part.operator})
    context = BuildContext(
        randomised(part.build()), device, compiler=compiler, needs=needs, fuse=part.fuse
    )
    size = (case.height, case.width)
    if case.subject in PICTURES:
        return Subject(case, replace(context, fold=copy.deepcopy), ((case.batch, *size, 3),))
    maps = ((channels, *(side // by for side in size)) for channels, by in part.maps)
    return Subject(case, context, tuple((case.batch, *shape) for shape in maps))


def network_part(name: str) -> NetworkPart:
    """A whole network, which returns labels."""
    return NetworkPart("", lambda: Labelled(create_model(name)), ((3, 1),), fused_network)
