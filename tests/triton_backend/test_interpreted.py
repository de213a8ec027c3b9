"""What the conformance suite does not reach: halos, wide offsets, whole networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conformance import cases, harness
from conformance.harness import check_close, check_result, expected, poison
from kernels.conftest import network, relative_error, shake
from torch import Tensor
from triton_backend.conftest import interpreted, plan_of, run, with_config

import fassd
from fassd_kernels import accelerate, ops
from fassd_kernels.triton import program as programs
from fassd_kernels.triton.configurations import CANDIDATES, Config
from fassd_kernels.triton.layout import empty_image

pytestmark = interpreted


@pytest.fixture(autouse=True, scope="module")
def quick_interpreter() -> Iterator[None]:
    with harness.quick_interpreter():
        yield


@pytest.mark.parametrize("dilation", [30, 70, 149, 150])
@pytest.mark.parametrize("config", [c for c in CANDIDATES["asymmetric", True] if c.recompute])
def test_a_halo_that_is_not_worth_it(config, dilation):
    call = cases.asymmetric_conv(1, 9, 17, 20, (2, 150), dilation, "prelu").to(torch.float16)
    check_result(call, with_config(call, config, "asymmetric"))


@pytest.mark.parametrize("width", [63, 64, 65, 123, 124, 125])
def test_halos_at_the_ends_of_a_row(width):
    config = Config(64, 32, 16, block_middle=16)
    call = cases.asymmetric_conv(1, 5, 6, 7, (2, width), 2).to(torch.float32)
    check_result(call, with_config(call, config, "asymmetric"))


# --- layouts --------------------------------------------------------------------------------------


def test_padded_results_go_back_in():
    """Also slices of them, whose lanes behind the last channel hold other channels, or NaN."""
    first = cases.conv_act(1, (5,), 13, (7, 9), activation="relu").to(torch.float16)
    x = run(first)
    assert x.stride() == (7 * 9 * 16, 1, 9 * 16, 16)
    poisoned = poison((1, 7, 9, 16), x).permute(0, 3, 1, 2)
    poisoned[:, :13] = x
    for image in (x, x[:, :9], x[:, 4:], x[:, 8:12, 2:, 3:], poisoned[:, :13], poisoned[:, 8:13]):
        call = cases.conv_act(1, (image.shape[1],), 6, tuple(image.shape[2:])).to(torch.float16)
        call = call.with_(inputs=[image])
        check_result(call, run(call))


def test_padded_lanes_hold_zeros():
    """Written by whoever writes the image: the next kernel loads whole vectors of scratch."""
    for call in (cases.conv_act(1, (5,), 13), cases.asymmetric_conv(1, 5, 4, 13)):
        call = call.to(torch.float32)
        call.tensors[0][0, 2, 3, 4] = float("inf")
        result = run(call)
        whole = torch.empty(0).set_(result.untyped_storage())
        assert not whole.view(5, 7, 16)[..., 13:].any()


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (2, 5, 1, 9), (2, 5, 9, 1), (3, 1, 4, 4)])
def test_sides_of_one(shape):
    """Strides of axes of size 1 mean nothing, and may be anything."""
    batch, channels, height, width = shape
    call = cases.conv_act(batch, (channels,), 9, (height, width)).to(torch.float16)
    image = call.arguments["inputs"][0]
    for padded in (False, True):
        laid = empty_image(shape, torch.float16, "cpu", padded).copy_(image)
        strides = [s if n > 1 else 12345 for n, s in zip(shape, laid.stride(), strict=True)]
        same = call.with_(inputs=[laid.as_strided(shape, strides)])
        check_result(same, run(same))


@pytest.mark.parametrize("width", [8, 24, 40])
def test_weights_laid_out_in_different_ways(width):
    """Some as folding leaves them, some plain, some packed: rows are of one length all the same."""
    call = cases.dapf(1, 16, width, 9, (4, 9), (1, 2, 3)).to(torch.float16)
    weights = call.arguments["weights"]
    packed = [ops.operator("pack_weight", "triton")(weight) for weight in weights]
    for i in range(0, len(weights), 2):
        weights[i] = weights[i].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
        packed[i] = packed[i].new_empty(0)
    check_result(call, run(call))
    check_result(call, run(call.with_(packed=packed)))


@pytest.mark.parametrize(("low", "skip"), [((0,), (3,)), ((5,), (0, 0)), ((5, 0), (0, 3))])
def test_a_side_without_channels(low, skip):
    call = cases.upsample_conv1x1(1, low, skip, 9, (3, 4), (5, 7), "relu").to(torch.float32)
    check_result(call, run(call))


@pytest.mark.parametrize("operator", ["asymmetric_conv", "upsample_conv1x1", "dapf", "mda"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_packed_weights_of_another_number(operator, count):
    call = cases.SAMPLES[operator][0].to(torch.float32)
    run(call)  # plans are kept, and this one is for another call
    with pytest.raises(RuntimeError, match=f"{operator}: packed has {count} tensors; expected"):
        run(call.with_(packed=[torch.zeros(3)] * count))


# --- offsets beyond 32 bits -----------------------------------------------------------------------


def far_apart(shape: tuple[int, ...], stride: int, dtype: torch.dtype) -> Tensor:
    """Pictures whose distance no 32-bit number holds; the pages between are never touched."""
    _, channels, height, width = shape
    buffer = torch.empty(stride + channels * height * width, dtype=dtype)
    strides = (stride, 1, width * channels, channels)
    return buffer.as_strided(shape, strides)


@pytest.mark.parametrize("stride", [2**31 - 64, 2**31, 2**31 + 2**30])
def test_offsets_beyond_32_bits(stride):
    shape = (2, 8, 3, 5)
    call = cases.conv_act(2, (8,), 9, (3, 5)).to(torch.float16)
    far = far_apart(shape, stride, torch.float16).copy_(call.arguments["inputs"][0])
    call = call.with_(inputs=[far])
    (launch,) = plan_of(lambda: run(call)).launches
    assert launch.arguments["WIDE"] == (stride >= 2**31 - 64)
    with programs.recording():  # planned, and forgotten again
        pass
    right = expected(call.with_(inputs=[far.contiguous()]))
    check_close(run(call), right, 2e-3)


def test_offsets_below_32_bits_are_computed_in_them():
    call = cases.conv_act(2, (8,), 9, (3, 5)).to(torch.float16)
    (launch,) = plan_of(lambda: run(call)).launches
    assert launch.arguments["WIDE"] is False


OTHERS = ("upsample", "upsample_argmax", "upsample_confidence", "asymmetric_conv", "aspp")


@pytest.mark.parametrize("operator", OTHERS)
def test_offsets_beyond_32_bits_of_the_others(operator):
    call = getattr(cases, operator)(batch=2, channels=8).to(torch.float16)
    image = call.arguments["input"]
    far = far_apart(tuple(image.shape), 2**31, torch.float16).copy_(image)
    call = call.with_(input=far)
    launches = plan_of(lambda: run(call)).launches
    assert launches[0].arguments["WIDE"] is True
    near = call.with_(input=far.contiguous())
    assert torch.equal(run(call), run(near))


# --- whole networks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "dtype", "tolerance"),
    [
        ("fassd_net", (34, 66), torch.float32, 2e-6),
        ("fassd_net_l2", (57, 65), torch.float16, 2e-3),
    ],
)
def test_networks(name, size, dtype, tolerance):
    """Logits of both; what ends in labels is one kernel more, which one network shows."""
    model = network(name)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fast = accelerate(model, dtype=dtype, backend="triton")
        logits = fast(x)
        labels = fast.predict_labels(x) if name == "fassd_net_l2" else None
        right = model.double()(x.double())
    assert relative_error(logits, right) <= tolerance
    if labels is not None:
        assert labels.dtype == torch.uint8
        assert (labels == logits.argmax(1)).float().mean() >= 0.999


def test_modules_are_compiled_whole():
    """Padded results pass through the compiler: the fake kernels know their strides."""
    torch.manual_seed(0)
    block = shake(fassd.models.HarDBlock(9, 10, 1.7, 4)).eval()
    fast = accelerate(block, backend="triton")
    x = torch.randn(1, 9, 6, 7)
    with torch.no_grad():
        result = torch.compile(fast, fullgraph=True)(x)
        assert relative_error(result, block.double()(x.double())) <= 2e-6
