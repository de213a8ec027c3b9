"""What the fused kernels have to beat: the same computation through PyTorch, in its best forms.

Every form computes the same function of the same float32 weights and input, and is compared with
the reference before it is timed. Batch-norm statistics and PReLU slopes are random, so that a
mistake in folding shows.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.timing import Call

CONV_BN_PAIRS = (
    ("conv", "norm"),
    ("conv", "bn_prelu.bn"),
    ("atrous_conv3x1", "bn3x1"),
    ("atrous_conv1x3", "bn1x3"),
    ("conv1x1", "bn1x1"),
    ("conv1", "bn1"),
)
"""Attributes of one module: a convolution, and the batch norm that its output alone goes into."""

EAGER = "eager"
FOLDED = "channels_last"
COMPILE = "compile"
MAX_AUTOTUNE = "max-autotune"
OURS = "ours"

TITLES = {
    EAGER: "eager",
    FOLDED: "channels_last, BN folded, cudnn.benchmark",
    COMPILE: "torch.compile",
    MAX_AUTOTUNE: "torch.compile max-autotune",
    OURS: "ours",
}


class UnavailableError(Exception):
    """There is nothing to time, for a reason that the report states; not a failure."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a subject.

    Attributes:
        name: key of `TITLES`.
        call: input to output, both on the device and in the dtype of the case.
        channels_last: the layout of the input that it gets.
        cudnn_benchmark: whether cuDNN may search for its fastest algorithm.
    """

    name: str
    call: Call
    channels_last: bool = False
    cudnn_benchmark: bool = False

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Without gradients, and with `cudnn_benchmark` as asked for."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        try:
            with torch.no_grad():
                yield
        finally:
            torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class Form:
    """What a candidate is made from.

    Attributes:
        module: the reference, float32, evaluation mode.
        dtype: of weights and input.
        device: where it runs.
        compiler: backend of `torch.compile`.
        needs: operators that a backend of ours must have before there is something to time.
    """

    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    compiler: str = "inductor"
    needs: frozenset[str] = frozenset()


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give `module` seeded weights that keep the variance of activations; set it to evaluation."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                normal(layer.weight, (2 / layer.weight[0].numel()) ** 0.5)
                if layer.bias is not None:
                    normal(layer.bias, 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                uniform(layer.weight, 0.8, 1.2)
                normal(layer.bias, 0.1)
                normal(layer.get_buffer("running_mean"), 0.1)
                uniform(layer.get_buffer("running_var"), 0.5, 1.5)
            elif isinstance(layer, nn.PReLU):
                uniform(layer.weight, 0.1, 0.4)
    return module.eval()


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of `module` whose batch norms are folded into the convolutions before them.

    Folding is done in float64 and cast back. Batch norms that stand before a convolution's
    padding (MDA's first and last) cannot be folded and stay.
    """
    dtype = next(module.parameters()).dtype
    folded = copy.deepcopy(module).eval().double()
    for parent in list(folded.modules()):
        for conv_name, norm_path in CONV_BN_PAIRS:
            fold_pair(parent, conv_name, norm_path)
    return folded.to(dtype)


def fold_pair(parent: nn.Module, conv_name: str, norm_path: str) -> None:
    conv = getattr(parent, conv_name, None)
    try:
        norm = operator.attrgetter(norm_path)(parent)
    except AttributeError:
        return
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        return
    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
    owner_path, _, attribute = norm_path.rpartition(".")
    setattr(parent.get_submodule(owner_path), attribute, nn.Identity())


# --- the forms ------------------------------------------------------------------------------------


def eager(form: Form) -> Candidate:
    module = copy.deepcopy(form.module).to(form.device, form.dtype)
    return Candidate(EAGER, module)


def folded_channels_last(form: Form) -> Candidate:
    return Candidate(FOLDED, folded_module(form), channels_last=True, cudnn_benchmark=True)


def compiled(form: Form) -> Candidate:
    call = torch.compile(folded_module(form), dynamic=False, backend=form.compiler)
    return Candidate(COMPILE, call, channels_last=True, cudnn_benchmark=True)


def max_autotuned(form: Form) -> Candidate:
    """Inductor's own CUDA graphs are off: the timing captures a graph itself, without the copy of
    the input that Inductor's graph makes, and rotates the input sets inside it.
    """
    call = torch.compile(folded_module(form), dynamic=False, mode="max-autotune-no-cudagraphs")
    return Candidate(MAX_AUTOTUNE, call, channels_last=True, cudnn_benchmark=True)


def folded_module(form: Form) -> nn.Module:
    # `to` with a memory format takes parameters of four dimensions only; the others are left.
    folded = fold_batch_norms(form.module).to(form.device, form.dtype)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def ours(form: Form) -> Candidate:
    """The subject through `fassd_kernels.accelerate`, with the backend of the device by name.

    Raises:
        UnavailableError: the backend is not there, has not all operators that the subject needs,
            or has nothing to swap in it.
    """
    import fassd_kernels

    require_operators(form.device.type, form.needs)
    module = copy.deepcopy(form.module).to(form.device)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            call = fassd_kernels.accelerate(module, dtype=form.dtype, backend=form.device.type)
        except RuntimeWarning as nothing:
            raise UnavailableError(str(nothing)) from None
    return Candidate(OURS, call, channels_last=True)


def require_operators(backend_name: str, needs: frozenset[str]) -> None:
    import fassd_kernels

    backend = next((b for b in fassd_kernels.backends() if b.name == backend_name), None)
    if backend is None:
        raise UnavailableError(f"there is no backend {backend_name}")
    if not backend.available:
        raise UnavailableError(f"backend {backend_name} is not available: {backend.reason}")
    missing = sorted(needs - set(backend.operators))
    if missing:
        raise UnavailableError(
            f"not implemented yet: backend {backend_name} has no {', '.join(missing)}"
        )


BUILDERS: dict[str, Callable[[Form], Candidate]] = {
    EAGER: eager,
    FOLDED: folded_channels_last,
    COMPILE: compiled,
    MAX_AUTOTUNE: max_autotuned,
    OURS: ours,
}

GROUPS = {
    "library": (EAGER, FOLDED),
    "ours": (EAGER, OURS),
    "compile": (EAGER, COMPILE),
    "max-autotune": (EAGER, MAX_AUTOTUNE),
}
"""Candidates that are timed together, interleaved; eager is in each, for the ratio."""


# --- the normalize operator -----------------------------------------------------------------------

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


def normalize_candidate(name: str, dtype: torch.dtype, device: torch.device, compiler: str) -> Any:
    """The candidate `name` of the operator row; see `BUILDERS` for the errors."""
    module = Normalize(dtype).to(device)
    if name == EAGER:
        return Candidate(EAGER, module)
    if name == COMPILE:
        return Candidate(COMPILE, torch.compile(module, dynamic=False, backend=compiler))
    import fassd_kernels

    require_operators(device.type, frozenset({"normalize"}))
    function = fassd_kernels.ops.operator("normalize", device.type)
    return Candidate(OURS, lambda image: function(image, mean=MEAN, std=STD, dtype=dtype))


def normalize_reference(image: Tensor) -> Tensor:
    """`normalize` in float64, (N, 3, H, W)."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64, device=image.device) for values in (MEAN, STD)
    )
    return ((image.flip(-1).double() - mean) / std).permute(0, 3, 1, 2)
