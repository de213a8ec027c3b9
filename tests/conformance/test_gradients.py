"""Gradients of every operator: those of the reference, for whichever arguments want one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conformance import cases, harness
from conformance.cases import NOTHING, samples
from conformance.harness import MULTIPLYING, WITH_GRADIENT, Call, Subject, check_gradients


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients(subject, dtype):
    for call in samples(subject, dtype):
        call = call.requiring_grad()
        check_gradients(call, subject(call))


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients_of_nothing_are_zeros(subject):
    """Every argument that wants a gradient gets one, also weights that met no pixel."""
    for call in NOTHING[subject.operator]:
        call = call.to(torch.float32, subject.device).requiring_grad()
        gradients = torch.autograd.grad(subject(call).sum(), call.floating)
        for gradient, leaf in zip(gradients, call.floating, strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()


@pytest.mark.operators(*WITH_GRADIENT)
@pytest.mark.parametrize("layout", ["channels_last", "sliced_channels", "stepped"])
def test_gradients_of_layouts(subject, layout):
    for call in samples(subject):
        call = call.laid_out(layout).requiring_grad()
        check_gradients(call, subject(call))


@pytest.mark.operators(*WITH_GRADIENT)
def test_gradients_of_some_arguments(subject, some):
    """Each tensor alone, and all but each."""
    call = samples(subject)[0]
    for index in some(range(len(call.floating))):
        for alone in (True, False):
            partly = call.map(torch.clone)
            for i, tensor in enumerate(partly.floating):
                tensor.requires_grad_((i == index) == alone)
            if any(tensor.requires_grad for tensor in partly.floating):
                check_gradients(partly, subject(partly))


def of_two(subject: Subject, first: torch.Tensor, second: torch.Tensor) -> Call:
    """A call that takes two images, virtually concatenated."""
    if subject.operator == "conv_act":
        call = cases.conv_act(channels=(3, 3)).to(first.dtype, subject.device)
        return call.with_(inputs=[first, second])
    call = cases.upsample_conv1x1(low=(3,), skip=(3,)).to(first.dtype, subject.device)
    return call.with_(low=[first], skip=[second])


@pytest.mark.operators("conv_act", "upsample_conv1x1")
def test_gradient_of_one_tensor_given_twice(subject):
    """The virtual concatenation of x with itself: both parts count."""
    image = cases.Source().image(1, 3, (5, 7)).to(subject.device, torch.float32)
    parts = [image.clone().requires_grad_() for _ in range(2)]
    apart = torch.autograd.grad(subject(of_two(subject, *parts)).square().sum(), parts)
    once = image.clone().requires_grad_()
    (together,) = torch.autograd.grad(subject(of_two(subject, once, once)).square().sum(), once)
    right = (apart[0] + apart[1]).double()
    assert apart[0].abs().max() > 0.1 and apart[1].abs().max() > 0.1
    harness.check_close(together, right, harness.TOLERANCES[torch.float32])


@pytest.mark.operators(*WITH_GRADIENT)
@pytest.mark.takes(torch.float64)
def test_gradcheck(subject):
    for call in samples(subject, torch.float64):
        call = call.requiring_grad()
        assert torch.autograd.gradcheck(function_of(subject, call), call.floating, fast_mode=True)


@pytest.mark.operators(*WITH_GRADIENT)
@pytest.mark.takes(torch.float64)
def test_gradgradcheck(subject):
    call = samples(subject, torch.float64)[-1].requiring_grad()
    assert torch.autograd.gradgradcheck(function_of(subject, call), call.floating, fast_mode=True)


def function_of(subject: Subject, call: Call) -> Callable[..., torch.Tensor]:
    """`subject` as a function of the floating tensors of `call`."""

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        replacements = iter(tensors)
        return subject(call.map(lambda x: next(replacements) if x.is_floating_point() else x))

    return function


@pytest.mark.operators("upsample_argmax", "upsample_confidence")
def test_labels_have_no_gradient(subject):
    call = samples(subject)[0].requiring_grad()
    assert not subject(call).requires_grad


@pytest.mark.operators(*MULTIPLYING)
def test_gradients_under_autocast(subject):
    for call in samples(subject):
        call = call.requiring_grad()
        with torch.autocast(subject.device, subject.half):
            result = subject(call)
        check_gradients(call, result, subject.half)
