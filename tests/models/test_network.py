"""What the networks take and refuse, and how they behave beyond the golden sizes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernels.conftest import short as few_layers
from torch import nn

from fassd.models import ASPP, DAPF, MDA, create_model, list_models

SMALLEST = {
    "fassd_net_l1": 43,
    "fassd_net_l2": 57,
    "fc_hardnet_70": 61,
    "fc_hardnet_l1": 91,
    "fc_hardnet_l2": 121,
}


@pytest.fixture(scope="module")
def light():
    return create_model("fassd_net_l2").eval()


@pytest.fixture(scope="module")
def short():
    return few_layers()


def coarsest(model, x):
    """Height and width of the map that DAPF sees."""
    sizes = []
    hook = model.DAPF.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return tuple(sizes[0])


@pytest.mark.parametrize("name", list_models())
def test_symbolic_trace_holds_at_every_size(name):
    model = create_model(name, num_classes=3).eval()
    traced = torch.fx.symbolic_trace(model)
    least = max(64, model.minimum_size)
    with torch.no_grad():
        for x in (torch.randn(1, 3, least, least + 33), torch.randn(2, 3, least + 16, least)):
            assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("name", list_models())
def test_smallest_size(name):
    model = create_model(name, num_classes=3).eval()
    smallest = SMALLEST.get(name, 29)
    assert model.minimum_size == smallest
    assert coarsest(model, torch.randn(1, 3, smallest, smallest)) == (1, 1)
    for size in ((smallest - 1, smallest), (smallest, smallest - 1)):
        came = rf"at least {smallest}x{smallest} pixels.*got {size[0]}x{size[1]}"
        with pytest.raises(ValueError, match=came):
            model(torch.randn(1, 3, *size))


@settings(max_examples=10, deadline=None)
@given(height=st.integers(57, 110), width=st.integers(57, 110), batch=st.integers(0, 2))
def test_any_size(light, height, width, batch):
    x = torch.randn(batch, 3, height, width)
    with torch.no_grad():
        logits = light(x)
        assert logits.shape == (batch, 19, height, width)
        # A picture's logits do not depend on its neighbours in the batch.
        torch.testing.assert_close(light(x[-1:]), logits[-1:], rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(5, 90), width=st.integers(5, 90))
def test_any_size_of_a_network_of_ones_own(short, height, width):
    assert short.minimum_size == 5
    with torch.no_grad():
        assert short(torch.randn(1, 3, height, width)).shape == (1, 4, height, width)


def test_coarsest_map_of_an_odd_size(light):
    # Strides round up, pooling rounds down:
    # 123 -> 62 -> 31 -> 16 -> 8 -> 4 -> 2 and 95 -> 48 -> 24 -> 12 -> 6 -> 3 -> 1.
    assert coarsest(light, torch.randn(1, 3, 123, 95)) == (2, 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), r"shape \(N, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"shape \(N, 3, H, W\), got \(1, 4, 64, 64\)"),
        (torch.zeros(1, 1, 3, 64, 64), r"got \(1, 1, 3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"floating tensor, got torch\.uint8"),
    ],
)
def test_wrong_shapes_and_types(light, x, message):
    with pytest.raises(ValueError, match=message):
        light(x)


@pytest.mark.parametrize("num_classes", [1, 2, 150])
def test_any_class_count(num_classes):
    model = create_model("fassd_net_l2", num_classes).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, num_classes, 64, 64)


@pytest.mark.parametrize("num_classes", [0, -1, 1.5, "19", True])
def test_wrong_class_counts(num_classes):
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1"):
        create_model("fassd_net", num_classes)


@pytest.mark.parametrize(("alpha", "width"), [(1, 224), (3, 74), (224, 1)])
def test_any_alpha(alpha, width):
    model = create_model("baseline_dapf", alpha=alpha).eval()
    assert model.DAPF.conv1x1.out_channels == width
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 19, 32, 32)


@pytest.mark.parametrize("alpha", [0, 225, 2.0])
@pytest.mark.parametrize("name", ["fassd_net", "baseline"])
def test_wrong_alphas(name, alpha):
    with pytest.raises(ValueError, match=f"alpha must be an integer from 1 to 224, got {alpha}"):
        create_model(name, alpha=alpha)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown model 'fasd_net'.*did you mean 'fassd_net'"):
        create_model("fasd_net")


@pytest.mark.parametrize(
    ("name", "context", "refinement"),
    [
        ("fassd_net", DAPF, MDA),
        ("baseline", nn.Identity, nn.Identity),
        ("baseline_aspp", ASPP, nn.Identity),
        ("baseline_dapf", DAPF, nn.Identity),
        ("baseline_mda", nn.Identity, MDA),
        ("baseline_aspp_mda", ASPP, MDA),
    ],
)
def test_rows_of_the_ablation(name, context, refinement):
    model = create_model(name)
    assert type(model.DAPF) is context
    assert [type(module) for module in model.mda] == [refinement] * 3
    if refinement is MDA:
        assert [module.d for module in model.mda] == [8, 4, 2]


@pytest.mark.parametrize("name", ["fassd_net", "baseline_aspp_mda"])
def test_gradients_reach_every_parameter(name):
    model = create_model(name, num_classes=4)
    model(torch.randn(2, 3, 32, 64)).square().mean().backward()
    dead = [key for key, p in model.named_parameters() if not p.grad.isfinite().all()]
    zero = [key for key, p in model.named_parameters() if not p.grad.any()]
    assert (dead, zero) == ([], [])


def test_initial_weights():
    model = create_model("fassd_net")
    conv, norm = model.base[13].layers[7].conv, model.base[13].layers[7].norm
    fan_in = conv.weight[0].numel()
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    assert norm.weight.unique().tolist() == [1]
    assert norm.bias.unique().tolist() == [0]
    assert model.finalConv.bias.unique().tolist() == [0]
    assert model.mda[0].bn_relu_1.acti.weight.unique().tolist() == [0.25]


def test_compiles_without_a_graph_break(short):
    compiled = torch.compile(short, fullgraph=True, backend="eager")
    x = torch.randn(1, 3, 70, 93)
    with torch.no_grad():
        assert torch.equal(compiled(x), short(x))


def test_exports_with_dynamic_sizes(short):
    auto = torch.export.Dim.AUTO
    sample = torch.randn(2, 3, 64, 96)
    exported = torch.export.export(short, (sample,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = torch.randn(1, 3, 70, 131)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), short(x), rtol=0, atol=1e-5)


def test_reprs_tell_the_parameters():
    text = repr(create_model("fassd_net_l1", num_classes=5, alpha=4))
    for part in (
        "num_classes=5, stem_strides=(3, 1, 2, 1), minimum_size=43",
        "224, alpha=4, dilations=(12, 24, 36)",
        "48, growth_rate=10, grmul=1.7, n_layers=4, out_channels=48",
        "119, d=4",
    ):
        assert part in text
    assert "32, width=8, dilations=(2,)" in repr(ASPP(32, 8, (2,)))
