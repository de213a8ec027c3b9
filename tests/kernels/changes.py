"""Ways to change a module between two calls: its numbers, its tensors, its settings, its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from kernels.conftest import first, shake
from torch import Tensor, nn
from torch.nn import functional as F


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))


def random_input(module: nn.Module) -> Tensor:
    """One that a fused module takes, unlike what normalizes to 0 and 1."""
    channels = module.get_submodule(module.lead).weight.shape[1]
    return torch.randn(4, channels, 9, 9) * 5 + 3


# --- numbers --------------------------------------------------------------------------------------


def edit_in_place(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)


def edit_statistics(module: nn.Module) -> None:
    for norm in norms(module):
        norm.running_var.add_(0.5)


def load_other_weights(module: nn.Module) -> None:
    module.load_state_dict(shake(copy.deepcopy(module), seed=5).state_dict())


def step(module: nn.Module, kind: type = torch.optim.Adam, **settings: bool) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    kind(module.parameters(), lr=1e-2, **settings).step()


def step_of_fused_sgd(module: nn.Module) -> None:
    """Fused optimizers edit without counting it."""
    step(module, torch.optim.SGD, fused=True)


def step_of_fused_adam(module: nn.Module) -> None:
    step(module, torch.optim.Adam, fused=True)


def to_double_and_back(module: nn.Module) -> None:
    module.double().float()
    edit_in_place(module)


def edit_through_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.9)


def edit_one_value_through_numpy(module: nn.Module) -> None:
    first(module, nn.Conv2d).weight.detach().numpy()[-1, -1, 0, 0] += 1


def edit_through_dlpack(module: nn.Module) -> None:
    torch.from_dlpack(first(module, nn.Conv2d).weight.detach()).neg_()


def edit_through_the_storage(module: nn.Module) -> None:
    weight = first(module, nn.Conv2d).weight
    weight.untyped_storage().copy_((weight.detach() * 2).untyped_storage())


def edit_flat_buffer(module: nn.Module) -> None:
    """As optimizers do that keep all parameters in one range of addresses."""
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    sizes = [parameter.numel() for parameter in module.parameters()]
    for parameter, part in zip(module.parameters(), flat.split(sizes), strict=True):
        parameter.data = part.view(parameter.shape)
    with torch.no_grad():
        module(random_input(module))
    flat.mul_(0.9)


def recalibrate(module: nn.Module) -> None:
    """Forward passes in training mode edit the statistics and count it elsewhere, if at all."""
    with torch.no_grad():
        module.train()(random_input(module))
    module.eval()


def recalibrate_without_counting(module: nn.Module) -> None:
    for norm in norms(module):
        norm.num_batches_tracked = None
    recalibrate(module)


def recalibrate_one_batch_norm(module: nn.Module) -> None:
    norm = first(module, nn.BatchNorm2d)
    norm.train()(torch.randn(4, norm.num_features, 9, 9) * 5 + 3)
    norm.eval()


# --- tensors --------------------------------------------------------------------------------------


def assign_other_weights(module: nn.Module) -> None:
    state = shake(copy.deepcopy(module), seed=6).state_dict()
    module.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)


def replace_parameter(module: nn.Module) -> None:
    conv = first(module, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight.detach() * 0.5)


def swap_tensors(module: nn.Module) -> None:
    conv = first(module, nn.Conv2d)
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * 2))


def set_data_to_strided(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.data = torch.full((1, 1, 1, 1), 0.01).expand(conv.weight.shape)


def statistics_as_attributes(module: nn.Module) -> None:
    """Tensors that are no buffers: nothing counts their edits."""
    for norm in norms(module):
        mean = norm.running_mean + 0.5
        del norm.running_mean
        norm.running_mean = mean


# --- settings and parts ---------------------------------------------------------------------------


def replace_batch_norm(module: nn.Module) -> None:
    norm = first(module, nn.BatchNorm2d)
    name = next(name for name, part in module.named_modules() if part is norm)
    other = shake(nn.BatchNorm2d(norm.num_features, eps=0.1).eval(), seed=8)
    module.set_submodule(name, other)


def change_eps(module: nn.Module) -> None:
    for norm in norms(module):
        norm.eps = 0.5


def change_dilation(module: nn.Module) -> None:
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[1] == 3]
    if not convs:
        change_activation(module)  # a 1x1 has nothing to dilate
        return
    conv = convs[-1]
    conv.dilation = (conv.dilation[0], 3)
    conv.padding = (conv.padding[0], 3)


def change_activation(module: nn.Module) -> None:
    """Exchange a part for one of another kind."""
    for name, part in module.named_modules():
        if isinstance(part, nn.PReLU):
            return module.set_submodule(name, nn.Tanh())
        if isinstance(part, nn.BatchNorm2d):
            return module.set_submodule(name, nn.InstanceNorm2d(part.num_features))
    return None


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((2, 3), keepdim=True))


class Scaled(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class Computed(nn.Conv2d):
    scale = 2.0

    @property
    def weight(self) -> Tensor:
        return self.stored * self.scale


def change_convolution(module: nn.Module) -> None:
    first(module, nn.Conv2d).__class__ = Standardized


def scale_convolution(module: nn.Module) -> None:
    first(module, nn.Conv2d).__class__ = Scaled


def compute_weight(module: nn.Module) -> None:
    conv = first(module, nn.Conv2d)
    conv.stored = conv._parameters.pop("weight")
    conv.__class__ = Computed


def wrap_around(module: nn.Module) -> None:
    """The usual way to make a network's output tile without a seam."""
    conv = first(module, nn.Conv2d)

    def circular(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = F.pad(x, [side for side in conv.padding[::-1] for _ in "LR"], mode="circular")
        return F.conv2d(padded, weight * 1.5, bias, conv.stride, 0, conv.dilation)

    conv._conv_forward = circular


def replace_method(module: nn.Module) -> None:
    first(module, nn.BatchNorm2d).forward = torch.sigmoid


class Doubled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(copy.copy(module.__dict__))
        self.plain = (module,)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.plain[0](x)


def wrap_part(module: nn.Module) -> None:
    """Put something with the same attributes, which computes something else, in a part's place."""
    for name, child in module.named_children():
        inside = child[0] if isinstance(child, nn.ModuleList) else child
        if inside._modules:
            parent, name = (child, "0") if inside is not child else (module, name)
            setattr(parent, name, Doubled(inside))
            return
    change_activation(module)


# Those that are noticed where no contents are compared.
COUNTED = (
    edit_in_place,
    load_other_weights,
    step,
    replace_parameter,
    swap_tensors,
    set_data_to_strided,
    recalibrate,
    recalibrate_one_batch_norm,
    recalibrate_without_counting,
)
CHANGES = (
    *COUNTED,
    edit_statistics,
    assign_other_weights,
    step_of_fused_sgd,
    step_of_fused_adam,
    to_double_and_back,
    edit_through_data,
    edit_one_value_through_numpy,
    edit_through_dlpack,
    edit_through_the_storage,
    edit_flat_buffer,
    statistics_as_attributes,
    replace_batch_norm,
    change_eps,
    change_dilation,
    change_activation,
    change_convolution,
    scale_convolution,
    compute_weight,
    wrap_around,
    replace_method,
    wrap_part,
)
