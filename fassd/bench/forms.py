"""What the fused kernels have to beat: the same computation through PyTorch, in its best forms.

Every form computes the same function of the same float32 weights and input, and is compared with
the reference before it is timed. Batch-norm statistics and PReLU slopes are random, so that a
mistake in folding shows.
"""

from __future__ import annotations

import copy
import operator
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fassd.bench.stopwatch import Call
from fassd.models import DAPF, create_model
from fassd.models.dapf import AsymmetricAtrousBranch
from fassd.models.layers import ConvLayer

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
CUDNN_RELU = "cudnn-relu"
COMPILE = "compile"
MAX_AUTOTUNE = "max-autotune"
TRITON = "triton"
TRITON_GRAPH = "triton-graph"
NATIVE = "native"
DEPENDENT = "native-dependent"
CARVEOUT = "native-carve-out"
CHOSEN = "auto"

TITLES = {
    EAGER: "eager",
    FOLDED: "channels_last, BN folded, cudnn.benchmark",
    CUDNN_RELU: "the same, aten::cudnn_convolution_relu",
    COMPILE: "torch.compile",
    MAX_AUTOTUNE: "torch.compile max-autotune",
    TRITON: "ours, Triton",
    TRITON_GRAPH: "ours, Triton, GraphRunner",
    NATIVE: "ours, C++/CUDA",
    DEPENDENT: "ours, CUDA, dependent launches",
    CARVEOUT: "ours, CUDA, most shared memory",
    CHOSEN: "ours, the fastest backend of each call",
}
OURS = (NATIVE, DEPENDENT, CARVEOUT, CHOSEN, TRITON, TRITON_GRAPH)

SWITCHED = {
    "dependent": {"FASSD_KERNELS_DEPENDENT_LAUNCH": "1"},
    "carve-out": {"FASSD_KERNELS_CARVEOUT": "100"},
}
"""Environments of the CUDA kernels, read once by a process: they begin while those before them end;
they ask for the most shared memory, in per cent, that a multiprocessor has."""


class UnavailableError(Exception):
    """There is nothing to time, for a reason that the report states; not a failure."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a subject.

    Attributes:
        name: key of `TITLES`.
        call: inputs to output, all on the device and in the dtype of the case.
        channels_last: the layout of the inputs that it gets.
        cudnn_benchmark: whether cuDNN may search for its fastest algorithm.
        own_graph: whether a call replays a CUDA graph of its own, which no other can capture.
    """

    name: str
    call: Call
    channels_last: bool = False
    cudnn_benchmark: bool = False
    own_graph: bool = False

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


def accelerated(module: nn.Module, dtype: torch.dtype, backend: str) -> nn.Module:
    """`module` through `fassd_kernels.accelerate`.

    Raises:
        UnavailableError: there is nothing to swap in it.
    """
    import fassd_kernels

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return fassd_kernels.accelerate(module, dtype=dtype, backend=backend)
        except RuntimeWarning as nothing:
            raise UnavailableError(str(nothing)) from None


@dataclass(frozen=True)
class Form:
    """What a candidate is made from.

    Attributes:
        module: the reference, float32, evaluation mode.
        dtype: of weights and input.
        device: where it runs.
        compiler: backend of `torch.compile`.
        needs: operators that a backend of ours must have before there is something to time.
        fuse: a module on the device, a dtype and a backend's name to what ours is.
    """

    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    compiler: str = "inductor"
    needs: frozenset[str] = frozenset()
    fuse: Callable[[Any, torch.dtype, str], Call] = accelerated


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

    Folding is done in float64, the result is float32. Batch norms that stand before a convolution's
    padding (MDA's first and last) cannot be folded and stay.
    """
    folded = copy.deepcopy(module).eval().double()
    for parent in list(folded.modules()):
        for conv_name, norm_path in CONV_BN_PAIRS:
            fold_pair(parent, conv_name, norm_path)
    return folded.float()


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


# --- convolutions that cuDNN applies ReLU to ------------------------------------------------------


class CudnnConvReLU(nn.Module):
    """A convolution and the ReLU behind it as one call of cuDNN.

    Shape: (N, in_channels, H, W) to the convolution's.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return torch.ops.aten.cudnn_convolution_relu(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


class CudnnDAPF(nn.Module):
    """A `DAPF` whose batch norms are folded, with `CudnnConvReLU`s. (N, C, H, W) to the same."""

    def __init__(self, dapf: DAPF) -> None:
        super().__init__()
        branches = (dapf.pyBranch2, dapf.pyBranch3, dapf.pyBranch4)
        self.branches = nn.ModuleList([CudnnConvReLU(dapf.conv1x1), *map(cudnn_branch, branches)])
        self.fuse = CudnnConvReLU(dapf.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([branch(x) for branch in self.branches], 1))


def cudnn_branch(branch: AsymmetricAtrousBranch) -> nn.Module:
    convolutions = (branch.atrous_conv3x1, branch.atrous_conv1x3)
    return nn.Sequential(*map(CudnnConvReLU, convolutions))


def with_cudnn_relus(folded: nn.Module) -> nn.Module:
    """`folded`, changed in place, with every convolution that goes straight into a ReLU as one."""
    if isinstance(folded, ConvLayer):
        return CudnnConvReLU(folded.conv)
    if isinstance(folded, AsymmetricAtrousBranch):
        return cudnn_branch(folded)
    if isinstance(folded, DAPF):
        return CudnnDAPF(folded)
    for name, child in folded.named_children():
        setattr(folded, name, with_cudnn_relus(child))
    return folded


# --- the forms ------------------------------------------------------------------------------------


def eager(form: Form) -> Candidate:
    module = copy.deepcopy(form.module).to(form.device, form.dtype)
    return Candidate(EAGER, module)


def folded_channels_last(form: Form) -> Candidate:
    return Candidate(FOLDED, folded_module(form), channels_last=True, cudnn_benchmark=True)


def cudnn_relus(form: Form) -> Candidate:
    """`folded_channels_last` with `aten::cudnn_convolution_relu` wherever it applies.

    Raises:
        UnavailableError: the device is not CUDA's, or it applies nowhere.
    """
    if form.device.type != "cuda":
        raise UnavailableError("aten::cudnn_convolution_relu needs a CUDA device")
    module = with_cudnn_relus(folded_module(form))
    if not any(isinstance(part, CudnnConvReLU) for part in module.modules()):
        raise UnavailableError("no convolution goes straight into a ReLU")
    return Candidate(CUDNN_RELU, module, channels_last=True, cudnn_benchmark=True)


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


def triton(form: Form) -> Candidate:
    """The subject through our Triton kernels; see `fused` for the errors."""
    return Candidate(TRITON, fused(form, "triton"), channels_last=True)


def triton_graph(form: Form) -> Candidate:
    """The same in a `fassd_kernels.GraphRunner`, which copies the input in and the output out.

    Raises:
        UnavailableError: as `fused`, or the device is not CUDA's.
    """
    import fassd_kernels

    module = fused(form, "triton")
    if form.device.type != "cuda":
        raise UnavailableError("graphs are CUDA's")
    assert isinstance(module, nn.Module)
    runner = fassd_kernels.GraphRunner(module)
    return Candidate(TRITON_GRAPH, runner, channels_last=True, own_graph=True)


def native(form: Form) -> Candidate:
    """The subject through our compiled kernels of the device: C++ or CUDA."""
    return Candidate(NATIVE, fused(form, form.device.type), channels_last=True)


def switched(name: str, group: str, form: Form) -> Candidate:
    """`native` in a process that was started for it.

    Raises:
        UnavailableError: as `fused`, or the process was started without the environment.
    """
    if SWITCHED[group].items() - os.environ.items():
        raise UnavailableError(f"this process was not started with {SWITCHED[group]}")
    return replace(native(form), name=name)


def chosen(form: Form) -> Candidate:
    """The subject on the backend that the table of this GPU names for each of its calls."""
    require_operators(form.device.type, form.needs, form.device)
    module = copy.deepcopy(form.module).to(form.device)
    return Candidate(CHOSEN, form.fuse(module, form.dtype, CHOSEN), channels_last=True)


def fused(form: Form, backend: str) -> Call:
    """The subject through a backend of ours, by name.

    Raises:
        UnavailableError: the backend is not there, has not all operators that the subject needs,
            or has nothing to swap in it.
    """
    require_operators(backend, form.needs, form.device)
    return form.fuse(copy.deepcopy(form.module).to(form.device), form.dtype, backend)


def require_operators(backend_name: str, needs: frozenset[str], device: torch.device) -> None:
    """See whether a backend of ours runs some operators on a device.

    Raises:
        UnavailableError: it does not; the message says why.
    """
    import fassd_kernels

    backend = next((b for b in fassd_kernels.backends() if b.name == backend_name), None)
    if backend is None:
        raise UnavailableError(f"there is no backend {backend_name}")
    if not backend.available:
        raise UnavailableError(f"backend {backend_name} is not available: {backend.reason}")
    if not backend.takes(device.type):
        raise UnavailableError(
            f"backend {backend_name} takes {backend.device} tensors, not {device.type}"
        )
    missing = sorted(needs - set(backend.operators))
    if missing:
        raise UnavailableError(
            f"not implemented yet: backend {backend_name} has no {', '.join(missing)}"
        )


BUILDERS: dict[str, Callable[[Form], Candidate]] = {
    EAGER: eager,
    FOLDED: folded_channels_last,
    CUDNN_RELU: cudnn_relus,
    COMPILE: compiled,
    MAX_AUTOTUNE: max_autotuned,
    TRITON: triton,
    TRITON_GRAPH: triton_graph,
    NATIVE: native,
    DEPENDENT: partial(switched, DEPENDENT, "dependent"),
    CARVEOUT: partial(switched, CARVEOUT, "carve-out"),
    CHOSEN: chosen,
}


# --- operators on pictures of bytes ---------------------------------------------------------------

NORMALIZE = "normalize"
NORMALIZE_CONV = "normalize_conv_act base.0"
PICTURES = (NORMALIZE, NORMALIZE_CONV)

MEAN = tuple(255 * value for value in (0.406, 0.456, 0.485))
STD = tuple(255 * value for value in (0.225, 0.224, 0.229))


def part_of_network(path: str) -> nn.Module:
    return create_model("fassd_net").get_submodule(path)


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
