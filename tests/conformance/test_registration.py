"""The operators as PyTorch sees them: schemas, fake kernels, autograd, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import cases, harness
from conformance.cases import SAMPLES
from conformance.harness import (
    TABLE,
    WITH_GRADIENT,
    Call,
    check_close,
    check_gradients,
    check_result,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fassd_kernels import ops, reference


@pytest.fixture(params=SAMPLES)
def operator(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def registered(operator: str):
    return getattr(torch.ops.fassd_kernels, operator)


def run(call: Call) -> Tensor:
    return call(registered(call.operator))


def test_schemas_are_those_of_the_file(operator):
    schema = str(registered(operator).default._schema).removeprefix("fassd_kernels::")
    # PyTorch expands the default of an int[2].
    assert schema.replace("[1, 1]", "1") == TABLE[operator].schema


@pytest.mark.parametrize(
    ("operator", "grad"),
    [*((name, False) for name in SAMPLES), *((name, True) for name in WITH_GRADIENT)],
)
def test_opcheck(operator, device, grad):
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if grad or operator not in WITH_GRADIENT:  # test_compile has no gradients
        checks.append("test_aot_dispatch_dynamic")
    for call in SAMPLES[operator][:2]:
        call = call.to(torch.float32, device)
        call = call.requiring_grad() if grad else call
        results = torch.library.opcheck(
            registered(operator), call.positional, call.keywords, test_utils=checks
        )
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", harness.LAYOUTS)
def test_fake_kernel_predicts_the_result(operator, device, layout):
    """Shape, dtype and strides, which compiled code takes for granted."""
    for call in SAMPLES[operator]:
        for dtype in harness.DTYPES:
            given = call.to(dtype, device).laid_out(layout)
            result, fake = run(given), run(given.map(lambda x: x.to("meta")))
            assert (fake.shape, fake.dtype) == (result.shape, result.dtype)
            for size, got, promised in zip(
                result.shape, result.stride(), fake.stride(), strict=True
            ):
                assert size == 1 or got == promised


@pytest.mark.parametrize("namespace", [ops.NAMESPACE, *ops.NAMESPACES.values()])
def test_free_sizes_have_the_fake_kernels_strides(operator, namespace):
    """As sizes that are fixed have; in a GPU's namespaces, those of padded pixels."""
    function = getattr(getattr(torch.ops, namespace), operator)
    call = SAMPLES[operator][0]
    fixed = call.map(lambda x: x.to("meta"))(function)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        free = call.map(mode.from_tensor)(function)
        found = [*map(int, free.shape), *map(int, free.stride())]
    assert found == [*fixed.shape, *fixed.stride()]


def test_results_are_new(operator, device):
    """No result shares memory with an input, even where nothing changes."""
    same = {
        "upsample": cases.upsample(low_size=(5, 7), size=(5, 7)),
        "conv_act": cases.conv_act(channels=(1,), out_channels=1, kernel=(1, 1), bias=False),
    }
    for call in (*SAMPLES[operator], same.get(operator, SAMPLES[operator][0])):
        call = call.to(torch.float32, device).laid_out("channels_last")
        memory = {x.untyped_storage().data_ptr() for x in call.tensors}
        assert run(call).untyped_storage().data_ptr() not in memory


# --- torch.compile --------------------------------------------------------------------------------


TENSOR = "a tensor's place"


def of_tensors(call: Call) -> Callable[..., Tensor]:
    """The operator as a function of the call's tensors alone."""
    arguments = call.map(lambda _: TENSOR).arguments
    operator = registered(call.operator)

    def function(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)

        def fill(value: Any) -> Any:
            if isinstance(value, list):
                return [fill(x) for x in value]
            return next(rest) if value == TENSOR else value

        return operator(**{name: fill(value) for name, value in arguments.items()})

    return function


def test_compile(operator, device):
    for call in SAMPLES[operator]:
        call = call.to(torch.float32, device)
        compiled = torch.compile(of_tensors(call), fullgraph=True, backend="aot_eager")
        check_result(call, compiled(*call.tensors))


@pytest.mark.parametrize("operator", WITH_GRADIENT)
def test_compile_backward(operator, device):
    call = SAMPLES[operator][1].to(torch.float32, device).requiring_grad()
    compiled = torch.compile(of_tensors(call), fullgraph=True, backend="aot_eager")
    check_gradients(call, compiled(*call.tensors))


SIZES = ((11, 17), (19, 13), (23, 29))


@pytest.mark.parametrize(
    "calls",
    [
        [cases.conv_act(2, size=size, stride=(2, 1), activation="relu") for size in SIZES],
        [cases.upsample_conv1x1(2, low_size=(4, 3), size=size) for size in SIZES],
        [cases.mda(2, size=size) for size in SIZES],
        [cases.normalize(2, size) for size in SIZES],
    ],
    ids=lambda calls: calls[0].operator,
)
def test_compile_once_for_every_size(calls, device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(of_tensors(calls[0]), fullgraph=True, backend=counter, dynamic=True)
    frames = set()
    for call in calls:
        call = call.to(torch.float32, device)
        check_result(call, compiled(*call.tensors))
        frames.add(counter.frame_count)
    assert len(frames) == 1


@pytest.mark.parametrize("operator", ["upsample", "upsample_argmax"])
def test_compile_with_symbolic_size(operator, device):
    """The size to resize to may depend on another tensor's."""
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def resize(image: Tensor, like: Tensor) -> Tensor:
        return registered(operator)(image, [2 * like.shape[2], like.shape[3] + 1])

    for height, width in SIZES:
        call = getattr(cases, operator)(size=(2 * height, width + 1)).to(torch.float32, device)
        like = torch.empty(1, 1, height, width, device=device)
        check_result(call, resize(call.arguments["input"], like))
    assert counter.frame_count == 1


NETWORK = (
    cases.conv_act(channels=(3, 3), out_channels=4, stride=(2, 2)),
    cases.dapf(channels=4, out_channels=3),
    cases.asymmetric_conv(channels=3, out_channels=2, activation="prelu"),
    cases.upsample_conv1x1(low=(2,), skip=(4,), out_channels=6),
    cases.mda(channels=6),
)


def parameters(dtype: torch.dtype, device: str) -> dict[str, dict[str, Any]]:
    """Per operator of the network, the arguments that are not images."""
    calls = [call.to(dtype, device) for call in NETWORK]
    return {
        call.operator: {k: v for k, v in call.arguments.items() if k not in harness.IMAGES}
        for call in calls
    }


def network(ops, image: Tensor, of: dict[str, dict[str, Any]], dtype: torch.dtype):
    """Every operator, one behind the other: logits and labels of a uint8 picture."""
    x = ops.normalize(image, mean=cases.MEAN, std=cases.STD, dtype=dtype)
    x = ops.conv_act([x, x], **of["conv_act"])
    low = ops.asymmetric_conv(ops.dapf(x, **of["dapf"]), **of["asymmetric_conv"])
    x = ops.upsample_conv1x1([low], [x], **of["upsample_conv1x1"])
    x = ops.mda(x, **of["mda"])
    return ops.upsample(x, (20, 30)), ops.upsample_argmax(x, (20, 30))


def test_inductor(device):
    """A small network of all operators through the default compiler."""
    image = cases.normalize(2, (11, 16)).arguments["image"]
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        logits, labels = compiled(
            torch.ops.fassd_kernels,
            image.to(device),
            parameters(torch.float32, device),
            torch.float32,
        )
        right, right_labels = network(
            reference, image, parameters(torch.float64, "cpu"), torch.float64
        )
    # Seven operators, each with its rounding.
    check_close(logits, right, 7 * harness.TOLERANCES[torch.float32])
    assert (labels.cpu() == right_labels).float().mean() > 0.99


def test_inductor_backward(device):
    """The recomputed reference, compiled."""
    call = SAMPLES["conv_act"][1].to(torch.float32, device).requiring_grad()
    compiled = torch.compile(of_tensors(call), fullgraph=True)
    check_gradients(call, compiled(*call.tensors))
