"""What every operator promises, whatever it computes: empty batches, non-finite values, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conformance import cases, harness
from conformance.cases import NOTHING, SAMPLES, samples
from conformance.harness import (
    EXECUTED,
    MULTIPLYING,
    WITH_GRADIENT,
    Call,
    Subject,
    check,
    check_result,
)
from torch import Tensor

import fassd_kernels
from fassd_kernels.triton.device import INTERPRETED


def test_samples(subject, dtype):
    for call in SAMPLES[subject.operator]:
        check(subject, call, dtype)


def test_arguments_by_name(subject):
    for call in samples(subject):
        function = fassd_kernels.ops.operator(subject.operator, subject.target.backend.name)
        assert torch.equal(function(**call.arguments), subject(call))


# --- nothing to do --------------------------------------------------------------------------------


def test_nothing_in_nothing_out(subject, dtype):
    for call in NOTHING[subject.operator]:
        right = harness.expected(call)
        assert right.numel() == 0
        call = call.to(dtype, subject.device)
        result = subject(call)
        assert result.shape == right.shape
        assert result.dtype == (torch.uint8 if call.row.gives_labels else dtype)


# --- non-finite values ----------------------------------------------------------------------------

NON_FINITE = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.operators(*(name for name in WITH_GRADIENT if name != "normalize_conv_act"))
@pytest.mark.parametrize("value", NON_FINITE)
def test_non_finite_pixels(subject, value):
    """A pixel that is not finite spoils what it spoils in the reference, and nothing else."""
    for call in samples(subject):
        images: list[torch.Tensor] = []
        call.map(images.append, harness.IMAGES)
        for image in images:

            def spoil(x: torch.Tensor, image: torch.Tensor = image) -> torch.Tensor:
                y = x.clone()
                if x is image:
                    y[-1, -1, x.shape[2] // 2, x.shape[3] // 2] = value
                return y

            spoiled = compare_non_finite(subject, call.map(spoil))
            # Of windows with other pixels, minus infinity is never the largest.
            assert spoiled > 0 or (subject.operator, value) == ("max_pool", float("-inf"))


@pytest.mark.operators(*MULTIPLYING)
@pytest.mark.parametrize("value", NON_FINITE)
def test_non_finite_vectors(subject, value, some):
    """The last bias, scale, shift or slope; an activation may well hide it (ReLU of -inf)."""
    shown = 0
    for call in samples(subject):
        for index in some([i for i, tensor in enumerate(call.tensors) if tensor.dim() == 1]):
            spoiled = call.map(torch.clone)
            spoiled.tensors[index][-1] = value
            shown += compare_non_finite(subject, spoiled)
    assert shown > 0 or value == float("-inf")


@pytest.mark.operators("upsample", "upsample_conv1x1")
@pytest.mark.parametrize("value", NON_FINITE)
@pytest.mark.parametrize("size", [(6, 7), (6, 11), (9, 7)])
def test_non_finite_pixels_on_an_axis_that_keeps_its_size(subject, value, size):
    """There PyTorch reads no neighbour, not even with weight zero, which would make inf a NaN."""
    if subject.operator == "upsample":
        call = cases.upsample(1, 3, (6, 7), size)
        image = call.tensors[0]
    else:
        call = cases.upsample_conv1x1(1, (3,), (2,), 4, (6, 7), size)
        image = next(x for x in call.tensors if x.dim() == 4 and x.shape[2:] == (6, 7))
    image[0, 1, 2, 3] = value
    assert compare_non_finite(subject, call.to(subject.exact, subject.device)) > 0


@pytest.mark.operators("conv_act", "hardblock")
def test_infinite_weights(subject):
    """Where no padding is (there, compiled backends multiply it too), as in the reference."""
    calls = [
        cases.conv_act(channels=(24,), out_channels=25, size=(9, 64), kernel=kernel)
        for kernel in ((3, 3), (3, 1), (1, 3))
    ]
    if subject.operator == "hardblock":
        calls = [cases.hardblock(channels=8, widths=(9,), size=(9, 40))]
    for call in calls:
        call = call.to(torch.float32, subject.device).map(torch.clone)
        weight = call.tensors[1]
        weight[4, 3, weight.shape[2] // 2, weight.shape[3] // 2] = float("inf")
        result, right = subject(call), call(call.row.reference)
        assert torch.equal(result.isposinf(), right.isposinf()) and right.isposinf().any()
        assert torch.equal(result.isnan(), right.isnan())


# Of many channels, the C++ backend alone has another algorithm, and others take minutes.
FEW_AND_MANY = [(8, 9)] if INTERPRETED or EXECUTED else [(8, 9), (512, 257)]


@pytest.mark.operators("conv_act")
@pytest.mark.parametrize("channels", FEW_AND_MANY)
@pytest.mark.parametrize("value", [*NON_FINITE, 3e35])
def test_huge_pixels_times_zero(subject, channels, value):
    """Infinity times a weight of zero is NaN, for each of the nine; large pixels stay numbers."""
    in_channels, out_channels = channels
    call = cases.conv_act(channels=(in_channels,), out_channels=out_channels, size=(9, 40))
    check_huge_pixels(subject, call, value)


@pytest.mark.operators("conv_act")
@pytest.mark.parametrize("kernel", [(3, 1), (1, 3)])
@pytest.mark.parametrize("value", [*NON_FINITE, 3e35])
def test_huge_pixels_of_a_line_times_zero(subject, kernel, value):
    call = cases.conv_act(
        channels=(24,), out_channels=25, size=(9, 64), kernel=kernel, dilation=(1, 2)
    )
    check_huge_pixels(subject, call, value)


def check_huge_pixels(subject: Subject, call: Call, value: float) -> None:
    call = call.to(torch.float32, subject.device).map(torch.clone)
    image, weight = call.tensors[:2]
    image[0, 3, 4, ::20] = value
    for tap in range(weight[0, 0].numel()):
        weight[tap, 3].view(-1)[tap] = 0
    assert compare_non_finite(subject, call) > 0 or value == 3e35


@pytest.mark.operators("conv_act")
@pytest.mark.parametrize("channels", [2048, 700])
def test_long_sums(subject, channels):
    """18,432 terms: summed one after the other, rounding errors would pass the tolerance."""
    check(subject, cases.conv_act(channels=(channels,), size=(5, 7), dilation=(2, 2)))


def compare_non_finite(subject: Subject, call: Call) -> int:
    """Compare with the reference in the same dtype; return how many elements are not finite."""
    result = subject(call).cpu()
    # On the CPU: elsewhere, PyTorch's own kernels differ in what a weight of zero lets through.
    right = call.map(Tensor.cpu)(call.row.reference)
    kinds = {"nan": torch.isnan, "+inf": torch.isposinf, "-inf": torch.isneginf}
    for kind, positions in kinds.items():
        differ = int((positions(result) != positions(right)).sum())
        assert differ == 0, f"{kind} differs in {differ} places"
    finite = right.isfinite()
    both_round = 2 * harness.TOLERANCES[torch.float32]
    harness.check_close(result[finite], right[finite].double(), both_round)
    return int((~finite).sum())


# --- threads --------------------------------------------------------------------------------------

LARGE: dict[str, Call] = {
    **{name: cases.from_schema(name, 2, (61, 90)) for name in cases.UNKNOWN},
    "conv_act": cases.conv_act(batch=2, channels=(10, 18), out_channels=31, size=(61, 90)),
    "grouped_conv_act": cases.grouped_conv_act(2, 40, 40, 1, (61, 90), 5, residual=True),
    "asymmetric_conv": cases.asymmetric_conv(2, 31, 31, 31, (61, 120), 8),
    "dapf": cases.dapf(2, 28, 14, 28, (33, 50), (3, 12, 24)),
    "aspp": cases.aspp(2, 28, 14, 17, (33, 50), (3, 12)),
    "hardblock": cases.hardblock(2, 24, (10, 18, 10, 28), (33, 150)),
    "mda": cases.mda(2, 31, 15, (33, 50), 4),
    "upsample_conv1x1": cases.upsample_conv1x1(2, (31,), (28,), 33, (17, 25), (61, 90)),
    "upsample": cases.upsample(2, 19, (17, 25), (101, 150)),
    "upsample_argmax": cases.upsample_argmax(2, 19, (17, 25), (101, 150)),
    "upsample_confidence": cases.upsample_confidence(2, 19, (17, 25), (101, 150)),
    "max_pool": cases.max_pool(2, 40, (61, 90)),
    "normalize": cases.normalize(2, (201, 150)),
    "normalize_conv_act": cases.normalize_conv_act(2, 16, (101, 150), stride=(2, 2)),
}
if INTERPRETED or EXECUTED:  # in one thread whatever their size, and slowly
    LARGE = {operator: SAMPLES[operator][-1] for operator in LARGE}


def test_number_of_threads_does_not_matter(subject):
    """Bit for bit, in a compiled backend: threads share out the pixels, not the sums.

    PyTorch's own convolutions, the reference, promise no more than the right result.
    """
    call = LARGE[subject.operator].to(torch.float32, subject.device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(subject(call))
    finally:
        torch.set_num_threads(threads)
    for result in results:
        check_result(call, result)
        if subject.target.backend.name != "reference":
            assert torch.equal(result, results[0])


def test_two_threads_at_once(subject, some):
    """Callers do not share scratch memory."""
    calls = [LARGE[subject.operator], SAMPLES[subject.operator][0]]
    calls = [call.to(torch.float32, subject.device) for call in calls]

    def repeat(call: Call) -> list[torch.Tensor]:
        return [subject(call) for _ in some(range(3))]

    with ThreadPoolExecutor(3) as pool:
        runs = [(call, pool.submit(repeat, call)) for call in (*calls, calls[0])]
    for call, run in runs:
        for result in run.result():
            check_result(call, result)


# --- autocast -------------------------------------------------------------------------------------


def test_autocast(subject):
    """Operators with weights run in autocast's dtype, as F.conv2d does; the others in their own."""
    for call in samples(subject):
        with torch.autocast(subject.device, subject.half):
            result = subject(call)
        if subject.operator in MULTIPLYING:
            assert result.dtype == subject.half
            # Inputs are rounded as well, hence the second half of the tolerance.
            right = harness.expected(call)
            harness.check_close(result, right, 2 * harness.TOLERANCES[subject.half])
        else:
            check_result(call, result)


@pytest.mark.operators(*MULTIPLYING)
@pytest.mark.takes(torch.float64)
def test_autocast_leaves_float64_alone(subject):
    for call in samples(subject, torch.float64):
        with torch.autocast(subject.device, torch.bfloat16):
            result = subject(call)
        check_result(call, result)
