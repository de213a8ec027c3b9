"""accelerate(): every variant, foreign classes, options and refusals."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels.conftest import exact, network, random_picture, relative_error, shake
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

import fassd
import fassd_kernels
from fassd.models import DAPF, MDA
from fassd_kernels import (
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
    FusedNetwork,
    accelerate,
)
from fassd_kernels.modules import Fused


def fused_types(model: nn.Module) -> dict[str, int]:
    return dict(Counter(type(m).__name__ for m in model.modules() if isinstance(m, Fused)))


# The stem and the 1x1s of the encoder, its blocks and the decoder's, the decoder's 1x1s, the last.
BASELINE = {"FusedConvLayer": 11, "FusedHarDBlock": 7, "FusedConv2d": 1}
DAPF_ONE, MDA_THREE, ASPP_ONE = {"FusedDAPF": 1}, {"FusedMDA": 3}, {"FusedASPP": 1}
EXPECTED = {
    "fassd_net": {**BASELINE, **DAPF_ONE, **MDA_THREE},
    "fassd_net_l1": {**BASELINE, **DAPF_ONE, **MDA_THREE},
    "fassd_net_l2": {
        **BASELINE,
        **DAPF_ONE,
        **MDA_THREE,
        "FusedConvLayer": 14,
        "FusedHarDBlock": 4,
    },
    "baseline_dapf": {**BASELINE, **DAPF_ONE},
    "baseline_mda": {**BASELINE, **MDA_THREE},
    "baseline_aspp_mda": {**BASELINE, **ASPP_ONE, **MDA_THREE},
    "baseline_aspp": {**BASELINE, **ASPP_ONE},
    "baseline": BASELINE,
    "fc_hardnet_70": {
        "FusedConvLayer": 13,
        "FusedHarDBlock": 9,
        "FusedConv2d": 1,
    },
}
EXPECTED["fc_hardnet_l1"] = EXPECTED["fc_hardnet_70"]
EXPECTED["fc_hardnet_l2"] = {
    **EXPECTED["fc_hardnet_70"],
    "FusedConvLayer": 17,
    "FusedHarDBlock": 5,
}


def test_the_table_names_every_variant() -> None:
    assert sorted(EXPECTED) == sorted(fassd.list_models())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_variant(name: str) -> None:
    model = network(name)
    fast = accelerate(model)
    assert fused_types(fast) == EXPECTED[name]
    assert isinstance(fast, FusedNetwork)
    assert fused_types(model) == {}, "the original must stay untouched"
    assert list(fast.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 3, 121, 130)
    with torch.no_grad():
        right = exact(model, x)
        result = fast(x)
        labels = accelerate(model, output="labels")(x)
    # Ten layers deep, single precision errors add up: eager is allowed no less.
    assert relative_error(result, right) <= 2e-5
    assert (result.argmax(1) == right.argmax(1)).float().mean() >= 0.999
    assert labels.dtype == torch.uint8 and labels.shape == (1, 121, 130)
    assert (labels == right.argmax(1)).float().mean() >= 0.999


def test_inplace() -> None:
    model, x = network("fassd_net_l2"), random_picture(120, 130)
    right = exact(model, x)
    parameters = [id(p) for p in model.parameters()]
    assert accelerate(model, inplace=True) is model
    assert isinstance(model, FusedNetwork)
    assert fused_types(model) == EXPECTED["fassd_net_l2"]
    assert [id(p) for p in model.parameters()] == parameters
    with torch.no_grad():
        assert relative_error(model(x), right) <= 2e-6


def test_a_module_alone_and_twice() -> None:
    fused = accelerate(DAPF(16).eval())
    assert isinstance(fused, FusedDAPF)
    assert isinstance(accelerate(fused, backend="reference"), FusedDAPF)
    shared = MDA(8, 2)
    pair = accelerate(nn.Sequential(shared, nn.ReLU(), shared))
    assert pair[0] is pair[2] and isinstance(pair[0], FusedMDA)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 2e-2), (torch.float64, 1e-6)]
)
def test_dtype(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = shake(fassd.create_model("fassd_net_l2")).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        result = accelerate(model, dtype=dtype)(x)
        assert result.dtype == dtype
        assert relative_error(result, model(x)) <= tolerance
    assert next(model.parameters()).dtype == torch.float32


def test_training_continues_and_evaluation_is_fresh() -> None:
    torch.manual_seed(0)
    fast = accelerate(fassd.create_model("fassd_net_l2", num_classes=4)).train()
    x, y = torch.randn(2, 3, 128, 128), torch.randint(0, 4, (2, 128, 128))
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(fast(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        plain = fassd.create_model("fassd_net_l2", num_classes=4)
        plain.load_state_dict(fast.state_dict())
        with torch.no_grad():
            assert relative_error(fast.eval()(x), plain.eval()(x)) <= 2e-5
        fast.train()
    assert losses[-1] < losses[0]


# --- classes that are not ours ------------------------------------------------------------------


class ForeignMDA(nn.Module):
    """Somebody else's module with MDA's attributes, and MDA's forward."""

    def __init__(self) -> None:
        super().__init__()
        for name, child in MDA(12, 4).named_children():
            setattr(self, name, child)

    def forward(self, image: Tensor) -> Tensor:
        o = self.conv3x3(self.bn_relu_1(image))
        both = self.parallel_conv3x3(o) + self.parallel_ddconv1x3(self.parallel_ddconv3x1(o))
        return self.conv1x1(self.bn_relu_2(both)) + image


class OtherForward(ForeignMDA):
    """The same attributes, another function: must stay as it is."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) - image


class TwoInputs(ForeignMDA):
    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return super().forward(image) + other


def test_a_foreign_class_with_the_same_attributes() -> None:
    torch.manual_seed(0)
    module = shake(nn.Sequential(ForeignMDA())).eval()
    fast = accelerate(module)
    assert isinstance(fast[0], FusedMDA)
    assert list(fast.state_dict()) == list(module.state_dict())
    x = torch.randn(1, 12, 20, 30)
    with torch.no_grad():
        assert relative_error(fast(x), module.double()(x.double())) <= 2e-6


class ForeignLayer(nn.Sequential):
    """A convolution, a batch norm and a ReLU by the names of the published checkpoints."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 3) -> None:
        conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        norm, relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        super().__init__(OrderedDict(conv=conv, norm=norm, relu=relu))


class ForeignBlock(nn.Module):
    """A harmonic block of four layers that remembers its links in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((9, 6), (15, 8), (8, 6), (23, 10))
        self.layers = nn.ModuleList(ForeignLayer(*pair) for pair in widths)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        second = self.layers[1](torch.cat([first, x], 1))
        third = self.layers[2](second)
        fourth = self.layers[3](torch.cat([third, second, x], 1))
        return torch.cat([first, third, fourth], 1)


class OtherLinks(ForeignBlock):
    """The same attributes, other links of the same widths."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


def test_foreign_blocks_and_layers() -> None:
    torch.manual_seed(0)
    module = shake(nn.Sequential(ForeignBlock(), ForeignLayer(22, 7, 1), OtherLinks())).eval()
    module[2].layers[0].conv = nn.Conv2d(9, 6, 3, padding=1, bias=False)
    fast = accelerate(module[:2])
    assert isinstance(fast[0], FusedHarDBlock) and isinstance(fast[1], FusedConvLayer)
    assert type(accelerate(module[2])) is OtherLinks, "its layers are fused, the block is not"
    x = torch.randn(1, 9, 20, 30)
    with torch.no_grad():
        expected = copy.deepcopy(module[:2]).double()(x.double())
        assert relative_error(fast(x), expected) <= 2e-6
        for training in (False, True):
            plain = copy.deepcopy(module[:2]).train(training)
            again = copy.deepcopy(fast).train(training)
            assert relative_error(again(x), plain(x)) <= 2e-6
    assert list(fast.state_dict()) == list(module[:2].state_dict())


class WithDropout(ForeignMDA):
    """MDA in evaluation; in training something else."""

    def forward(self, image: Tensor) -> Tensor:
        return F.dropout2d(super().forward(image), 0.5, self.training)


class OtherWidth(ForeignMDA):
    """The same attributes, whose shapes fit another forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1x1.conv = nn.Conv2d(6, 20, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv1x1(self.bn_relu_2(self.conv3x3(self.bn_relu_1(image))))


class GatedDAPF(DAPF):
    """A subclass of our own, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class Gated(nn.PReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def with_a_changed_part() -> MDA:
    module = MDA(8, 2)
    module.conv3x3.bn_prelu.acti = Gated(4)
    return module


@pytest.mark.parametrize(
    "make",
    [OtherForward, TwoInputs, WithDropout, OtherWidth, lambda: GatedDAPF(8), with_a_changed_part],
)
def test_what_computes_something_else_stays(make: Callable[[], nn.Module]) -> None:
    module = make()
    fast = accelerate(nn.Sequential(module).eval())
    assert type(fast[0]) is type(module)


def test_what_has_no_convolutions_stays() -> None:
    with pytest.warns(RuntimeWarning, match="nothing was swapped"):
        fast = accelerate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()).eval())
    assert type(fast) is nn.Sequential


def test_scripted_modules_and_other_dimensions_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerate(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))), inplace=True)
    both = accelerate(nn.ModuleList([MDA(8, 2), nn.Conv3d(2, 2, 3)]))
    assert isinstance(both[0], FusedMDA)


def test_inplace_keeps_hook_handles() -> None:
    model = nn.Sequential(MDA(8, 2)).eval()
    seen: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    accelerate(model, inplace=True)
    with torch.no_grad():
        model(torch.randn(1, 8, 5, 5))
        handle.remove()
        model(torch.randn(1, 8, 5, 5))
    assert seen == [1]


def test_keyword_inputs_are_cast_too() -> None:
    fast = accelerate(MDA(8, 2).eval(), dtype=torch.bfloat16)
    with torch.no_grad():
        assert fast(x=torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


# --- parameters stay as they are -----------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_parameters_keep_their_layout(inplace: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = shake(fassd.create_model("fassd_net_l2", num_classes=3)).eval()
    plain, vector = copy.deepcopy(model), parameters_to_vector(model.parameters())
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    fast = accelerate(model, inplace=inplace)
    assert parameters_to_vector(fast.parameters()).equal(vector)
    assert [p.stride() for p in fast.parameters()] == [p.stride() for p in plain.parameters()]
    assert [p.data_ptr() for p in model.parameters()] == addresses
    save_file(fast.state_dict(), tmp_path / "weights.safetensors")
    for name, value in load_file(tmp_path / "weights.safetensors").items():
        assert value.equal(plain.state_dict()[name]), name
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        vector_to_parameters(vector * 1.1, fast.parameters())
        vector_to_parameters(vector * 1.1, plain.parameters())
        assert relative_error(fast(x), plain(x)) <= 2e-5


def test_pruning() -> None:
    torch.manual_seed(0)
    plain = shake(nn.Sequential(DAPF(16), MDA(16, 2))).eval()
    fast, x = accelerate(plain), torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        fast(x)
        for model in (plain, fast):
            convolutions = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d)]
            prune.global_unstructured(convolutions, prune.L1Unstructured, amount=0.5)
        assert relative_error(fast(x), plain(x)) <= 2e-6
        for convolution, name in convolutions:  # those of the accelerated one
            prune.remove(convolution, name)
        assert relative_error(fast(x), plain(x)) <= 2e-6


def test_convolutions_in_front_of_fused_modules_run_in_channels_last() -> None:
    seen: list[bool] = []
    first = nn.Conv2d(3, 16, 7, stride=2)
    handle = first.register_forward_hook(
        lambda _m, _i, y: seen.append(y.is_contiguous(memory_format=torch.channels_last))
    )
    model = nn.Sequential(first, MDA(16, 2)).eval()
    fast, x = accelerate(model), torch.randn(2, 3, 32, 32)
    handle.remove()  # from the original
    with torch.no_grad():
        assert relative_error(fast(x), model(x)) <= 2e-6
        assert seen == [True]
        fast[0]._forward_hooks.clear()
        assert relative_error(torch.vmap(fast)(x[:, None])[:, 0], model(x)) <= 2e-6
    assert not accelerate(nn.Sequential(MDA(16, 2)))._forward_pre_hooks


# --- refusals -----------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"model is a str; expected a torch.nn.Module"):
        accelerate("fassd_net")
    with pytest.raises(TypeError, match=r"dtype is torch.int16; expected None or one of"):
        accelerate(MDA(8, 2), dtype=torch.int16)
    with pytest.raises(fassd_kernels.BackendError, match="expected one of auto"):
        accelerate(MDA(8, 2), backend="quantum")
