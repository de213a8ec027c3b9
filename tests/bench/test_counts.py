"""The counter against the golden figures, and against sums that fit on the back of an envelope."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from fassd.bench.costs.counts import analyze
from fassd.bench.costs.parts import JOINTS
from fassd.models import ConvLayer, create_model, list_models

MIB = 2**20


@pytest.fixture(scope="module")
def fassd_net():
    return create_model("fassd_net")


@pytest.mark.parametrize("name", list_models())
def test_golden_figures(name, numbers):
    expected = numbers["variants"][name]
    complexity = analyze(create_model(name))
    assert complexity.params == expected["params"]
    assert round(complexity.conv_macs / 1e9, 3) == expected["conv_gmacs"]
    assert round(complexity.ptflops_macs / 1e9, 3) == expected["ptflops_gmacs"]


@pytest.mark.parametrize("alpha", [4, 6, 8])
def test_golden_figures_by_alpha(alpha, numbers):
    complexity = analyze(create_model("fassd_net", alpha=alpha))
    expected = numbers["fassd_net_by_alpha"][str(alpha)]
    assert complexity.params == expected["params"]
    assert round(complexity.conv_macs / 1e9, 3) == expected["conv_gmacs"]


def test_parts_add_up(fassd_net):
    complexity = analyze(fassd_net)
    for quantity in ("params", "conv_macs", "ptflops_macs", "allocated_bytes"):
        total = sum(getattr(part, quantity) for part in complexity.parts)
        assert total == getattr(complexity, quantity)
    names = [part.name for part in complexity.parts]
    assert names[:3] == ["base.0-3", "base.4", "base.5"]
    assert names[-2:] == ["finalConv", JOINTS]
    assert [name for name in names if name.startswith("mda")] == ["mda.0", "mda.1", "mda.2"]
    shapes = {part.name: part.output_shape for part in complexity.parts}
    assert shapes["DAPF"] == (1, 224, 32, 64)
    assert shapes["mda.2"] == (1, 63, 256, 512)
    params = {part.name: part.params for part in complexity.parts}
    assert params["DAPF"] == sum(p.numel() for p in fassd_net.DAPF.parameters())
    assert params["base.0-3"] == sum(p.numel() for p in fassd_net.base[:4].parameters())


def test_macs_grow_with_size_and_batch(fassd_net):
    one = analyze(fassd_net, (512, 1024))
    assert analyze(fassd_net, (1024, 2048)).conv_macs == 4 * one.conv_macs
    three = analyze(fassd_net, (512, 1024), batch=3)
    assert three.conv_macs == 3 * one.conv_macs
    assert three.input_shape == (3, 3, 512, 1024)


def test_dead_taps_at_the_size_of_cityscapes(fassd_net):
    (dead,) = analyze(fassd_net).dead_taps
    assert dead.name == "DAPF.pyBranch4.atrous_conv3x1"
    assert (dead.kernel_size, dead.dilation, dead.map_size) == ((3, 1), (36, 1), (32, 64))
    assert (dead.dead, dead.taps) == (2, 3)
    assert dead.wasted_share == pytest.approx(2 / 3)
    assert dead.wasted_macs == 32 * 64 * 112 * 224 * 2


def test_every_dilation_of_dapf_is_inert_on_small_pictures(fassd_net):
    """Up to 412 pixels the coarsest map has 12; multiples of 32 reach 13 at 416."""
    for size in (384, 412):
        names = [dead.name for dead in analyze(fassd_net, (size, size)).dead_taps]
        assert len(names) == 6
        assert all(name.startswith("DAPF.") for name in names)
    names = [dead.name for dead in analyze(fassd_net, (413, 413)).dead_taps]
    assert len(names) == 4
    assert not any("pyBranch2" in name for name in names)


def test_dead_taps_are_exactly_those_without_effect(fassd_net):
    """Zeroing the taps that are called dead changes nothing; zeroing live ones does."""
    branch = fassd_net.DAPF.pyBranch4
    x = torch.randn(1, 224, 32, 40)
    for conv, inert in ((branch.atrous_conv3x1, True), (branch.atrous_conv1x3, False)):
        centre = torch.zeros_like(conv.weight)
        middle = (..., slice(1, 2), slice(None)) if inert else (..., slice(1, 2))
        centre[middle] = conv.weight[middle]
        picture = x if inert else x[:, :112]
        whole, pointwise = (
            nn.functional.conv2d(picture, w, padding=conv.padding, dilation=conv.dilation)
            for w in (conv.weight, centre)
        )
        assert torch.allclose(whole, pointwise, atol=1e-5) == inert


def test_dead_taps_of_a_square_kernel():
    (dead,) = analyze(create_model("baseline_aspp")).dead_taps
    assert (dead.name, dead.dead, dead.taps) == ("DAPF.atrous.2.conv", 6, 9)


def test_memory_of_a_chain():
    """Input 3 MiB; conv writes 4, batch norm 4 more, the in-place ReLU none; conv 1."""
    model = nn.Sequential(ConvLayer(3, 4), nn.Conv2d(4, 1, 1))
    complexity = analyze(model, (512, 512))
    assert complexity.allocated_bytes == (4 + 4 + 1) * MIB
    # The caller's input stays; the convolution's result lives until its batch norm is done.
    assert complexity.peak_bytes == (3 + 4 + 4) * MIB


def test_a_model_of_ones_own():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = create_model("baseline_dapf", num_classes=2)
            self.act = nn.Hardswish()

        def forward(self, x):
            return self.act(self.inner(x))

    mine = Mine().half()
    complexity = analyze(mine, (256, 256))
    assert "inner.DAPF" in [part.name for part in complexity.parts]
    assert complexity.conv_macs == analyze(mine.inner, (256, 256)).conv_macs
    extra = complexity.ptflops_macs - analyze(mine.inner, (256, 256)).ptflops_macs
    assert extra == 2 * 256 * 256
    # Half precision weights count as float32.
    assert complexity.peak_bytes == analyze(mine.float(), (256, 256)).peak_bytes


def test_the_model_is_left_alone(fassd_net):
    fassd_net.train()
    before = {key: value.clone() for key, value in fassd_net.state_dict().items()}
    analyze(fassd_net, (64, 64))
    assert fassd_net.training
    assert all(torch.equal(value, before[key]) for key, value in fassd_net.state_dict().items())
    assert not any(module._forward_hooks for module in fassd_net.modules())
    assert {p.device.type for p in fassd_net.parameters()} == {"cpu"}


def test_too_small_a_size(fassd_net):
    with pytest.raises(ValueError, match="at least 29x29"):
        analyze(fassd_net, (28, 100))


def test_foreign_operators_are_not_passed_over_in_silence():
    @torch.library.custom_op("fassd_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_fake(torch.empty_like)

    class Foreign(nn.Module):
        def forward(self, x):
            return double(x)

    with pytest.raises(ValueError, match=r"cannot count fassd_test\.double"):
        analyze(Foreign(), (8, 8))


@pytest.mark.parametrize(("width", "with_kinds"), [(80, False), (120, True)])
def test_tables_cut_nothing(fassd_net, width, with_kinds):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(analyze(fassd_net, name="mine"))
    text = console.export_text()
    for part in (
        *("mine at 1024x2048", "19x1024x2048", "2,845,351", "44.684", "45.112"),
        *("DAPF.pyBranch4.atrous_conv3x1", "2 of 3"),
    ):
        assert part in text
    for kind in ("HarDBlock: 4 layers, growth 10", "MDA: 192 channels, dilation 8"):
        assert (kind in text) == with_kinds
    assert "…" not in text
    rows = [line for line in text.splitlines() if line.startswith((" ", "│"))]
    assert rows == []  # no cell goes on in a second line


def test_no_table_of_dead_taps_without_any():
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(analyze(create_model("baseline"), (64, 64)))
    assert "FASSDNet at 64x64" in console.export_text(clear=False)
    assert "No dilated convolution has dead taps" in console.export_text()
