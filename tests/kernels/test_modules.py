"""Fused modules are the reference modules, faster: numbers, gradients, tools, refusals."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernels.changes import edit_in_place
from kernels.conftest import (
    BACKENDS,
    FLOAT32,
    every_module,
    expected_of,
    first,
    fuse,
    relative_error,
    shake,
)
from torch import Tensor, nn

import fassd_kernels
from fassd.models import DAPF, MDA, AsymmetricConv2d
from fassd_kernels import (
    BackendError,
    FusedASPP,
    FusedAsymmetricConv2d,
    FusedConvLayer,
    FusedDAPF,
    FusedHarDBlock,
    FusedMDA,
)
from fassd_kernels.accelerate import FUSED
from fassd_kernels.modules import Fused


@every_module
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_equals_the_reference(
    reference: nn.Module, picture: Tensor, backend: str, layout: str, operator_calls: list[str]
) -> None:
    x = picture
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.randn(2, x.shape[1] + 3, 44, 53)[:, 2:-1, 1:42, :50]
    with torch.no_grad():
        result = fuse(reference, backend)(x)
    assert operator_calls == [fuse(reference).operator]
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(result, expected_of(reference, x)) <= FLOAT32


@every_module
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2), (torch.float64, 1e-12)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(
    reference: nn.Module, picture: Tensor, backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    x = picture.to(dtype)
    fused = fuse(copy.deepcopy(reference).to(dtype), backend)
    with torch.no_grad():
        result = fused(x)
    assert result.dtype == dtype
    assert relative_error(result, expected_of(fused, x)) <= tolerance


@pytest.mark.parametrize(
    ("fused_class", "arguments"),
    [
        (FusedDAPF, {"inplanes": 31, "alpha": 3}),
        (FusedMDA, {"nIn": 63, "d": 2}),
        (FusedHarDBlock, {"in_channels": 9, "growth_rate": 6, "grmul": 1.7, "n_layers": 4}),
        (FusedASPP, {"inplanes": 9, "width": 7}),
        (FusedConvLayer, {"in_channels": 9, "out_channels": 7, "stride": 2}),
        (FusedAsymmetricConv2d, {"in_channels": 9, "out_channels": 7, "dilation": 2}),
    ],
)
def test_constructors_and_state_dict(fused_class: type[Fused], arguments: dict[str, int]) -> None:
    plain_class = next(plain for plain, known in FUSED.items() if known is fused_class)
    plain, fused = shake(plain_class(**arguments)).eval(), fused_class(**arguments)
    assert isinstance(fused, plain_class)
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, next(iter(arguments.values())), 12, 13)
    with torch.no_grad():
        assert relative_error(fused.eval()(x), expected_of(plain, x)) <= FLOAT32


def test_from_reference_shares_parameters_and_leaves_the_module_alone(reference: nn.Module) -> None:
    before = dict(reference.named_parameters())
    fused = fuse(reference)
    assert {k: id(p) for k, p in fused.named_parameters()} == {k: id(p) for k, p in before.items()}
    assert type(reference) in FUSED
    fused.register_forward_hook(lambda *_: None)
    assert not reference._forward_hooks


@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_asymmetric_convolution_with_a_residual(activation: str, backend: str) -> None:
    """ERFNet's block is two pairs, the second with the block's input."""
    torch.manual_seed(0)
    pairs = [shake(AsymmetricConv2d(8, 8, d, activation)).eval() for d in (1, 3)]
    x = torch.randn(2, 8, 13, 10)

    def block(one: nn.Module, two: nn.Module, x: Tensor) -> Tensor:
        return two(one(x), residual=x)

    with torch.no_grad():
        result = block(*(fuse(pair, backend) for pair in pairs), x)
        exact = block(*(copy.deepcopy(pair).double() for pair in pairs), x.double())
    assert relative_error(result, exact) <= FLOAT32
    fused = fuse(pairs[1])
    with pytest.raises(RuntimeError, match="residual"):
        fused(x, residual=x[:, :3])
    gradients = []
    for module in (pairs[1], fused):
        inputs = x.clone().requires_grad_(), (x + 1).requires_grad_()
        module(*inputs).square().sum().backward()
        gradients.append([each.grad for each in inputs])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs) <= FLOAT32


def test_refused_asymmetric_convolutions() -> None:
    with pytest.raises(ValueError, match="activation must be 'relu' or 'prelu', got 'gelu'"):
        AsymmetricConv2d(4, 4, activation="gelu")
    with pytest.raises(ValueError, match="dilation must be"):
        AsymmetricConv2d(4, 4, 0)
    pair = AsymmetricConv2d(4, 4)
    pair.acti1x3 = nn.PReLU()
    with pytest.raises(TypeError, match="acti1x3 is a PReLU; expected ReLU"):
        FusedAsymmetricConv2d.from_reference(pair)
    pair.acti1x3, pair.conv1x3 = nn.ReLU(), nn.Conv2d(4, 4, (1, 3), padding=(0, 2))
    with pytest.raises(TypeError, match="conv1x3 is"):
        FusedAsymmetricConv2d.from_reference(pair)


# --- training and gradients ---------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_the_reference(
    reference: nn.Module, picture: Tensor, training: bool
) -> None:
    # In float64: batch statistics in another order turn the sign of what is nearly 0 before a ReLU.
    dtype = torch.float64 if training else torch.float32
    plain = copy.deepcopy(reference).to(dtype).train(training)
    fused = fuse(copy.deepcopy(plain)).train(training)
    outputs, gradients = [], []
    for module in (plain, fused):
        x = picture.to(dtype, copy=True).requires_grad_()
        output = module(x)
        output.sin().sum().backward()
        outputs.append(output.detach())
        gradients.append({"input": x.grad, **{k: p.grad for k, p in module.named_parameters()}})
    assert relative_error(outputs[1], outputs[0]) <= FLOAT32
    # Whole gradient vectors are compared: a single bias' gradient is a sum with cancellation.
    for key, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, key
        assert relative_error(gradients[1][key], gradient) <= 2e-4, key
    for key, buffer in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(key), buffer, rtol=2e-6, atol=2e-6)


@every_module
def test_training_steps_follow_the_reference(reference: nn.Module, picture: Tensor) -> None:
    plain = copy.deepcopy(reference).double().train()
    fused = fuse(copy.deepcopy(plain)).train()
    for module in (plain, fused):
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(picture.double()).square().mean().backward()
            optimizer.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value, rtol=1e-9, atol=1e-9)
    plain.eval(), fused.eval()
    with torch.no_grad():
        x = picture.double()
        assert relative_error(fused(x), expected_of(plain, x)) <= FLOAT32


# --- when it must not fuse ----------------------------------------------------------------------


def test_hooks_on_submodules_run(
    reference: nn.Module, picture: Tensor, operator_calls: list[str]
) -> None:
    fused = fuse(reference)
    seen: list[torch.Size] = []
    conv = first(fused, nn.Conv2d)
    handle = conv.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    with torch.no_grad():
        result = fused(picture)
        assert len(seen) == 1 and not operator_calls
        handle.remove()
        fused(picture)
    assert len(seen) == 1 and operator_calls == [fused.operator]
    assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


def test_hooks_on_submodules_run_in_a_compiled_module(
    reference: nn.Module, picture: Tensor
) -> None:
    """A hook that halves a convolution's output, so that one passed by shows."""
    conv = first(reference, nn.Conv2d)
    conv.register_forward_hook(lambda _m, _i, output: output / 2)
    fused = fuse(reference)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(fused, fullgraph=True, backend="aot_eager")(picture)
        assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


def test_batch_norm_without_running_statistics(reference: nn.Module, picture: Tensor) -> None:
    for child in reference.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.track_running_stats = False
            child.running_mean = child.running_var = None
    with torch.no_grad():
        result = fuse(reference)(picture)
        assert relative_error(result, expected_of(reference, picture)) <= FLOAT32


def test_one_batch_norm_in_training_mode(reference: nn.Module, picture: Tensor) -> None:
    for module in (reference, fused := fuse(copy.deepcopy(reference))):
        first(module, nn.BatchNorm2d).train()
    with torch.no_grad():
        torch.testing.assert_close(fused(picture), reference(picture), rtol=0, atol=0)


# --- tools that people use on modules -----------------------------------------------------------


def test_pickle_and_deepcopy(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        expected = fused(picture)
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), loaded]
        for other in copies:
            torch.testing.assert_close(other(picture), expected, rtol=0, atol=0)
        edit_in_place(copies[0])
        torch.testing.assert_close(fused(picture), expected, rtol=0, atol=0)


def test_compile_fullgraph(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torch.no_grad():
            assert relative_error(compiled(picture), expected_of(fused, picture)) <= FLOAT32
        edit_in_place(fused)
    result = compiled(picture)
    assert relative_error(result.detach(), expected_of(fused, picture)) <= FLOAT32
    result.sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


def test_trace(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        traced = torch.jit.trace(fuse(reference), picture)
        assert relative_error(traced(picture), expected_of(reference, picture)) <= FLOAT32


def test_two_threads_at_once(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)

    def work() -> list[Tensor]:
        with torch.no_grad():
            return [fused(picture) for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(work) for _ in range(2)]
    right = expected_of(reference, picture)
    for result in [result for run in runs for result in run.result()]:
        assert relative_error(result, right) <= FLOAT32


def test_autocast(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = fuse(reference)(picture)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, expected_of(reference, picture)) <= 1.5e-2


def test_zero_batch(reference: nn.Module, picture: Tensor) -> None:
    with torch.no_grad():
        fused = fuse(reference)
        assert fused(picture[:0]).shape == (0, *fused(picture).shape[1:])


def test_repr_tells_backend_and_dtype(reference: nn.Module) -> None:
    assert "backend=auto (" in repr(fuse(reference))
    text = repr(fuse(copy.deepcopy(reference).half(), "reference"))
    assert "backend=reference, dtype=torch.float16" in text


# --- refusals -----------------------------------------------------------------------------------


def test_unknown_and_unavailable_backends(reference: nn.Module) -> None:
    with pytest.raises(
        BackendError, match=r"'tpu'.*expected one of auto, cpu, cuda, triton, reference"
    ):
        fuse(reference, "tpu")
    if not fassd_kernels.backends()["cuda"].available:
        with pytest.raises(BackendError, match=r"'cuda'.*CUDA|GPU"):
            fuse(reference, "cuda")


def test_a_backend_that_cannot_take_the_device(reference: nn.Module, picture: Tensor) -> None:
    if "cpu" not in BACKENDS:
        pytest.skip("the C++ backend is not built")
    fused = fuse(reference, "cpu").to("meta")
    with pytest.raises(BackendError, match=r"'cpu' cannot run \w+ on meta: .*cpu tensors"):
        fused(picture.to("meta"))


@pytest.mark.parametrize("gone", [False, True])
def test_modules_with_other_parts_are_refused(reference: nn.Module, gone: bool) -> None:
    name = next(name for name, _ in reference.named_children())
    if gone:
        delattr(reference, name)
    else:
        setattr(reference, name, nn.Identity())
    with pytest.raises(TypeError, match=f"no submodule '{name}" if gone else name):
        fuse(reference)


def test_wrong_configuration_is_refused() -> None:
    dapf = DAPF(8)
    dapf.pyBranch3.atrous_conv1x3 = nn.Conv2d(4, 4, (1, 3), padding=(0, 5), dilation=(1, 5))
    with pytest.raises(TypeError, match=r"pyBranch3.atrous_conv1x3 .*expected padding \(0, 24\)"):
        FusedDAPF.from_reference(dapf)
    mda = MDA(8, 2)
    mda.bn_relu_2.acti = nn.ReLU()
    with pytest.raises(TypeError, match=r"bn_relu_2.acti is a ReLU"):
        FusedMDA.from_reference(mda)
