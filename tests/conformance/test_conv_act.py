"""conv_act against its definition."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conformance import harness
from conformance.cases import conv_act
from conformance.definition import (
    ACTIVATIONS,
    BATCHES,
    CHANNELS,
    IN_CHANNELS,
    OUT_CHANNELS,
    SIZES,
    pairwise,
    sizes,
    standard_tests,
)
from conformance.harness import LAYOUTS, Call, check, check_close
from hypothesis import strategies as st
from torch import Tensor

from fassd_kernels import checks
from fassd_kernels.reference.conv_act import KERNELS

pytestmark = pytest.mark.operators("conv_act")

TABLE = pairwise(
    kernel=KERNELS,
    stride=((1, 1), (2, 2), (3, 3), (1, 2), (3, 1)),
    # Some are at or beyond the side of the image: their outer taps read only padding.
    dilation=((1, 1), (2, 2), (3, 1), (1, 5), (8, 8), (12, 4), (36, 36)),
    channels=IN_CHANNELS,
    out_channels=OUT_CHANNELS,
    size=SIZES,
    batch=(1, 2, 3),
    activation=checks.ACTIVATIONS,
    bias=(True, False),
    residual=(False, True),
    pool=(1, 1, 2),
    layout=tuple(LAYOUTS),
)
# Maps so narrow that bands of rows are convolved side by side, their heights equal or not.
TABLE += [
    dict(channels=(10, 18), out_channels=17, size=size, batch=2, residual=True, layout=layout)
    for size, layout in (
        ((16, 32), "channels_last"),
        ((8, 16), "sliced_channels_last"),
        ((19, 15), "contiguous"),
        ((23, 9), "sliced_channels"),
        ((40, 3), "transposed"),
    )
]
# Rows and columns long enough to be cut into lines of four pixels, which may lie apart.
TABLE += [
    dict(
        channels=channels,
        out_channels=33,
        size=size,
        kernel=kernel,
        dilation=dilation,
        residual=True,
        activation="prelu",
        layout=layout,
    )
    for channels, size, kernel, dilation, layout in (
        ((25,), (23, 35), (3, 1), (1, 9), "channels_last"),
        ((28, 3, 1), (9, 70), (3, 1), (1, 1), "sliced_channels"),
        ((24,), (3, 64), (1, 3), (5, 1), "contiguous"),
        ((26, 5), (2, 190), (1, 3), (1, 2), "sliced_channels_last"),
        ((31,), (2, 120), (1, 3), (1, 4), "transposed"),
        ((10, 18), (2, 128), (1, 3), (1, 8), "channels_last"),
        ((40,), (2, 177), (1, 3), (1, 16), "stepped"),
    )
]
FEW = (
    dict(channels=(10, 18), out_channels=17, size=(9, 11), kernel=(3, 3), batch=2, residual=True),
    dict(channels=(3,), out_channels=33, size=(9, 11), kernel=(1, 1), activation="relu"),
    dict(
        channels=(7,), out_channels=7, size=(8, 21), kernel=(1, 3), dilation=(1, 4), stride=(1, 2)
    ),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=st.lists(CHANNELS, min_size=1, max_size=4),
    out_channels=st.integers(1, 70),
    size=sizes(),
    kernel=st.sampled_from(KERNELS),
    stride=sizes(3, 3),
    dilation=sizes(3, 3) | sizes(40, 40),
    activation=ACTIVATIONS,
    bias=st.booleans(),
    residual=st.booleans(),
    pool=st.sampled_from((1, 2)),
)


# Their definitions once more.
CURVES = {
    "relu6": lambda x: x.clamp(0, 6),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,  # Howard et al., ICCV 2019
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "sigmoid": lambda x: (1 + (x / 2).tanh()) / 2,
    "silu": lambda x: x * (1 + (x / 2).tanh()) / 2,
    # Hendrycks and Gimpel, 2016: by the normal distribution, and their approximation of it.
    "gelu": lambda x: x * (1 + (x / 2**0.5).erf()) / 2,
    "gelu_tanh": lambda x: x * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()) / 2,
}


def by_hand(call: Call) -> Tensor:
    """The definition once more: a sum over taps, without a convolution routine."""
    of = call.arguments
    image, weight = torch.cat(of["inputs"], 1), of["weight"]
    down, right = (d * (k // 2) for d, k in zip(of["dilation"], weight.shape[2:], strict=True))
    padded = F.pad(image, (right, right, down, down))
    result = of["bias"][:, None, None]
    for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        seen = padded[:, :, i * of["dilation"][0] :, j * of["dilation"][1] :]
        seen = seen[:, :, : image.shape[2] : of["stride"][0], : image.shape[3] : of["stride"][1]]
        result = result + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], seen)
    if of["residual"] is not None:
        result = result + of["residual"]
    if of["activation"] in CURVES:
        return CURVES[of["activation"]](result)
    slope = {"none": 1, "relu": 0}.get(of["activation"])
    slope = of["slope"][:, None, None] if slope is None else slope
    return torch.where(result > 0, result, result * slope)


@pytest.mark.parametrize("activation", checks.ACTIVATIONS)
@pytest.mark.parametrize("shape", [*FEW, dict(size=(6, 9), stride=(3, 2), residual=True)])
def test_by_hand(subject, shape, activation):
    call = conv_act(**{**shape, "activation": activation})
    exact = subject.exact
    result = subject(call.to(exact, subject.device))
    check_close(result, by_hand(call), harness.TOLERANCES[exact])


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_tap_shifts(subject, dtype, kernel, stride):
    """A weight of a single 1 moves the picture, exactly: no convolution routine is asked here."""
    dilation, size = (4, 9), (6, 8)  # of the taps across, the outer ones see only padding
    call = conv_act(size=size, kernel=kernel, stride=stride, dilation=dilation, bias=False)
    call = call.to(dtype, subject.device)
    image = call.arguments["inputs"][0]
    reach = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    padded = F.pad(image, (reach[1], reach[1], reach[0], reach[0]))
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            weight = torch.zeros_like(call.arguments["weight"])
            for channel in range(3):
                weight[channel, channel, row, column] = 1
            top, left = row * dilation[0], column * dilation[1]
            moved = padded[:, :, top : top + size[0] : stride[0], left : left + size[1] : stride[1]]
            result = subject(call.with_(weight=weight))
            assert torch.equal(result[:, :3], moved)
            assert not result[:, 3].any()


def test_stride_and_dilation_are_expanded(subject):
    """An int, or a list of one, counts for both axes; left out, it is 1."""
    call = conv_act(size=(9, 9), dilation=(2, 2), stride=(2, 2)).to(torch.float32, subject.device)
    right = subject(call)
    assert right.shape == (1, 4, 5, 5)
    assert torch.equal(subject(call.with_(stride=2, dilation=2)), right)
    assert torch.equal(subject(call.with_(stride=[2], dilation=[2])), right)
    plain = conv_act().to(torch.float32, subject.device)
    short = plain.with_()
    for name in ("stride", "dilation", "activation", "residual", "slope"):
        del short.arguments[name]
    assert torch.equal(subject(short), subject(plain))


@pytest.mark.parametrize("activation", ["none", "relu", "prelu"])
def test_residual_comes_before_the_activation(subject, activation):
    call = conv_act(out_channels=5, activation=activation, bias=False)
    residual = -torch.ones(1, 5, 5, 7, dtype=torch.float64)
    call = call.with_(weight=torch.zeros_like(call.arguments["weight"]), residual=residual)
    call = call.to(torch.float32, subject.device)
    right = {"none": -1.0, "relu": 0.0}.get(activation)
    if right is None:
        right = -call.arguments["slope"].double().cpu()[:, None, None]
    check_close(subject(call), torch.as_tensor(right).expand(1, 5, 5, 7), 1e-6)


@pytest.mark.parametrize("activation", CURVES)
def test_activations_of_any_value(subject, activation):
    """Beyond where exponentials are zero or infinite; and what is no finite number."""
    # PyTorch's hardswish multiplies by 6 before it divides, and its gelu of infinity is NaN or not,
    # as the library has it that it was built with.
    plain = subject.target.backend.name == "reference"
    magnitudes = torch.logspace(-30, 37 if plain else 38, 400, dtype=torch.float64)
    near = torch.linspace(-12, 12, 1000, dtype=torch.float64)
    values = torch.cat([magnitudes, -magnitudes, near]).reshape(1, 1, 30, 60)
    for dtype in {torch.float32, subject.exact}:
        call = conv_act(channels=(1,), out_channels=1, size=(30, 60), kernel=(1, 1), bias=False)
        call = call.with_(weight=torch.ones(1, 1, 1, 1), inputs=[values], activation=activation)
        call = call.to(dtype, subject.device)
        image = call.arguments["inputs"][0]
        x = image.double().cpu()
        difference = subject(call).double().cpu() - CURVES[activation](x)
        assert (difference.abs() <= 1e-6 * x.abs().clamp(min=0.1)).all()
        for value in (math.nan,) if plain else (math.nan, math.inf, -math.inf):
            filled = torch.full_like(image, value)
            result = subject(call.with_(inputs=[filled])).cpu()
            torch.testing.assert_close(result, CURVES[activation](filled.cpu()), equal_nan=True)


def test_far_steps_and_taps(subject, dtype):
    """Memory is taken for what is read, not for what lies between."""
    far = (2**31 - 1, 2**31 - 1)
    check(subject, conv_act(size=(5, 7), stride=far, kernel=(3, 3)), dtype)
    check(subject, conv_act(size=(5, 7), dilation=far, kernel=(3, 3)), dtype)


@pytest.mark.parametrize("channels", [16, 48, 100, 256, 512])
def test_3x3_of_many_channels(subject, channels):
    """No less exact than a plain sum, however it is computed."""
    call = conv_act(channels=(channels,), out_channels=8, size=(8, 8))
    call = call.to(torch.float32, subject.device)
    check_close(subject(call), harness.expected(call), 1.2e-6)


def test_same_tensor_twice(subject, dtype):
    call = conv_act(channels=(5, 5), out_channels=6)
    image = call.arguments["inputs"][0]
    check(subject, call.with_(inputs=[image, image]), dtype)


def test_inputs_of_no_channels(subject):
    """The virtual concatenation may hold empty tensors."""
    check(subject, conv_act(channels=(0, 5, 0), out_channels=6))


def test_inputs_of_different_layouts(subject):
    call = conv_act(channels=(5, 3, 4, 2, 6), out_channels=9, size=(6, 7), residual=True)
    call = call.to(torch.float32, subject.device)
    names = ("contiguous", "channels_last", "sliced_channels", "stepped", "transposed")
    images = [LAYOUTS[n](x) for n, x in zip(names, call.arguments["inputs"], strict=True)]
    mixed = call.with_(inputs=images, residual=LAYOUTS["sliced"](call.arguments["residual"]))
    # A layout changes where numbers lie, not in what order they are summed.
    check_close(subject(mixed), subject(call).double(), 1e-6)
