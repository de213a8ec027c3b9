"""What is measured: an operator, a module or a network, at one size, batch and dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.operators import (
    OPERATORS,
    PICTURES,
    part_of_network,
    picture_call,
    picture_candidate,
    picture_module,
    picture_reference,
)
from benchmarks.peers import BUILDERS, Candidate, Form, fused, randomised
from benchmarks.timing import Inputs
from fassd.models import DAPF, MDA, create_model
from fassd.models.aspp import ASPP

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
