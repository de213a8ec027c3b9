"""What is measured: an operator, a module or a network, at one size, batch and dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fassd.bench.forms import (
    BUILDERS,
    CARVEOUT,
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    EAGER,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    PICTURES,
    TRITON,
    TRITON_GRAPH,
    Candidate,
    Form,
    accelerated,
    fused,
    part_of_network,
    picture_call,
    picture_candidate,
    picture_module,
    picture_reference,
    randomised,
)
from fassd.bench.stopwatch import Call, Inputs
from fassd.models import DAPF, MDA, create_model
from fassd.models.aspp import ASPP
from fassd.models.dapf import AsymmetricAtrousBranch
from fassd.models.layers import ConvLayer, resize

GROUPS = {
    "native": (EAGER, NATIVE),
    "library": (EAGER, FOLDED, CUDNN_RELU),
    "ours": (EAGER, TRITON, TRITON_GRAPH, NATIVE),
    "dependent": (EAGER, DEPENDENT),
    "carve-out": (EAGER, CARVEOUT),
    "choice": (EAGER, TRITON, NATIVE, CHOSEN),
    "compile": (EAGER, COMPILE),
    "max-autotune": (EAGER, MAX_AUTOTUNE),
}
"""Candidates that are timed together, interleaved; eager is in each, for the ratio."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One subject at one size, dtype and batch.

    Attributes:
        part: ``operators``, ``modules`` or ``networks``.
        subject: a key of `OPERATORS` or of `PICTURES`, of `MODULES` or of `MODULE_VARIANTS`, or a
            network's name.
        height, width: of the *network's* input in pixels, whatever the subject.
        dtype: a key of `DTYPES`.
        batch: pictures at once.
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

    def map_shape(self, channels: int, reduction: int) -> tuple[int, ...]:
        """Of a map whose sides are the picture's divided by `reduction`."""
        return self.batch, channels, self.height // reduction, self.width // reduction


# --- the operators as FASSD-Net calls them --------------------------------------------------------

# `dapf`, `hardblock`, `mda` and `aspp` are not here: each is the one call that its module makes,
# and the modules are measured as such.

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
        fuse: as in `fassd.bench.forms.Form`.
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


# --- modules and networks -------------------------------------------------------------------------


@dataclass(frozen=True)
class ModulePlace:
    """A module as it stands in FASSD-Net.

    Attributes:
        build: makes it.
        channels: of its input.
        reduction: its input's sides are the picture's divided by this.
        operator: of ours, that computes it.
    """

    build: Callable[[], nn.Module]
    channels: int
    reduction: int
    operator: str


def _mda(channels: int, dilation: int, reduction: int) -> ModulePlace:
    return ModulePlace(partial(MDA, channels, dilation), channels, reduction, "mda")


def _block(path: str, channels: int, reduction: int) -> ModulePlace:
    return ModulePlace(partial(part_of_network, path), channels, reduction, "hardblock")


MODULES = {
    "DAPF(224)": ModulePlace(partial(DAPF, 224, alpha=2), 224, 32, "dapf"),
    "MDA(192, 8)": _mda(192, 8, 16),
    "MDA(119, 4)": _mda(119, 4, 8),
    "MDA(63, 2)": _mda(63, 2, 4),
    "HarDBlock base.4": _block("base.4", 48, 4),
    "HarDBlock base.7": _block("base.7", 64, 8),
    "HarDBlock base.10": _block("base.10", 96, 16),
    "HarDBlock base.13": _block("base.13", 160, 32),
    "HarDBlock denseBlocksUp.0": _block("denseBlocksUp.0", 192, 16),
    "HarDBlock denseBlocksUp.1": _block("denseBlocksUp.1", 119, 8),
    "HarDBlock denseBlocksUp.2": _block("denseBlocksUp.2", 63, 4),
    "ASPP(224)": ModulePlace(partial(ASPP, 224), 224, 32, "aspp"),
}
"""The last one, of the baselines, takes DAPF's place."""

MODULE_VARIANTS = {
    f"DAPF(224), alpha {alpha}": ModulePlace(partial(DAPF, 224, alpha=alpha), 224, 32, "dapf")
    for alpha in (1, 4, 6, 8)
}
"""DAPF at other alphas than FASSD-Net's 2; left out of the GPU report, whose time is short."""

NETWORK_NEEDS = frozenset({"conv_act", "dapf", "mda"})
"""Operators without which an accelerated network is still mostly PyTorch."""


class Labelled(nn.Module):
    """A network and the class of every pixel behind it.

    Shape: (N, 3, H, W) to labels (N, H, W), integers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).argmax(1)


@dataclass(frozen=True)
class Subject:
    """A case made concrete.

    Attributes:
        module: float32, evaluation mode, on the CPU; for `PICTURES` what PyTorch does.
        shapes: of one input set.
        reference: inputs of any floating dtype to the output that all candidates must give, or,
            where these give labels, to the scores of all classes.
        candidate: name to candidate.
        pictures: whether the inputs are pictures of bytes.
        labels: whether candidates give the labels of the reference's scores.
    """

    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    reference: Callable[..., Tensor]
    candidate: Callable[[str], Candidate]
    pictures: bool = False
    labels: bool = False

    @property
    def convolves(self) -> bool:
        return any(isinstance(layer, nn.Conv2d) for layer in self.module.modules())


def subject_of(case: Case, device: torch.device, compiler: str) -> Subject:
    """The subject of a case, with seeded random weights."""
    if case.subject in PICTURES:
        where = (case.subject, case.torch_dtype)
        return Subject(
            picture_module(*where),
            ((case.batch, case.height, case.width, 3),),
            partial(picture_reference, case.subject),
            partial(picture_candidate_of, *where, device, compiler),
            pictures=True,
        )
    form, shapes = form_of(case, device, compiler)
    labels = isinstance(form.module, Labelled)
    # A network in float64 takes as long as all that is measured of it.
    module, precision = form.module, torch.float64
    if isinstance(module, Labelled):
        module, precision = module.network, torch.float32
    return Subject(
        form.module,
        shapes,
        partial(reference_output, module, precision, device),
        partial(candidate_of, form),
        labels=labels,
    )


def candidate_of(form: Form, name: str) -> Candidate:
    """The candidate `name` of `BUILDERS`, or what the backend of ours of that name does.

    Raises:
        UnavailableError: it cannot be had here; the message says why.
    """
    if name in BUILDERS:
        return BUILDERS[name](form)
    return Candidate(name, fused(form, name), channels_last=True)


def picture_candidate_of(
    subject: str, dtype: torch.dtype, device: torch.device, compiler: str, name: str
) -> Candidate:
    """The same for a row of `PICTURES`."""
    if name in BUILDERS:
        return picture_candidate(name, subject, dtype, device, compiler)
    return Candidate(name, picture_call(subject, name, dtype, device))


def form_of(
    case: Case, device: torch.device, compiler: str
) -> tuple[Form, tuple[tuple[int, ...], ...]]:
    """What the candidates of a case are made from, and the shapes of an input set."""
    where = (case.torch_dtype, device, compiler)
    if case.part == "operators":
        operator = OPERATORS[case.subject]
        form = Form(
            randomised(operator.build()), *where, frozenset({operator.operator}), operator.fuse
        )
        return form, tuple(case.map_shape(*place) for place in operator.maps)
    if case.part == "modules":
        module = {**MODULES, **MODULE_VARIANTS}[case.subject]
        form = Form(randomised(module.build()), *where, frozenset({module.operator}))
        return form, (case.map_shape(module.channels, module.reduction),)
    network = Labelled(randomised(create_model(case.subject)))
    return Form(network, *where, NETWORK_NEEDS, fused_network), (case.map_shape(3, 1),)


def fused_network(network: Labelled, dtype: torch.dtype, backend: str) -> nn.Module:
    """The network through `fassd_kernels.accelerate`, labels out."""
    import fassd_kernels

    return fassd_kernels.accelerate(network.network, dtype=dtype, backend=backend, output="labels")


def reference_output(
    module: nn.Module, precision: torch.dtype, device: torch.device, *inputs: Tensor
) -> Tensor:
    """The eager output in `precision`, tf32 forbidden."""
    reference = copy.deepcopy(module).to(device, precision)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            return reference(*(x.to(precision) for x in inputs))
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def input_set(index: int, subject: Subject, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The seeded random input set number `index`, contiguous; of `PICTURES` one of bytes."""
    generator = torch.Generator(device).manual_seed(index)
    if subject.pictures:
        (shape,) = subject.shapes
        return (torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device),)
    return tuple(
        torch.randn(shape, generator=generator, device=device).to(dtype) for shape in subject.shapes
    )
