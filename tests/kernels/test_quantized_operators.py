"""The operators of the CPU on quantised images, against their definition in float64.

Products are summed up exactly, so that only the rounding of what follows may differ: a byte by one
step, where the value lies between two of them.
"""

import itertools
import os
import random
import subprocess
import sys

import pytest
import torch

import fassd_kernels
from fassd_kernels.checks import ACTIVATIONS
from fassd_kernels.reference import quantized

OPS = torch.ops.fassd_kernels
KERNELS = [(3, 3), (3, 1), (1, 3), (1, 1)]
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason="the C++ kernels are not built"
)


def pixels(*size):
    return torch.randint(0, 256, size).byte()


def planes(n, c, h, w):
    return pixels(n, c, h, w)


def channels_last(n, c, h, w):
    return pixels(n, c, h, w).contiguous(memory_format=torch.channels_last)


def some_channels(n, c, h, w):
    return channels_last(n, c + 5, h, w)[:, 3 : 3 + c]


def some_pixels(n, c, h, w):
    return channels_last(n, c, h + 2, 2 * w)[:, :, 1:-1, ::2]


LAYOUTS = [channels_last, planes, some_channels, some_pixels]


def call(
    channels=(16,), out=16, size=(9, 33), kernel=(3, 3), stride=(1, 1), dilation=(1, 1),
    activation="relu", pool=1, dtype=torch.uint8, residual=None, layout=channels_last, batch=1,
):  # fmt: skip
    """Arguments of `quantized_conv_act` with sums of which most become bytes of the middle."""
    products = sum(channels) * kernel[0] * kernel[1]
    weight = torch.randint(-128, 128, (out, sum(channels), *kernel)).to(torch.int8)
    rows, columns = -(-size[0] // stride[0]), -(-size[1] // stride[1])
    added = None
    if residual == torch.uint8:
        added = layout(batch, out, rows, columns)
    elif residual is not None:
        added = (20 * torch.randn(batch, out, rows, columns)).to(residual)
    zeros = [random.choice([0, 128, random.randrange(256)]) for _ in channels]
    keywords = {
        "zeros": zeros, "residual_scale": 0.3, "residual_zero": 100, "scale": 0.7, "zero": 37,
        "dtype": dtype, "stride": stride, "dilation": dilation, "activation": activation,
        "pool": pool,
    }  # fmt: skip
    tensors = [
        [layout(batch, c, *size) for c in channels],
        weight,
        torch.rand(out) * 0.01 / products**0.5,
        20 * torch.randn(out),
        torch.rand(out) if activation == "prelu" else None,
        added,
        OPS.pack_quantized_weight(weight, stride, dilation),
    ]
    return tensors, keywords


def check(tensors, keywords):
    result = OPS.quantized_conv_act(*tensors, **keywords)
    right = quantized.quantized_conv_act(*tensors, **keywords)
    compare(result, right)
    tensors[-1] = result.new_empty(0, dtype=torch.uint8)
    assert torch.equal(OPS.quantized_conv_act(*tensors, **keywords), result), "packed within"


def compare(result, right, ties=0.002):
    assert result.shape == right.shape and result.dtype == right.dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    if result.numel() == 0:
        return
    apart = (result.double() - right.double()).abs()
    if result.dtype == torch.uint8:
        assert apart.max() <= 1
        assert apart.sum() <= 1 + ties * result.numel()
    else:
        assert apart.norm() <= LIMITS[result.dtype] * right.double().norm()


@pytest.fixture(autouse=True)
def seeded(request):
    random.seed(request.node.name)
    torch.manual_seed(random.randrange(2**31))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 10, 16, 19, 28, 63, 64, 130])
def test_channels_and_layouts(kernel, layout, channels):
    out = random.choice([1, 3, 16, 17, 19, 32, 63])
    check(*call((channels,), out, kernel=kernel, layout=layout, batch=2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count", range(1, 7))
def test_concatenations(kernel, count):
    channels = random.choices([1, 3, 10, 16, 19, 28, 63, 64], k=count)
    check(*call(channels, 28, kernel=kernel, layout=random.choice(LAYOUTS)))
    # More of them in one tile of terms than a copy has a loop for.
    check(*call([2, 1, 3, 5, 4, 6, 7, 1, 9][: count + 3], 28, kernel=kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (1, 4), (12, 12), (300, 300)])
def test_strides_and_dilations(kernel, stride, dilation):
    channels = random.choice([(3,), (28,), (10, 18), (64,)])
    check(*call(channels, 20, (17, 70), kernel, stride, dilation))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 16), (3, 64), (2, 65), (3, 1100)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes(size, kernel):
    check(*call((24,), 33, size, kernel))
    check(*call((24,), 33, size, kernel, pool=2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, *LIMITS])
@pytest.mark.parametrize("residual", [None, torch.uint8, *LIMITS])
def test_epilogues(activation, dtype, residual):
    for pool, out in ((1, 35), (2, 7)):
        check(*call((19,), out, (6, 20), (1, 3), activation=activation, dtype=dtype, pool=pool,
                    residual=residual, layout=random.choice(LAYOUTS)))  # fmt: skip


def test_the_largest_sums():
    """Up to 2^31, beyond what float32 tells apart: no product is lost, none wraps around."""
    channels = 7310  # 65,790 products
    image = torch.full((1, channels, 3, 3), 255, dtype=torch.uint8)
    for value in (-128, 127):
        weight = torch.full((2, channels, 3, 3), value, dtype=torch.int8)
        factor, bias = torch.tensor([1.0, 2.0**-20]), torch.zeros(2)
        packed = OPS.pack_quantized_weight(weight, (1, 1), (1, 1))
        result = OPS.quantized_conv_act(
            [image], weight, factor, bias, None, None, packed, zeros=[255], dtype=torch.float32
        )
        expected = torch.tensor([255 * value * 9 * channels]).float() * factor
        assert torch.equal(result, expected.view(1, 2, 1, 1).expand(1, 2, 3, 3))
    more = torch.zeros(1, 7311, 3, 3, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="65799 products per output; expected at most 65793"):
        OPS.pack_quantized_weight(more, (1, 1), (1, 1))


def test_nothing_in_nothing_out():
    for size, batch, pool in (((0, 5), 1, 1), ((5, 0), 1, 1), ((4, 4), 0, 1), ((1, 9), 1, 2)):
        tensors, keywords = call(size=size, batch=batch, pool=pool)
        result = OPS.quantized_conv_act(*tensors, **keywords)
        assert result.shape == (batch, 16, size[0] // pool, size[1] // pool)
    assert OPS.quantize(torch.zeros(0, 3, 4, 5), 0.1, 3).shape == (0, 3, 4, 5)
    assert OPS.quantized_upsample(pixels(0, 3, 4, 5), (8, 9), True).shape == (0, 3, 8, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_quantize(dtype, layout):
    x = 5 * torch.randn(2, 19, 7, 9)
    x[0, :6, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0])
    x = x.to(dtype).contiguous(memory_format=layout)
    for scale, zero in ((0.0517, 100), (1.013, 0), (0.0131, 255)):
        compare(OPS.quantize(x, scale, zero), quantized.quantize(x, scale, zero))
        part = x[:, 2:13, 1:, ::2]
        compare(OPS.quantize(part, scale, zero), quantized.quantize(part, scale, zero))
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]).view(1, 5, 1, 1)
    assert OPS.quantize(halves, 1.0, 3).flatten().tolist() == [3, 5, 5, 3, 1]


@pytest.mark.parametrize("size", [(14, 18), (13, 17), (3, 4), (7, 20), (1, 1), (7, 9)])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 19, 64])
def test_upsampling(size, align_corners, layout, channels):
    x = layout(2, channels, 7, 9)
    result = OPS.quantized_upsample(x, size, align_corners)
    # Means of bytes often lie in the middle between two.
    compare(result, quantized.quantized_upsample(x, size, align_corners), ties=0.02)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, *LIMITS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sums(count, dtype, activation):
    channels, layout = random.choice([1, 19, 63]), random.choice(LAYOUTS)
    images = [layout(2, channels, 5, 7) for _ in range(count)]
    images[-1] = (
        images[-1] if dtype == torch.uint8 else 100 * torch.randn(2, channels, 5, 7).to(dtype)
    )
    factors, bias = torch.randn(count, channels), 100 * torch.randn(channels)
    slope = torch.rand(channels) if activation == "prelu" else None
    keywords = {"scale": 1.7, "zero": 40, "activation": activation}
    result = OPS.quantized_sum(images, factors, bias, slope, **keywords)
    compare(result, quantized.quantized_sum(images, factors, bias, slope, **keywords))


@pytest.mark.parametrize("dtype", [*LIMITS, torch.float64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("channels", [3, 24])
def test_convolution_of_values_to_bytes(dtype, stride, channels):
    x = torch.randn(2, channels, 21, 70).to(dtype)
    weight, bias = torch.randn(19, channels, 3, 3).to(dtype), torch.randn(19).to(dtype)
    for activation, slope in (("relu", None), ("prelu", torch.rand(19).to(dtype))):
        arguments = ([x], weight, bias, slope, None)
        keywords = {"scale": 0.0517, "zero": 60, "stride": stride, "activation": activation}
        packed = OPS.pack_weight(weight, stride=stride)
        result = OPS.conv_act_quantized(*arguments, **keywords)
        made = OPS.conv_act(*arguments, None, stride=stride, activation=activation)
        # Not rounded to the dtype in between.
        apart = result.int() - OPS.quantize(made, 0.0517, 60).int()
        assert apart.abs().max() <= (1 if dtype.itemsize > 2 else 4)
        exact = [None if t is None else t.double() for t in arguments[1:4]]
        right = quantized.conv_act_quantized([x.double()], *exact, None, **keywords)
        compare(result, right, ties=0.002 if dtype.itemsize > 2 else 0.2)
        assert torch.equal(OPS.conv_act_quantized(*arguments[:4], packed, **keywords), result)


def test_weights_of_any_layout():
    tensors, keywords = call((20,), 12)
    right = OPS.quantized_conv_act(*tensors, **keywords)
    weight = tensors[1].contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    tensors[1], tensors[-1] = weight, OPS.pack_quantized_weight(weight, (1, 1), (1, 1))
    assert torch.equal(OPS.quantized_conv_act(*tensors, **keywords), right)


def test_threads_do_not_change_the_result():
    tensors, keywords = call((28, 17), 63, (37, 150), residual=torch.uint8)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(OPS.quantized_conv_act(*tensors, **keywords))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(results))


CODE = """
import sys, torch, fassd_kernels
tensors, keywords = torch.load(sys.argv[1])
for call, named in zip(tensors, keywords):
    call[-1] = call[-1].new_empty(0)  # packed for another instruction set
results = [torch.ops.fassd_kernels.quantized_conv_act(*t, **k) for t, k in zip(tensors, keywords)]
torch.save(results, sys.argv[2])
"""


@pytest.mark.parametrize("choice", ["portable", "avx2", "avx512", "amx"])
def test_instruction_sets(choice, tmp_path):
    """Sums are the same on all of them, and so are bytes, but for the rounding of what follows."""
    shapes = [
        ((28, 17), 63, (9, 70)),
        ((64,), 32, (5, 40)),
        ((3,), 5, (7, 33)),
        ((19,), 16, (3, 9)),
    ]
    calls = [call(*shape, kernel) for shape, kernel in zip(shapes, KERNELS, strict=True)]
    tensors, keywords = zip(*calls, strict=True)
    torch.save((tensors, keywords), tmp_path / "calls")
    command = [sys.executable, "-c", CODE, tmp_path / "calls", tmp_path / "results"]
    environment = {**os.environ, "FASSD_KERNELS_CPU": choice}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "which this CPU does not offer" in run.stderr:
        pytest.skip(f"this CPU has no {choice}")
    assert run.returncode == 0, run.stderr
    for result, arguments, named in zip(
        torch.load(tmp_path / "results"), tensors, keywords, strict=True
    ):
        compare(result, quantized.quantized_conv_act(*arguments, **named))


def test_compilers_know_the_results():
    """Shape, dtype and layout of the fake kernels are the kernels'."""

    def check(name, *arguments, **keywords):
        operator = getattr(OPS, name).default
        torch.library.opcheck(operator, arguments, keywords, test_utils="test_faketensor")

    for changed in (
        {},
        {"stride": (2, 1), "pool": 2, "size": (11, 34), "layout": planes},
        {"stride": (3, 2), "dtype": torch.float16, "channels": (8, 5), "out": 7, "batch": 2},
        {"residual": torch.uint8, "kernel": (1, 3), "dilation": (1, 4)},
    ):
        tensors, keywords = call(**changed)
        check("quantized_conv_act", *tensors, **keywords)
    x, weight = torch.randn(2, 5, 9, 12), torch.randn(7, 5, 3, 3)
    level = {"scale": 0.1, "zero": 3}
    check("quantize", x, 0.1, 3)
    check("conv_act_quantized", [x], weight, None, None, None, **level, stride=[2, 1])
    for aligned in (True, False):
        check("quantized_upsample", planes(2, 5, 4, 6), [9, 11], aligned)
    check("quantized_sum", [planes(2, 5, 9, 12), x], torch.rand(2, 5), torch.rand(5), None, **level)


REFUSED = [
    ({"inputs": []}, "inputs is an empty list"),
    ({"inputs": [torch.zeros(1, 16, 9, 33)]}, r"inputs\[0\] has dtype torch.float32; expected"),
    ({"zeros": [1, 2]}, "zeros has 2 numbers; expected 1"),
    ({"zeros": [256]}, r"zeros\[0\] is 256; expected a byte"),
    ({"weight": torch.zeros(16, 16, 3, 3)}, "weight has dtype torch.float32; expected torch.int8"),
    ({"weight": torch.zeros(16, 9, 3, 3).char()}, "weight takes 9 input channels, but 16 come in"),
    ({"weight": torch.zeros(16, 16, 5, 5).char()}, "weight has a 5x5 kernel; expected 3x3"),
    ({"factor": torch.zeros(15)}, r"factor has shape \(15,\); expected \(16,\)"),
    ({"bias": torch.zeros(16).double()}, "bias has dtype torch.float64; expected torch.float32"),
    ({"slope": torch.zeros(16)}, "activation is 'relu' and slope is given"),
    ({"residual": torch.zeros(1, 16, 9, 32)}, r"residual has shape \(1, 16, 9, 32\); expected"),
    ({"residual": torch.zeros(1, 16, 9, 33).long()}, "residual has dtype torch.int64; expected"),
    ({"residual": pixels(1, 16, 9, 33), "residual_scale": 0.0}, "residual_scale is 0; expected"),
    ({"residual": pixels(1, 16, 9, 33), "residual_zero": -1}, "residual_zero is -1; expected"),
    ({"packed": torch.zeros(80).byte()}, "are not what pack_quantized_weight gives for a weight"),
    ({"scale": float("inf")}, "scale is inf; expected a finite number above 0"),
    ({"zero": 256}, "zero is 256; expected a byte"),
    ({"dtype": torch.float64}, "dtype is torch.float64; expected torch.uint8, float32"),
    ({"stride": [0, 1]}, r"stride is \[0, 1\]; expected at least 1"),
    ({"stride": [1, 9]}, "expected a horizontal stride of at most 8"),
    ({"dilation": [1, 513]}, "a horizontal dilation of at most 512"),
    ({"activation": "tanh"}, "activation is 'tanh'; expected one of none, relu"),
    ({"pool": 3}, "pool is 3; expected 1 or 2"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "told"), REFUSED, ids=[told[:30] for _, told in REFUSED])
def test_errors(changed, told):
    names = ("inputs", "weight", "factor", "bias", "slope", "residual", "packed")
    tensors, keywords = call()
    arguments = {**dict(zip(names, tensors, strict=True)), **keywords, **changed}
    with pytest.raises(RuntimeError, match=f"quantized_conv_act: .*{told}"):
        OPS.quantized_conv_act(**arguments)


def test_errors_of_the_others():
    with pytest.raises(RuntimeError, match=r"quantized_sum: factors has shape \(2, 3\); expected"):
        OPS.quantized_sum(
            [pixels(1, 3, 4, 5)], torch.zeros(2, 3), torch.zeros(3), None, scale=1.0, zero=0
        )
    with pytest.raises(RuntimeError, match=r"quantized_sum: inputs\[1\] has 2 channels, but"):
        images = [pixels(1, 3, 4, 5), pixels(1, 2, 4, 5)]
        OPS.quantized_sum(images, torch.zeros(2, 3), torch.zeros(3), None, scale=1.0, zero=0)
    with pytest.raises(
        RuntimeError, match=r"quantize: input has dtype torch.uint8; expected float"
    ):
        OPS.quantize(pixels(1, 2, 3, 4), 0.1, 0)
    with pytest.raises(RuntimeError, match="quantize: scale is -1; expected a finite number"):
        OPS.quantize(torch.zeros(1, 2, 3, 4), -1.0, 0)
    with pytest.raises(RuntimeError, match="conv_act_quantized: zero is 300; expected a byte"):
        x, weight = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 3)
        OPS.conv_act_quantized([x], weight, None, None, None, scale=1.0, zero=300)
    with pytest.raises(RuntimeError, match=r"quantized_upsample: input has dtype torch.float32"):
        OPS.quantized_upsample(torch.zeros(1, 2, 3, 4), (6, 8), True)
    with pytest.raises(RuntimeError, match=r"quantized_upsample: size is \[0, 8\]; expected"):
        OPS.quantized_upsample(pixels(1, 2, 3, 4), (0, 8), True)
    with pytest.raises(RuntimeError, match="pack_quantized_weight: weight has dtype"):
        OPS.pack_quantized_weight(torch.zeros(1, 2, 3, 3), (1, 1), (1, 1))
