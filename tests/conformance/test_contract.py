"""What every operator promises, whatever it computes: empty batches, non-finite values, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conformance import cases, harness
from conformance.cases import SAMPLES, WITH_GRADIENT
from conformance.harness import DEVICES, Call, Subject, check, check_gradients, check_result
from torch.autograd.profiler import profile

import fassd_kernels
from fassd_kernels import reference
from fassd_kernels.ops import AUTOCAST

# --- the suite itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVICES)
def test_backend_is_examined(name, request):
    """A backend that is not there shows as a skip with its reason, not as silence."""
    backend = next(b for b in fassd_kernels.backends() if b.name == name)
    if not backend.available:
        pytest.skip(f"{name}: {backend.reason}")
    assert backend.operators <= set(SAMPLES)
    assert backend.operators and set(backend.dtypes) & set(harness.DTYPES)


def test_every_backend_is_in_the_table():
    assert {backend.name for backend in fassd_kernels.backends()} == set(DEVICES)


def test_required_backend_cannot_be_missing(monkeypatch):
    monkeypatch.setenv(harness.REQUIRE, "reference, nonesuch")
    with pytest.raises(pytest.UsageError, match="'nonesuch' is required"):
        harness.targets([], [])
    monkeypatch.delenv(harness.REQUIRE)
    with pytest.raises(pytest.UsageError, match="'nonesuch' is required"):
        harness.targets(["nonesuch"], [])
    for backend in fassd_kernels.backends():
        if not backend.available:
            with pytest.raises(pytest.UsageError, match=f"'{backend.name}' is required"):
                harness.targets([backend.name], [])
    with pytest.raises(pytest.UsageError, match="'cpu' is required"):
        harness.targets(["cpu"], ["cuda"])
    with pytest.raises(pytest.UsageError, match="device 'tpu' is asked for"):
        harness.targets([], ["tpu"])


def test_new_memory_is_poisoned(target):
    shape = (2, 3, 4, 5)
    image = torch.empty(shape, device=target.device, memory_format=torch.channels_last)
    assert image.isnan().all()
    assert torch.empty(7, dtype=torch.float16, device=target.device).isnan().all()
    assert torch.empty(7, dtype=torch.uint8, device=target.device).eq(255).all()
    assert image.new_empty(3, dtype=torch.float64).isnan().all()
    assert torch.empty_like(image).isnan().all()
    assert torch.empty_strided((2, 3), (8, 1), device=target.device).isnan().all()


def test_operators_get_poisoned_memory(subject):
    """Also what an operator allocates in C++: the dispatcher sees it being filled."""
    call = SAMPLES[subject.operator][0].to(torch.float32, subject.device)
    with profile(use_device="cuda" if subject.device == "cuda" else None) as events:
        subject(call)
    names = [event.name for event in events.function_events]
    assert names.count("aten::fill_") >= names.count("aten::empty") > 0


@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_layouts_differ_in_strides_only(layout):
    image = torch.randn(2, 3, 4, 5)
    result = harness.LAYOUTS[layout](image)
    axis = {"expanded_batch": 0, "expanded_channels": 1, "expanded_width": 3}.get(layout)
    right = image if axis is None else image.narrow(axis, 0, 1).expand(image.shape)
    assert torch.equal(result, right)
    assert (result.stride() == image.stride()) == (layout == "contiguous")
    if "sliced" in layout or layout == "stepped":
        assert result.storage_offset() > 0
        around = torch.empty(0).set_(result.untyped_storage())
        assert around.isnan().sum() == around.numel() - image.numel() > 0


def test_verdict_sees_one_wrong_pixel():
    """A single element off by a hundredth in a large picture fails in every dtype but bfloat16."""
    right = torch.randn(1, 8, 64, 64, dtype=torch.float64)
    harness.check_close(right.clone(), right, 1e-12)
    wrong = right.clone()
    wrong[0, 3, 5, 7] += 0.05
    for dtype in (torch.float32, torch.float16, torch.float64):
        with pytest.raises(AssertionError, match=r"expected <=|is off by"):
            harness.check_close(wrong, right, harness.TOLERANCES[dtype])
    wrong[0, 3, 5, 7] = float("nan")
    with pytest.raises(AssertionError, match="1 elements are NaN"):
        harness.check_close(wrong, right, 1.5e-2)


def test_pairwise_leaves_no_pair_out():
    rows = cases.pairwise(a=(1, 2, 3), b="xyz", c=(True, False))
    for x, y, count in (("a", "b", 9), ("a", "c", 6), ("b", "c", 6)):
        assert len({(row[x], row[y]) for row in rows}) == count
    assert len(rows) < 18


# --- samples --------------------------------------------------------------------------------------


def samples(subject: Subject, dtype: torch.dtype = torch.float32) -> list[Call]:
    return [call.to(dtype, subject.device) for call in SAMPLES[subject.operator]]


def test_samples(subject, dtype):
    for call in SAMPLES[subject.operator]:
        check(subject, call, dtype)


def test_arguments_by_name(subject):
    for call in samples(subject):
        function = fassd_kernels.ops.operator(subject.operator, subject.target.backend.name)
        assert torch.equal(function(**call.arguments), subject(call))


# --- nothing to do --------------------------------------------------------------------------------

NOTHING: dict[str, list[Call]] = {
    "conv_act": [
        cases.conv_act(batch=0, channels=(3, 2), activation="prelu", residual=True),
        cases.conv_act(batch=0, kernel=(1, 1), stride=(2, 2)),
        cases.conv_act(size=(0, 7)),
        cases.conv_act(size=(5, 0), channels=(3, 2), activation="relu", stride=(1, 3)),
    ],
    "asymmetric_conv": [
        cases.asymmetric_conv(batch=0, activation="prelu"),
        cases.asymmetric_conv(size=(0, 7)),
        cases.asymmetric_conv(size=(5, 0)),
    ],
    "dapf": [cases.dapf(batch=0), cases.dapf(size=(0, 7)), cases.dapf(size=(5, 0))],
    "mda": [cases.mda(batch=0), cases.mda(size=(0, 7)), cases.mda(size=(5, 0))],
    "upsample_conv1x1": [
        cases.upsample_conv1x1(batch=0, low=(2, 1), activation="prelu"),
        cases.upsample_conv1x1(size=(0, 7)),
        cases.upsample_conv1x1(size=(5, 0), activation="relu"),
    ],
    "upsample": [cases.upsample(batch=0), cases.upsample(channels=0)],
    "upsample_argmax": [cases.upsample_argmax(batch=0)],
    "normalize": [
        cases.normalize(batch=0),
        cases.normalize(size=(0, 7)),
        cases.normalize(size=(5, 0)),
    ],
}


def test_nothing_in_nothing_out(subject, dtype):
    for call in NOTHING[subject.operator]:
        right = harness.expected(call)
        assert right.numel() == 0
        call = call.to(dtype, subject.device)
        result = subject(call)
        assert result.shape == right.shape
        assert result.dtype == (torch.uint8 if subject.operator == "upsample_argmax" else dtype)


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients_of_nothing_are_zeros(subject):
    """Every argument that wants a gradient gets one, also weights that met no pixel."""
    for call in NOTHING[subject.operator]:
        call = call.to(torch.float32, subject.device).requiring_grad()
        gradients = torch.autograd.grad(subject(call).sum(), call.floating)
        for gradient, leaf in zip(gradients, call.floating, strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()


# --- non-finite values ----------------------------------------------------------------------------

NON_FINITE = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.operators(*WITH_GRADIENT)
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

            assert compare_non_finite(subject, call.map(spoil)) > 0


@pytest.mark.operators(*AUTOCAST)
@pytest.mark.parametrize("value", NON_FINITE)
def test_non_finite_vectors(subject, value):
    """The last bias, scale, shift or slope; an activation may well hide it (ReLU of -inf)."""
    shown = 0
    for call in samples(subject):
        for index, tensor in enumerate(call.tensors):
            if tensor.dim() == 1:
                spoiled = call.map(torch.clone)
                spoiled.tensors[index][-1] = value
                shown += compare_non_finite(subject, spoiled)
    assert shown > 0 or value == float("-inf")


def compare_non_finite(subject: Subject, call: Call) -> int:
    """Compare with the reference in the same dtype; return how many elements are not finite."""
    result = subject(call)
    right = call(getattr(reference, subject.operator))
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
    "conv_act": cases.conv_act(batch=2, channels=(10, 18), out_channels=31, size=(61, 90)),
    "asymmetric_conv": cases.asymmetric_conv(2, 31, 31, 31, (61, 90), 8),
    "dapf": cases.dapf(2, 28, 14, 28, (33, 50), (3, 12, 24)),
    "mda": cases.mda(2, 31, 15, (33, 50), 4),
    "upsample_conv1x1": cases.upsample_conv1x1(2, (31,), (28,), 33, (17, 25), (61, 90)),
    "upsample": cases.upsample(2, 19, (17, 25), (101, 150)),
    "upsample_argmax": cases.upsample_argmax(2, 19, (17, 25), (101, 150)),
    "normalize": cases.normalize(2, (201, 150)),
}


def test_number_of_threads_does_not_matter(subject):
    """Bit for bit, in a compiled backend: threads share out the pixels, not the sums."""
    if subject.target.backend.name == "reference":
        pytest.skip("PyTorch's own convolutions do not promise this")
    call = LARGE[subject.operator].to(torch.float32, subject.device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(subject(call))
    finally:
        torch.set_num_threads(threads)
    check_result(call, results[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_two_threads_at_once(subject):
    """Callers do not share scratch memory."""
    calls = [LARGE[subject.operator], SAMPLES[subject.operator][0]]
    calls = [call.to(torch.float32, subject.device) for call in calls]

    def repeat(call: Call) -> list[torch.Tensor]:
        return [subject(call) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        runs = [(call, pool.submit(repeat, call)) for call in (*calls, calls[0])]
    for call, run in runs:
        for result in run.result():
            check_result(call, result)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients(subject, dtype):
    for call in samples(subject, dtype):
        call = call.requiring_grad()
        check_gradients(call, subject(call))


@pytest.mark.operators(*WITH_GRADIENT)
@pytest.mark.parametrize("layout", ["channels_last", "sliced_channels", "stepped"])
def test_gradients_of_layouts(subject, layout):
    for call in samples(subject):
        call = call.laid_out(layout).requiring_grad()
        check_gradients(call, subject(call))


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients_of_some_arguments(subject):
    """Each tensor alone, and all but each."""
    call = samples(subject)[0]
    for index in range(len(call.floating)):
        for alone in (True, False):
            some = call.map(torch.clone)
            for i, tensor in enumerate(some.floating):
                tensor.requires_grad_((i == index) == alone)
            if any(tensor.requires_grad for tensor in some.floating):
                check_gradients(some, subject(some))


@pytest.mark.operators("conv_act", "upsample_conv1x1")
def test_gradient_of_one_tensor_given_twice(subject):
    """The virtual concatenation of x with itself: both parts count."""
    if subject.operator == "conv_act":
        call, names = cases.conv_act(channels=(3, 3)), ("inputs",)
    else:
        call = cases.upsample_conv1x1(low=(3,), skip=(3,), low_size=(5, 7))
        names = ("low", "skip")
    call = call.to(torch.float32, subject.device)
    image = call.arguments[names[0]][0]
    parts = [image.clone().requires_grad_() for _ in range(2)]
    lists = [[parts[0], parts[1]]] if len(names) == 1 else [[parts[0]], [parts[1]]]
    apart = call.with_(**dict(zip(names, lists, strict=True)))
    once = image.clone().requires_grad_()
    together = call.with_(
        **{name: [once] * len(part) for name, part in zip(names, lists, strict=True)}
    )
    right = sum(torch.autograd.grad(subject(apart).square().sum(), parts))
    (gradient,) = torch.autograd.grad(subject(together).square().sum(), [once])
    harness.check_close(gradient, right.double(), harness.TOLERANCES[torch.float32])
    assert gradient.abs().max() > 0.1


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradcheck(subject):
    for call in samples(subject, torch.float64):
        call = call.requiring_grad()
        assert torch.autograd.gradcheck(function_of(subject, call), call.floating, fast_mode=True)


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradgradcheck(subject):
    call = samples(subject, torch.float64)[-1].requiring_grad()
    assert torch.autograd.gradgradcheck(function_of(subject, call), call.floating, fast_mode=True)


def function_of(subject: Subject, call: Call):
    """`subject` as a function of the floating tensors of `call`."""

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        replacements = iter(tensors)
        return subject(call.map(lambda x: next(replacements) if x.is_floating_point() else x))

    return function


@pytest.mark.operators("upsample_argmax")
def test_labels_have_no_gradient(subject):
    call = samples(subject)[0].requiring_grad()
    assert not subject(call).requires_grad


# --- autocast -------------------------------------------------------------------------------------


def test_autocast(subject):
    """Operators with weights run in autocast's dtype, as F.conv2d does; the others in their own."""
    for call in samples(subject):
        with torch.autocast(subject.device, torch.bfloat16):
            result = subject(call)
        if subject.operator in AUTOCAST:
            assert result.dtype == torch.bfloat16
            # Inputs are rounded as well, hence the second half of the tolerance.
            right = harness.expected(call)
            harness.check_close(result, right, 2 * harness.TOLERANCES[torch.bfloat16])
        else:
            check_result(call, result)


@pytest.mark.operators(*AUTOCAST)
def test_autocast_leaves_float64_alone(subject):
    for call in samples(subject, torch.float64):
        with torch.autocast(subject.device, torch.bfloat16):
            result = subject(call)
        check_result(call, result)


@pytest.mark.operators(*AUTOCAST)
def test_gradients_under_autocast(subject):
    for call in samples(subject):
        call = call.requiring_grad()
        with torch.autocast(subject.device, torch.bfloat16):
            result = subject(call)
        check_gradients(call, result, torch.bfloat16)
