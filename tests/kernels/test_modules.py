"""FusedDAPF and FusedMDA are the reference modules, faster: numbers, gradients, freshness."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels.conftest import MODULES, relative_error, shake
from torch import Tensor, nn
from torch.nn import functional as F

import fassd_kernels
from fassd.models import DAPF, MDA, HarDBlock
from fassd.models.aspp import ASPP
from fassd.models.layers import ConvLayer
from fassd_kernels import (
    BackendError,
    FusedASPP,
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
)
from fassd_kernels.accelerate import FUSED
from fassd_kernels.modules import Fused, snapshot
from fassd_kernels.ops import checksum, pieces_of

BACKENDS = [b.name for b in fassd_kernels.backends() if b.available and b.takes("cpu")]
FLOAT32 = 2e-6


def fuse(module: nn.Module, backend: str = "auto") -> Fused:
    fused_class = next(fused for plain, fused in FUSED.items() if isinstance(module, plain))
    return fused_class.from_reference(module, backend)


def expected_of(module: nn.Module, x: Tensor) -> Tensor:
    """The reference module's output, computed in float64."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(x.double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_equals_the_reference(
    reference: nn.Module, picture: Tensor, backend: str, layout: str, operator_calls: list[str]
) -> None:
    x = picture
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.randn(2, x.shape[1] + 3, 44, 53)[:, 2:-1, 1:42, :50]
    with torch.no_grad():
        result = fuse(reference, backend)(x)
    assert operator_calls == [fuse(reference).operator]
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(result, expected_of(reference, x)) <= FLOAT32


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2), (torch.float64, 1e-12)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(
    reference: nn.Module, picture: Tensor, backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    x = picture.to(dtype)
    fused = fuse(copy.deepcopy(reference).to(dtype), backend)
    with torch.no_grad():
        result = fused(x)
    assert result.dtype == dtype
    assert relative_error(result, expected_of(fused_as_reference(fused), x)) <= tolerance


def fused_as_reference(fused: Fused) -> nn.Module:
    """A plain module with the fused one's (already rounded) parameters."""
    plain = MODULES[fused.made_by]()
    plain.to(next(fused.parameters()).dtype).load_state_dict(fused.state_dict())
    return plain.eval()


@pytest.mark.parametrize(
    ("fused_class", "arguments"),
    [
        (FusedDAPF, {"inplanes": 31, "alpha": 3}),
        (FusedMDA, {"nIn": 63, "d": 2}),
        (FusedHarDBlock, {"in_channels": 9, "growth_rate": 6, "grmul": 1.7, "n_layers": 4}),
        (FusedASPP, {"inplanes": 9, "width": 7}),
        (FusedConvLayer, {"in_channels": 9, "out_channels": 7, "stride": 2}),
    ],
)
def test_constructors_and_state_dict(fused_class: type[Fused], arguments: dict[str, int]) -> None:
    plain_class = next(plain for plain, known in FUSED.items() if known is fused_class)
    plain, fused = shake(plain_class(**arguments)).eval(), fused_class(**arguments)
    assert isinstance(fused, plain_class)
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, next(iter(arguments.values())), 12, 13)
    with torch.no_grad():
        assert relative_error(fused.eval()(x), expected_of(plain, x)) <= FLOAT32


def test_from_reference_shares_parameters_and_leaves_the_module_alone(reference: nn.Module) -> None:
    before = dict(reference.named_parameters())
    fused = fuse(reference)
    assert {k: id(p) for k, p in fused.named_parameters()} == {k: id(p) for k, p in before.items()}
    assert type(reference) in FUSED
    fused.register_forward_hook(lambda *_: None)
    assert not reference._forward_hooks


# --- training and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_the_reference(
    reference: nn.Module, picture: Tensor, training: bool
) -> None:
    plain = copy.deepcopy(reference).train(training)
    fused = fuse(copy.deepcopy(reference)).train(training)
    outputs, gradients = [], []
    for module in (plain, fused):
        x = picture.clone().requires_grad_()
        output = module(x)
        output.sin().sum().backward()
        outputs.append(output.detach())
        gradients.append({"input": x.grad, **{k: p.grad for k, p in module.named_parameters()}})
    assert relative_error(outputs[1], outputs[0]) <= FLOAT32
    # Whole gradient vectors are compared: a single bias' gradient is a sum with cancellation.
    for key, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, key
        assert relative_error(gradients[1][key], gradient) <= 2e-4, key
    for key, buffer in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(key), buffer, rtol=0, atol=0)


def test_gradcheck_in_eval_mode() -> None:
    for module, shape in (
        (DAPF(4), (1, 4, 3, 14)),
        (MDA(4, 2), (1, 4, 5, 4)),
        (ASPP(3, 2, (1, 2)), (1, 3, 3, 4)),
        (HarDBlock(3, 2, 1.7, 4), (1, 3, 3, 4)),
        (ConvLayer(3, 2, stride=2), (1, 3, 3, 4)),
    ):
        fused = fuse(shake(module.double()).eval())
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, fused=fused: fused(x), (x,))


def test_training_steps_follow_the_reference(reference: nn.Module, picture: Tensor) -> None:
    plain, fused = copy.deepcopy(reference).train(), fuse(copy.deepcopy(reference)).train()
    for module in (plain, fused):
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(picture).square().mean().backward()
            optimizer.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value, rtol=0, atol=0)
    plain.eval(), fused.eval()
    with torch.no_grad():
        assert relative_error(fused(picture), expected_of(plain, picture)) <= FLOAT32


# --- packed weights stay fresh ------------------------------------------------------------------


def edit_in_place(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)


def edit_statistics(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_var.add_(0.5)


def load_other_weights(module: nn.Module) -> None:
    module.load_state_dict(shake(copy.deepcopy(module), seed=5).state_dict())


def assign_other_weights(module: nn.Module) -> None:
    state = shake(copy.deepcopy(module), seed=6).state_dict()
    module.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)


def step(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(module.parameters(), lr=1e-2).step()


def replace_parameter(module: nn.Module) -> None:
    conv = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    conv.weight = nn.Parameter(conv.weight.detach() * 0.5)


def replace_batch_norm(module: nn.Module) -> None:
    name, bn = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d))
    other = shake(nn.BatchNorm2d(bn.num_features, eps=0.1).eval(), seed=8)
    module.get_submodule(name.rpartition(".")[0]).__setattr__(name.rpartition(".")[2], other)


def first(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return next(part for part in module.modules() if isinstance(part, kind))


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
        module(torch.zeros(1, module.get_submodule(module.lead).weight.shape[1], 5, 5))
    flat.mul_(0.9)


def set_data_to_strided(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.data = torch.full((1, 1, 1, 1), 0.01).expand(conv.weight.shape)


def swap_tensors(module: nn.Module) -> None:
    conv = first(module, nn.Conv2d)
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * 2))


def statistics_as_attributes(module: nn.Module) -> None:
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            mean = bn.running_mean + 0.5
            del bn.running_mean
            bn.running_mean = mean


def recalibrate(module: nn.Module) -> None:
    """Forward passes in training mode edit the statistics and count it elsewhere, if at all."""
    channels = module.get_submodule(module.lead).weight.shape[1]
    with torch.no_grad():
        module.train()(torch.randn(4, channels, 9, 9) * 5 + 3)
    module.eval()


def recalibrate_without_counting(module: nn.Module) -> None:
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.num_batches_tracked = None
    recalibrate(module)


def recalibrate_one_batch_norm(module: nn.Module) -> None:
    bn = first(module, nn.BatchNorm2d)
    bn.train()(torch.randn(4, bn.num_features, 9, 9) * 5 + 3)
    bn.eval()


def to_double_and_back(module: nn.Module) -> None:
    module.double().float()
    edit_in_place(module)


@pytest.mark.parametrize(
    "edit",
    [
        edit_in_place,
        edit_statistics,
        load_other_weights,
        assign_other_weights,
        step,
        replace_parameter,
        replace_batch_norm,
        to_double_and_back,
        edit_through_data,
        edit_one_value_through_numpy,
        edit_through_dlpack,
        edit_through_the_storage,
        edit_flat_buffer,
        set_data_to_strided,
        swap_tensors,
        recalibrate,
        recalibrate_one_batch_norm,
    ],
)
def test_packed_weights_are_rebuilt(
    reference: nn.Module, picture: Tensor, edit: Callable[[nn.Module], None]
) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        before = fused(picture)
    edit(fused)
    with torch.no_grad():
        after = fused(picture)
    assert relative_error(after, before) > 1e-4, "the edit changes nothing: a poor test"
    assert relative_error(after, expected_of(fused_with_its_parts(fused), picture)) <= FLOAT32


def fused_with_its_parts(fused: Fused) -> nn.Module:
    """A plain module made of (copies of) the fused module's present submodules."""
    plain = fused_as_reference(fused)
    for name, child in fused.named_children():
        setattr(plain, name, copy.deepcopy(child))
    return plain


def test_packed_weights_are_kept_between_calls(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        fused(picture)
        kept = fused._packed
        fused(picture)
    assert kept is not None and fused._packed is kept


def test_half(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        fused(picture)
        fused.half()
        x = picture.half()
        result = fused(x)
    assert result.dtype == torch.float16
    assert relative_error(result, expected_of(fused_as_reference(fused), x)) <= 2e-3


@pytest.mark.parametrize("edit", [statistics_as_attributes, recalibrate_without_counting])
def test_statistics_that_nothing_counts(
    reference: nn.Module, picture: Tensor, edit: Callable[[nn.Module], None]
) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        before = fused(picture)
        edit(fused)
        after = fused(picture)
        assert relative_error(after, before) > 1e-4, "the edit changes nothing: a poor test"
        expected = type(reference).forward(fused, picture)
        assert relative_error(after, expected) <= 2 * FLOAT32


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No contents are compared, as where one would have to wait for a device."""
    monkeypatch.setattr(snapshot, "IS_ON_CPU", lambda tensor: False)


@pytest.mark.parametrize(
    "edit",
    [
        edit_in_place,
        load_other_weights,
        step,
        replace_parameter,
        swap_tensors,
        set_data_to_strided,
        recalibrate,
        recalibrate_one_batch_norm,
        recalibrate_without_counting,
    ],
)
def test_edits_that_are_noticed_without_contents(
    as_on_a_gpu: None, edit: Callable[[nn.Module], None]
) -> None:
    torch.manual_seed(0)
    fused = fuse(shake(MDA(16, 2)).eval())
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        before = fused(x)
        kept = fused._packed
        assert fused(x).equal(before) and fused._packed is kept
    edit(fused)
    with torch.no_grad():
        after = fused(x)
        assert relative_error(after, before) > 1e-4, "the edit changes nothing: a poor test"
        assert relative_error(after, MDA.forward(fused, x)) <= 2 * FLOAT32


def test_data_set_twice(as_on_a_gpu: None) -> None:
    """The second of two new tensors may lie where the weight lay before."""
    fused = fuse(ConvLayer(16, 16).eval())
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        for _ in range(20):
            before = fused(x)
            for _ in range(2):
                fused.conv.weight.data = fused.conv.weight.data * 1.5
            assert not torch.allclose(fused(x), before)
            fused.conv.weight.data = fused.conv.weight.data / 2.25


def test_collective_operations(as_on_a_gpu: None, tmp_path: Path) -> None:
    """They write parameters without counting it."""
    fused = fuse(ConvLayer(8, 8).eval())
    x = torch.randn(1, 8, 8, 8)
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'meeting'}"
    )
    try:
        with torch.no_grad():
            fused(x)
            kept = fused._packed
            fused(x)
            assert fused._packed is kept
            torch.distributed.broadcast(fused.conv.weight, 0)
            fused(x)
            assert fused._packed is not kept
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("view", ["whole", "every other", "transposed", "expanded"])
def test_checksum_tells_every_value(view: str) -> None:
    values = torch.zeros(3, 5, 7, 9)
    values[0, 0] = 1
    seen = {
        "whole": values,
        "every other": values[:, 1::2, :, ::2],
        "transposed": values.transpose(1, 3)[1:],
        "expanded": values[:, :, :1].expand(3, 5, 7, 9),
    }[view]
    pieces = pieces_of([seen])
    plain = checksum(pieces)
    assert plain == checksum(pieces) != checksum(pieces_of([seen, seen]))
    for place in range(0, seen.numel(), 13):
        spot = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), seen.shape))
        value = seen[spot].clone()
        seen[spot] = -value - 1
        assert checksum(pieces) != plain, spot
        seen[spot] = value
    assert checksum(pieces) == plain


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 5001])
def test_checksum_tells_every_byte_and_the_size(size: int) -> None:
    values = torch.zeros(size + 1, dtype=torch.uint8)
    pieces = pieces_of([values[:size]])
    plain = checksum(pieces)
    assert plain != checksum(pieces_of([values]))
    for place in {*range(min(size, 130)), *range(max(0, size - 130), size)}:
        values[place] = 1
        assert checksum(pieces) != plain, place
        values[place] = 0
    values[size] = 1
    assert checksum(pieces) == plain


def test_checksum_refuses_what_has_no_storage() -> None:
    freed, cut = torch.ones(64), torch.ones(64)
    freed.untyped_storage().resize_(0)
    cut.untyped_storage().resize_(200)
    for tensor in (freed, cut):
        with pytest.raises(RuntimeError, match="storage"):
            pieces_of([tensor])


def test_edits_of_single_values_of_inference_tensors_are_noticed() -> None:
    """PyTorch counts no edits of these."""
    with torch.inference_mode():
        fused = fuse(ConvLayer(32, 32).eval())
        x = torch.randn(1, 32, 8, 8)
        before = fused(x)
        kept = fused._packed
        assert fused(x).equal(before) and fused._packed is kept
        fused.conv.weight[7, 9, 1, 1] += 5
        assert relative_error(fused(x), ConvLayer.forward(fused, x)) <= 2 * FLOAT32


def test_parametrized_weight(reference: nn.Module, picture: Tensor) -> None:
    conv = next(m for m in reference.modules() if isinstance(m, nn.Conv2d))
    nn.utils.parametrizations.weight_norm(conv)
    fused = fuse(reference)
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(fused(picture), expected_of(reference, picture)) <= FLOAT32
            conv.parametrizations.weight.original0.mul_(1.5)


def test_parameters_made_in_inference_mode(reference: nn.Module, picture: Tensor) -> None:
    with torch.inference_mode():
        fused = fuse(copy.deepcopy(reference))
        for _ in range(2):
            edit_in_place(fused)
            assert relative_error(fused(picture), expected_of(fused, picture)) <= FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
def test_freed_storage(reference: nn.Module, picture: Tensor, backend: str) -> None:
    """Of any tensor that is folded, before and after packing, or of the input: no packed weight
    answers for one, and nothing reads where memory was. Given back, it is read anew."""
    fused = fuse(reference, backend)
    with torch.no_grad():
        result = fused(picture)
        tensors = [*fused.named_parameters(), *fused.named_buffers()]
        for name, tensor in [*tensors, ("input", picture)]:
            if tensor.is_floating_point():
                kept, storage = tensor.clone(), tensor.untyped_storage()
                size = storage.nbytes()
                storage.resize_(0)
                with pytest.raises(RuntimeError, match=rf"{name}.* has shape .* storage holds 0"):
                    fused(picture)
                storage.resize_(size)
                tensor.copy_(kept)
        assert torch.equal(fused(picture), result)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_fused_optimizers_edit_without_counting(
    reference: nn.Module, picture: Tensor, kind: type[torch.optim.Optimizer]
) -> None:
    fused = fuse(reference)
    optimizer = kind(fused.parameters(), lr=0.05, fused=True)
    fused(picture).square().mean().backward()
    with torch.no_grad():
        before = fused(picture)
        optimizer.step()
        after = fused(picture)
    assert relative_error(after, before) > 1e-4, "the step changes nothing: a poor test"
    assert relative_error(after, expected_of(fused_as_reference(fused), picture)) <= FLOAT32


def test_a_new_parameter_at_an_old_address(reference: nn.Module, picture: Tensor) -> None:
    """What is freed may be followed by its successor at the same address, with the same id."""
    fused = fuse(reference)
    conv = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
    shape = conv.weight.shape
    with torch.no_grad():
        for i in range(60):
            del conv.weight
            conv.weight = nn.Parameter(torch.full(shape, 0.01 * i))
            result = fused(picture[:, :, :4, :4])
            fused.repack()
            torch.testing.assert_close(fused(picture[:, :, :4, :4]), result, rtol=0, atol=0)


def change_eps(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eps = 0.5


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
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.PReLU):
                setattr(parent, name, nn.Tanh())
                return
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.InstanceNorm2d(child.num_features))
                return


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((2, 3), keepdim=True))


def change_convolution(module: nn.Module) -> None:
    conv = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    conv.__class__ = Standardized


def wrap_around(module: nn.Module) -> None:
    """The usual way to make a network's output tile without a seam."""
    conv = first(module, nn.Conv2d)

    def circular(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = F.pad(x, [side for side in conv.padding[::-1] for _ in "LR"], mode="circular")
        return F.conv2d(padded, weight * 1.5, bias, conv.stride, 0, conv.dilation)

    conv._conv_forward = circular


class Scaled(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class Computed(nn.Conv2d):
    scale = 2.0

    @property
    def weight(self) -> Tensor:
        return self.stored * self.scale


def scale_convolution(module: nn.Module) -> None:
    first(module, nn.Conv2d).__class__ = Scaled


def compute_weight(module: nn.Module) -> None:
    conv = first(module, nn.Conv2d)
    conv.stored = conv._parameters.pop("weight")
    conv.__class__ = Computed


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


@pytest.mark.parametrize(
    "change",
    [
        change_eps,
        change_dilation,
        change_activation,
        change_convolution,
        wrap_around,
        scale_convolution,
        compute_weight,
        replace_method,
        wrap_part,
    ],
)
def test_changed_settings_and_parts_are_noticed(
    reference: nn.Module, picture: Tensor, change: Callable[[nn.Module], None]
) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        before = fused(picture)
        change(fused)
        after = fused(picture)
        assert relative_error(after, before) > 1e-4, "the change changes nothing: a poor test"
        expected = type(reference).forward(copy.deepcopy(fused).double(), picture.double())
    assert relative_error(after, expected) <= FLOAT32


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (nn.Conv2d, "_conv_forward"),
        (nn.Conv2d, "forward"),
        (nn.BatchNorm2d, "forward"),
        (nn.ReLU, "forward"),
        (ConvLayer, "forward"),
    ],
)
def test_methods_put_into_a_class(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], method: str, when: str
) -> None:
    plain = shake(ConvLayer(8, 8)).eval()
    real, x = getattr(kind, method), torch.randn(1, 8, 9, 9)

    def doubled(self: nn.Module, *arguments: Tensor) -> Tensor:
        return 2 * real(self, *arguments)

    if when == "before":
        monkeypatch.setattr(kind, method, doubled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # there may be nothing to swap
        fused = fassd_kernels.accelerate(plain)
    with torch.no_grad():
        fused(x)
        monkeypatch.setattr(kind, method, doubled)
        assert relative_error(fused(x), plain(x)) <= FLOAT32
        monkeypatch.undo()
        assert relative_error(fused(x), plain(x)) <= FLOAT32


def test_half_with_batch_norms_in_float32(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference.half())
    for child in fused.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.float()
    with torch.no_grad():
        result = fused(picture.half())
    assert result.dtype == torch.float16
    assert relative_error(result, expected_of(fused_with_its_parts(fused), picture.half())) <= 2e-3


def test_transforms_and_forward_ad_run_the_reference(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    tangent = torch.randn_like(picture)
    with torch.no_grad():
        _, expected = torch.func.jvp(reference, (picture,), (tangent,))
        _, result = torch.func.jvp(fused, (picture,), (tangent,))
        batched = torch.func.vmap(fused)(picture[:, None])
        replaced = {k: v * 0.9 for k, v in fused.state_dict().items() if v.is_floating_point()}
        called = torch.func.functional_call(fused, replaced, (picture,))
        plain = torch.func.functional_call(reference, replaced, (picture,))
        fused(picture)
    assert relative_error(result, expected) <= FLOAT32
    assert relative_error(batched[:, 0], expected_of(reference, picture)) <= FLOAT32
    assert relative_error(called, plain) <= 2 * FLOAT32


def test_an_ensemble_by_vmap(reference: nn.Module, picture: Tensor) -> None:
    """PyTorch's recipe: all weights stacked, and a base model without any."""
    others = [shake(copy.deepcopy(reference), seed) for seed in (1, 2)]
    parameters, buffers = torch.func.stack_module_state([fuse(other) for other in others])
    base = copy.deepcopy(fuse(reference)).to("meta")

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (picture,))

    with torch.no_grad():
        results = torch.vmap(call)(parameters, buffers)
        for result, other in zip(results, others, strict=True):
            assert relative_error(result, expected_of(other, picture)) <= FLOAT32


def test_packed_in_inference_mode_then_used_with_gradients(
    reference: nn.Module, picture: Tensor
) -> None:
    fused = fuse(reference.requires_grad_(False))
    with torch.inference_mode():
        fused(picture)
    x = picture.clone().requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


# --- when it must not fuse ----------------------------------------------------------------------


def test_hooks_on_submodules_run(
    reference: nn.Module, picture: Tensor, operator_calls: list[str]
) -> None:
    fused = fuse(reference)
    seen: list[torch.Size] = []
    conv = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
    handle = conv.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    with torch.no_grad():
        result = fused(picture)
        assert len(seen) == 1 and not operator_calls
        handle.remove()
        fused(picture)
    assert len(seen) == 1 and operator_calls == [fused.operator]
    assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


def test_hooks_on_submodules_run_in_a_compiled_module(
    reference: nn.Module, picture: Tensor
) -> None:
    """A hook that halves a convolution's output, so that one passed by shows."""
    conv = next(m for m in reference.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_hook(lambda _m, _i, output: output / 2)
    fused = fuse(reference)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(fused, fullgraph=True, backend="aot_eager")(picture)
        assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


@pytest.mark.parametrize("change", [wrap_around, scale_convolution])
def test_a_compiler_notices_what_stands_below_forward(change: Callable[[nn.Module], None]) -> None:
    plain = shake(ConvLayer(8, 8)).eval()
    fused, x = fuse(plain), torch.randn(1, 8, 9, 9)
    change(plain)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(fused, fullgraph=True, backend="aot_eager")(x)
        assert relative_error(result, plain(x)) <= FLOAT32


def test_batch_norm_without_running_statistics(reference: nn.Module, picture: Tensor) -> None:
    for child in reference.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.track_running_stats = False
            child.running_mean = child.running_var = None
    with torch.no_grad():
        result = fuse(reference)(picture)
        assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


def test_one_batch_norm_in_training_mode(reference: nn.Module, picture: Tensor) -> None:
    for module in (reference, fused := fuse(copy.deepcopy(reference))):
        next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with torch.no_grad():
        torch.testing.assert_close(fused(picture), reference(picture), rtol=0, atol=0)


# --- tools that people use on modules -----------------------------------------------------------


def test_pickle_and_deepcopy(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        expected = fused(picture)
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), loaded]
        for other in copies:
            torch.testing.assert_close(other(picture), expected, rtol=0, atol=0)
        edit_in_place(copies[0])
        torch.testing.assert_close(fused(picture), expected, rtol=0, atol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(reference: nn.Module, picture: Tensor, grad: bool) -> None:
    fused = fuse(reference)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        result = compiled(picture)
        if grad:
            result.sum().backward()
            assert all(p.grad is not None for p in fused.parameters())
    assert relative_error(result.detach(), expected_of(reference, picture)) <= FLOAT32
    edit_in_place(fused)
    with torch.no_grad():
        assert relative_error(compiled(picture), expected_of(reference, picture)) <= FLOAT32


def test_trace(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        traced = torch.jit.trace(fuse(reference), picture)
        assert relative_error(traced(picture), expected_of(reference, picture)) <= FLOAT32


def test_two_threads_at_once(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    expected = expected_of(reference, picture)
    errors: list[float] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(5):
                errors.append(relative_error(fused(picture), expected))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 10 and max(errors) <= FLOAT32


def test_autocast(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = fuse(reference)(picture)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, expected_of(reference, picture)) <= 1.5e-2


def test_zero_batch(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad():
        fused = fuse(reference)
        assert fused(picture[:0]).shape == (0, *fused(picture).shape[1:])


def test_repr_tells_backend_and_dtype(reference: nn.Module) -> None:
    assert "backend=auto (" in repr(fuse(reference))
    text = repr(fuse(copy.deepcopy(reference).half(), "reference"))
    assert "backend=reference, dtype=torch.float16" in text


# --- refusals -----------------------------------------------------------------------------------


def test_unknown_and_unavailable_backends(reference: nn.Module) -> None:
    with pytest.raises(
        BackendError, match=r"'tpu'.*expected one of auto, cpu, cuda, triton, reference"
    ):
        fuse(reference, "tpu")
    if not fassd_kernels.backends()["cuda"].available:
        with pytest.raises(BackendError, match=r"'cuda'.*CUDA|GPU"):
            fuse(reference, "cuda")


def test_a_backend_that_cannot_take_the_device(reference: nn.Module, picture: Tensor) -> None:
    if "cpu" not in BACKENDS:
        pytest.skip("the C++ backend is not built")
    fused = fuse(reference, "cpu").to("meta")
    with pytest.raises(BackendError, match=r"'cpu' cannot run \w+ on meta: .*cpu tensors"):
        fused(picture.to("meta"))


@pytest.mark.parametrize("gone", [False, True])
def test_modules_with_other_parts_are_refused(reference: nn.Module, gone: bool) -> None:
    name = next(name for name, _ in reference.named_children())
    if gone:
        delattr(reference, name)
    else:
        setattr(reference, name, nn.Identity())
    with pytest.raises(TypeError, match=f"no submodule '{name}" if gone else name):
        fuse(reference)


def test_wrong_configuration_is_refused() -> None:
    dapf = DAPF(8)
    dapf.pyBranch3.atrous_conv1x3 = nn.Conv2d(4, 4, (1, 3), padding=(0, 5), dilation=(1, 5))
    with pytest.raises(TypeError, match=r"pyBranch3.atrous_conv1x3 .*expected dilation \(1, 24\)"):
        FusedDAPF.from_reference(dapf)
    mda = MDA(8, 2)
    mda.bn_relu_2.acti = nn.ReLU()
    with pytest.raises(TypeError, match=r"bn_relu_2.acti is a ReLU"):
        FusedMDA.from_reference(mda)
