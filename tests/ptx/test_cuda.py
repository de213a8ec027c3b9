"""Every compiled kernel of the CUDA backend is right, not only those that plans pick.

These tests run where ``PTX_SETTINGS`` says what GPU is executed: see README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import cases, harness
from conformance.harness import (
    EXECUTED,
    TOLERANCES,
    Call,
    Subject,
    Target,
    check,
    check_close,
    check_result,
)
from ptx import executor
from ptx.calibration import as_kernels_leave_it
from ptx.mutations import padded
from torch import nn

import fassd
import fassd_kernels
from fassd_kernels import ops, reference
from fassd_kernels.checks import ACTIVATIONS
from fassd_kernels.triton.layout import empty_image
from fassd_kernels.triton.packing import pack

pytestmark = pytest.mark.skipif(EXECUTED != "cuda", reason="PTX_SETTINGS is not set: see README.md")
VARIANT, FUSION = "FASSD_KERNELS_CUDA_VARIANT", "FASSD_KERNELS_CUDA_FUSION"
COPIES = "FASSD_KERNELS_CUDA_COPIES"
PATH = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
SHARED_KIB = {80: 163, 86: 99, 90: 227}  # that a block can have, by compute capability
CAPABILITY = executor.DEFAULTS["capability"]
HALF, TF32, FLOAT = range(3)
HALVES = (torch.float16, torch.bfloat16) if CAPABILITY >= 80 else (torch.float16,)
ARITHMETIC = {torch.float16: HALF, torch.bfloat16: HALF, torch.float32: FLOAT}


def variants() -> Iterator[tuple[torch.dtype, str]]:
    for dtype, arithmetic in ARITHMETIC.items():
        for row in torch.ops.fassd_kernels_plan.variants(arithmetic).tolist():
            yield dtype, ",".join(map(str, row))


def subject(operator: str) -> Subject:
    return Subject(operator, Target(fassd_kernels.backends()["cuda"], "cpu"))


def launches_of(call: Call, dtype: torch.dtype) -> list[dict[str, Any]]:
    """What is planned for a call on the executed GPU."""
    gpu = [executor.DEFAULTS["multiprocessors"], SHARED_KIB[CAPABILITY] * 1024, CAPABILITY]
    call = call.to(dtype)
    operator = getattr(torch.ops.fassd_kernels_plan, call.operator)
    return json.loads(operator(*call.positional, **call.keywords, gpu=gpu))


def planned(call: Call, dtype: torch.dtype) -> list[object]:
    """The kernel of a call's first launch, and its warps, m_tiles and n_tiles."""
    launch = launches_of(call, dtype)[0]
    return [launch["kernel"], *(launch["blocks"][0][n] for n in ("warps", "m_tiles", "n_tiles"))]


Chosen = Callable[[Sequence[Call], torch.dtype], Sequence[Call]]


@pytest.fixture
def chosen(pytestconfig: pytest.Config) -> Chosen:
    """All calls, or where rows are sampled one in three of bfloat16's.

    Its kernels are those of float16 in another type.
    """
    sampled = (pytestconfig.getoption("every", None) or 1) > 1
    return lambda calls, dtype: calls[::3] if sampled and dtype == torch.bfloat16 else calls


CONVOLUTIONS = (
    # A halo over the border of every tile, rows and columns that no tile fills, more channels than
    # one block computes, chunks that end within a product.
    cases.conv_act(2, (18, 10, 33), 70, (37, 45), activation="relu"),
    cases.conv_act(1, (16,), 19, (17, 70), activation="prelu", residual=True),
    cases.conv_act(1, (40,), 10, (33, 34), pool=2),
    cases.conv_act(1, (24, 8), 65, (9, 67), kernel=(1, 1), residual=True),
    cases.conv_act(1, (31,), 33, (40, 21), stride=(2, 2), dilation=(1, 3)),
)


@pytest.mark.parametrize(("dtype", "variant"), list(variants()), ids=str)
def test_every_variant(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, variant: str, chosen: Chosen
) -> None:
    monkeypatch.setenv(VARIANT, variant)
    plain = CONVOLUTIONS[0]
    expected = [int(number) for number in variant.split(",")[:3]]
    assert planned(plain, dtype) == ["convolution_kernel", *expected]
    for call in chosen(CONVOLUTIONS, dtype):
        check(subject("conv_act"), call, dtype, "channels_last")


SEVERAL = (
    cases.hardblock(2, 20, (10, 18, 10, 28), (37, 45)),
    cases.hardblock(1, 64, (16, 28, 16, 46, 16, 28, 16, 78), (19, 35)),
    cases.hardblock(1, 33, (24, 40, 24, 70, 24), (9, 50)),
    cases.hardblock(1, 7, (1, 3), (16, 16)),
    cases.asymmetric_conv(2, 31, 31, 31, (37, 45), 8, activation="prelu"),
    cases.asymmetric_conv(1, 59, 40, 61, (9, 130), 4),
    cases.asymmetric_conv(1, 20, 112, 100, (16, 60), 24),
    cases.dapf(1, 40, 20, 40, (33, 50), (3, 12, 24)),
    cases.dapf(2, 224, 112, 224, (8, 20), (12, 24, 36)),
    cases.mda(1, 63, 31, (33, 70), 2),
    cases.mda(1, 24, 12, (20, 33), 8),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS[ACTIVATIONS.index("prelu") + 1 :])
def test_activations_behind_a_convolution(name: str, dtype: torch.dtype) -> None:
    """Those that no epilogue has: in place, on the way to a pool, behind each kind of kernel."""
    kernels = {"conv_act": "convolution_kernel", "normalize_conv_act": "stem_kernel"}
    for call in (
        cases.conv_act(2, (9,), 11, (13, 22), (1, 1), activation=name, residual=True),
        cases.conv_act(1, (9,), 20, (13, 22), activation=name, pool=2),
        cases.normalize_conv_act(1, 16, (20, 36), stride=(2, 2), activation=name),
        cases.upsample_conv1x1(1, (9,), (7,), 11, (5, 7), (9, 15), name),
    ):
        *_, convolution, activation = launches_of(call, dtype)
        assert activation["kernel"] == "activation_kernel"
        if dtype == torch.float16:
            assert convolution["kernel"] == kernels.get(call.operator, "convolution_kernel")
        check(subject(call.operator), call, dtype, "channels_last")


def check_tf32(call: Call) -> None:
    """Inputs and weights are rounded to TF32, not cut off: half the error; but rounded they are."""
    call = call.to(torch.float32).laid_out("channels_last")
    function = getattr(torch.ops.fassd_kernels_cuda, call.operator)
    right = call.to(torch.float64)(getattr(reference, call.operator))
    result = function(*call.positional, **call.keywords, allow_tf32=True)
    check_close(result, right, 6e-4)
    with pytest.raises(AssertionError, match="expected <="):
        check_close(result, right, TOLERANCES[torch.float32])


@pytest.mark.parametrize("variant", torch.ops.fassd_kernels_plan.variants(TF32).tolist(), ids=str)
def test_tf32(monkeypatch: pytest.MonkeyPatch, variant: list[int]) -> None:
    monkeypatch.setenv(VARIANT, ",".join(map(str, variant)))
    for call in CONVOLUTIONS:
        check_tf32(call)


@pytest.mark.parametrize("fusion", ["always", "never"])
def test_tf32_of_several_convolutions(monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    monkeypatch.setenv(FUSION, fusion)
    for call in SEVERAL:
        check_tf32(call)


@pytest.mark.skipif(CAPABILITY != 90, reason="the shared memory of a 9.0 holds the largest")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_pair(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setenv(FUSION, "always")
    compiled = torch.ops.fassd_kernels_plan.variants
    for warps, _, tiles, *_ in compiled(HALF, "pair_kernel").tolist():
        monkeypatch.setenv(VARIANT, f"{warps},2,{tiles},0")
        width = 7 * tiles - 1
        call = cases.asymmetric_conv(1, 31, width, width, (19, 45), 4, activation="prelu")
        assert planned(call, dtype) == ["pair_kernel", warps, 2, tiles]
        check(subject("asymmetric_conv"), call, dtype, "channels_last")


@pytest.mark.parametrize("fusion", ["always", "never"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fusion(
    monkeypatch: pytest.MonkeyPatch, fusion: str, dtype: torch.dtype, chosen: Chosen
) -> None:
    """Several convolutions in one kernel, and the same one by one."""
    monkeypatch.setenv(FUSION, fusion)
    for call in chosen(SEVERAL, dtype):
        check(subject(call.operator), call, dtype, "channels_last")


ENGINE = pytest.mark.skipif(CAPABILITY < 90, reason="the copy engine came with 9.0")


def copied_boxes() -> int:
    """How often the engine was told to copy since the counts were forgotten."""
    counts = executor.counts()
    return sum(one.warps for one in counts if one.opcode.startswith("cp.async.bulk.tensor"))


@ENGINE
@pytest.mark.parametrize("copies", ["", "threads"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_copies(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, copies: str, chosen: Chosen
) -> None:
    """By the engine, of images as kernels leave them, or by threads: as it is asked for."""
    monkeypatch.setenv(COPIES, copies)
    monkeypatch.setitem(harness.LAYOUTS, "padded", padded)
    for call in chosen((*CONVOLUTIONS, *SEVERAL), dtype):
        executor.forget_counts()
        check(subject(call.operator), call, dtype, "padded")
        assert (copied_boxes() > 0) == (copies == ""), call


def strided(x: torch.Tensor, strides: tuple[int, int, int, int]) -> torch.Tensor:
    """The first picture of an image again and again, or all of them, at other distances."""
    room = x.new_zeros(sum(s * (n - 1) for s, n in zip(strides, x.shape, strict=True)) + x.numel())
    pictures = 1 if strides[0] == 0 else len(x)
    room.as_strided((pictures, *x.shape[1:]), strides).copy_(x[:pictures])
    return room.as_strided(x.shape, strides)


@ENGINE
@pytest.mark.parametrize(
    "strides",
    [
        (0, 1, 320, 16),  # one picture, expanded
        (1928, 1, 320, 16),  # pictures that are no whole number of rows apart
        (3840, 1, 640, 32),  # slices of wider pixels
        (2400, 1, 400, 20),  # pixels 40 bytes apart
        (2400, 1, 400, 16),  # rows with something behind them
        (1920, 120, 20, 1),  # planes
    ],
)
def test_images_of_which_the_engine_may_not_copy(strides: tuple[int, int, int, int]) -> None:
    call = cases.conv_act(2, (16,), 24, (6, 20)).to(torch.float16)
    x = strided(call.arguments["inputs"][0], strides)
    weight = call.arguments["weight"]
    executor.forget_counts()
    result = ops.operator("conv_act", "cuda")([x], weight)
    expected = nn.functional.conv2d(x.double(), weight.double(), padding=1)
    check_close(result, expected, TOLERANCES[torch.float16])
    assert (copied_boxes() > 0) == (strides == (3840, 1, 640, 32))


@ENGINE
def test_blocks_compute_several_tiles() -> None:
    """Where a GPU has fewer multiprocessors than a picture has tiles."""
    call = cases.conv_act(2, (16, 40), 24, (150, 300), activation="relu")
    (launch,) = launches_of(call, torch.float16)
    (blocks,) = launch["blocks"]
    few = executor.DEFAULTS["multiprocessors"] <= 4
    assert (blocks["tiles"] > 1) == few
    executor.forget_counts()
    check(subject("conv_act"), call.map(as_kernels_leave_it), torch.float16, "channels_last")
    assert few <= (max(one.blocks for one in executor.counts()) < blocks["blocks"])


def test_what_the_gpu_offers_decides_the_plan() -> None:
    """With less shared memory, or more; this GPU, whichever it is."""
    calls = (
        cases.conv_act(1, (70,), 9, (33, 30), stride=(3, 3), dilation=(9, 9)),
        cases.mda(1, 63, 31, (33, 70), 2),
        cases.hardblock(1, 20, (10, 18, 10, 28), (37, 45)),
        cases.dapf(1, 40, 20, 40, (33, 50), (3, 12, 24)),
    )
    for call in (*CONVOLUTIONS, *calls):
        check(subject(call.operator), call, torch.float16, "channels_last")
        check(subject(call.operator), call, torch.float32)


def run_on(program: str, **environment: str) -> str:
    """What a program says when it fails, in a process of its own."""
    head = "import torch, ptx.test_cuda as t\nfrom conformance import cases\n"
    command = [sys.executable, "-c", head + program]
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(PATH)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == bool(done.stderr), done
    return done.stderr


def test_offsets_beyond_32_bits() -> None:
    """Two pictures 2^31 + 64 elements apart, of which only what is touched takes memory."""
    apart = 2**31 + 64
    call = cases.conv_act(2, (16,), 16, (9, 17), residual=True).to(torch.float16)

    def far(x: torch.Tensor) -> torch.Tensor:
        room = torch.empty(apart + x[0].numel(), dtype=x.dtype)
        batch, channels, height, width = x.shape
        strides = (apart, 1, width * channels, channels)
        return room.as_strided((batch, channels, height, width), strides).copy_(x)

    spread = call.map(far, ("inputs", "residual"))
    assert torch.equal(subject("conv_act")(spread), subject("conv_act")(call))


@pytest.mark.parametrize("dtype", [*ARITHMETIC, torch.float64], ids=str)
def test_pictures_are_normalised(dtype: torch.dtype) -> None:
    call = cases.normalize(2, (37, 41)).to(dtype)
    right = call.to(torch.float64)(reference.normalize)
    result = call(torch.ops.fassd_kernels_cuda.normalize)
    assert result.dtype == dtype
    check_close(result, right, TOLERANCES[dtype])


def test_more_inputs_than_a_launch_knows() -> None:
    call = cases.conv_act(2, (3, 1, 8, 2, 5, 9, 1, 4, 6, 16, 7), 20, (13, 17), activation="relu")
    for dtype in ARITHMETIC:
        check(subject("conv_act"), call, dtype, "sliced_channels")


def test_weights_are_packed_as_for_triton() -> None:
    """A module's packed weights serve both, whichever a table of measurements chooses."""
    for shape in ((9, 7, 3, 3), (16, 3, 1, 1), (33, 5, 3, 1), (1, 1, 1, 3)):
        for dtype in ARITHMETIC:
            weight = torch.randn(shape).to(dtype)
            packed = torch.ops.fassd_kernels_cuda.pack_weight(weight)
            assert torch.equal(packed, pack(weight))


@pytest.mark.parametrize("fusion", ["always", "never"])
@pytest.mark.parametrize("name", ["fassd_net", "baseline_aspp"])
def test_networks(monkeypatch: pytest.MonkeyPatch, name: str, fusion: str) -> None:
    monkeypatch.setenv(FUSION, fusion)
    torch.manual_seed(0)
    model: nn.Module = fassd.create_model(name).eval()
    x = torch.randn(1, 3, 96, 130)
    with torch.no_grad():
        right = model.double()(x.double())
        model.float()
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 4e-3)):
            fast = fassd_kernels.accelerate(model, dtype=dtype, backend="cuda")
            result = fast(x.to(dtype)).double()
            assert (result - right).norm() / right.norm() <= tolerance


def test_frames_in_labels_out() -> None:
    """The first layer takes the bytes: the same labels as of the normalised picture."""
    torch.manual_seed(0)
    model = fassd.create_model("fassd_net_l2").eval()
    fast = fassd_kernels.accelerate(model, dtype=torch.float16, output="labels", backend="cuda")
    frames = torch.randint(0, 256, (1, 120, 130, 3)).to(torch.uint8)
    with torch.no_grad():
        labels = fast.label_pictures(frames, cases.MEAN, cases.STD)
        # A copy: the CPU's kernels have memory of their own, which is not watched.
        x = ops.normalize(frames, mean=cases.MEAN, std=cases.STD, dtype=torch.float16).clone()
        assert torch.equal(labels, fast(x))


# Executed warp instructions for 32 pixels of the result, of a width that fills the warps.
BUDGETS = [
    (cases.normalize_conv_act(1, 16, (64, 512), stride=(2, 2), activation="relu"), HALF, 1000),
    (cases.conv_act(1, (3,), 16, (64, 512), stride=(2, 2), activation="relu"), HALF, 1000),
    (cases.upsample_argmax(1, 19, (8, 512), (32, 2048)), HALF, 180),
    (cases.upsample_argmax(1, 19, (8, 512), (32, 2048)), FLOAT, 200),
]


@pytest.mark.parametrize(("call", "arithmetic", "most"), BUDGETS, ids=str)
def test_instructions_of_32_pixels(call: Call, arithmetic: int, most: int) -> None:
    dtype = torch.float16 if arithmetic == HALF else torch.float32

    def padded(x: torch.Tensor) -> torch.Tensor:
        return empty_image(x.shape, x.dtype, x.device, padded=True).copy_(x)

    call = call.to(dtype).map(padded, ("input", "inputs"))
    executor.forget_counts()
    result = subject(call.operator)(call)
    count = sum(one.warps for one in executor.counts() if "pack_weight" not in one.kernel)
    groups = result[:, 0].numel() if result.dim() == 4 else result.numel()
    assert count * 32 / groups <= most


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_labels_are_of_rounded_values(dtype: torch.dtype) -> None:
    """Of values that become equal when they are rounded, the first has the label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-4, 5, (1, 19, 3, 4), generator=generator).double()
    exact = reference.upsample(logits, (65, 97))
    right = exact.to(dtype).argmax(1)
    assert not torch.equal(right, exact.argmax(1)), "rounding changes nothing"
    call = Call("upsample_argmax", {"input": logits.to(dtype), "size": (65, 97)})
    assert torch.equal(subject("upsample_argmax")(call), right)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 5)])
def test_what_is_no_number_stays_in_its_window(value: float, dilation: tuple[int, int]) -> None:
    """The zeros beside a row of the window are no neighbours multiplied by zero."""
    call = cases.conv_act(1, (3,), 16, (20, 70), stride=(1, 2), dilation=dilation)
    image = call.arguments["inputs"][0]
    image[:, 1, 7, 33] = value
    call = call.to(torch.float16)
    right = call.to(torch.float64)(reference.conv_act)
    result = subject("conv_act")(call)
    assert torch.equal(result.isfinite(), right.isfinite())


def test_results_are_the_same_every_time() -> None:
    for call in (CONVOLUTIONS[0], cases.mda(1, 63, 31, (33, 70), 2)):
        call = call.to(torch.float16)
        first = subject(call.operator)(call)
        assert torch.equal(first, subject(call.operator)(call))
        check_result(call, first)


def test_refusals() -> None:
    call = cases.conv_act().to(torch.float64)
    with pytest.raises(RuntimeError, match="the cuda backend takes float32, float16 and bfloat16"):
        call(torch.ops.fassd_kernels_cuda.conv_act)


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        (75, torch.bfloat16, "bfloat16 needs compute capability 8.0; this GPU has 7.5"),
        (70, torch.float32, "compute capability 7.0; the cuda backend was compiled for 7.5"),
    ],
)
def test_refusals_of_old_gpus(capability: int, dtype: torch.dtype, message: str) -> None:
    program = f"cases.conv_act().to({dtype})(torch.ops.fassd_kernels_cuda.conv_act)"
    assert message in run_on(program, PTX_SETTINGS=f"capability={capability}")
