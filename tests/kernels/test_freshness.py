"""What a fused module packed stays fresh: whatever changes between two calls is noticed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels.changes import CHANGES, COUNTED, edit_in_place, norms, scale_convolution, wrap_around
from kernels.conftest import (
    BACKENDS,
    FLOAT32,
    expected_of,
    first,
    fuse,
    relative_error,
    shake,
)
from torch import Tensor, nn

import fassd_kernels
from fassd.models import MDA, HarDBlock
from fassd.models.layers import ConvLayer
from fassd_kernels.modules import Fused, snapshot
from fassd_kernels.modules.fused import NARROW

Change = Callable[[nn.Module], None]


def check_noticed(fused: Fused, x: Tensor, change: Change) -> None:
    """A second call takes what the first packed; one after the change does not."""
    with torch.no_grad():
        before = fused(x)
        kept = fused._packed
        assert fused(x).equal(before) and fused._packed is kept is not None
    change(fused)
    with torch.no_grad():
        after = fused(x)
    assert relative_error(after, before) > 1e-4, "the change changes nothing: a poor test"
    assert relative_error(after, expected_of(fused, x)) <= FLOAT32


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(reference: nn.Module, picture: Tensor, change: Change) -> None:
    check_noticed(fuse(reference), picture, change)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No contents are compared, as where one would have to wait for a device."""
    monkeypatch.setattr(snapshot, "IS_ON_CPU", lambda tensor: False)


@pytest.mark.parametrize("change", COUNTED)
def test_changes_that_are_noticed_without_contents(as_on_a_gpu: None, change: Change) -> None:
    torch.manual_seed(0)
    check_noticed(fuse(shake(MDA(16, 2)).eval()), torch.randn(1, 16, 9, 9), change)


@pytest.mark.parametrize("norms_in_float32", [False, True])
def test_half(reference: nn.Module, picture: Tensor, norms_in_float32: bool) -> None:
    fused = fuse(reference)
    with torch.no_grad():
        fused(picture)
        fused.half()
        for norm in norms(fused) if norms_in_float32 else ():
            norm.float()
        result = fused(picture.half())
    assert result.dtype == torch.float16
    assert relative_error(result, expected_of(fused, picture.half())) <= 2e-3


def test_data_set_twice(as_on_a_gpu: None) -> None:
    """The second of two new tensors may lie where the weight lay before."""
    fused = fuse(ConvLayer(16, 16).eval())
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        for _ in range(20):
            before = fused(x)
            for _ in range(2):
                fused.conv.weight.data = fused.conv.weight.data * 1.5
            assert not torch.allclose(fused(x), before)
            fused.conv.weight.data = fused.conv.weight.data / 2.25


def test_collective_operations(as_on_a_gpu: None, tmp_path: Path) -> None:
    """They write parameters without counting it."""
    fused = fuse(ConvLayer(8, 8).eval())
    x = torch.randn(1, 8, 8, 8)
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'meeting'}"
    )
    try:
        with torch.no_grad():
            fused(x)
            kept = fused._packed
            fused(x)
            assert fused._packed is kept
            torch.distributed.broadcast(fused.conv.weight, 0)
            fused(x)
            assert fused._packed is not kept
    finally:
        torch.distributed.destroy_process_group()


def test_edits_of_single_values_of_inference_tensors_are_noticed() -> None:
    """PyTorch counts no edits of these."""
    with torch.inference_mode():
        fused = fuse(ConvLayer(32, 32).eval())
        x = torch.randn(1, 32, 8, 8)
        before = fused(x)
        kept = fused._packed
        assert fused(x).equal(before) and fused._packed is kept
        fused.conv.weight[7, 9, 1, 1] += 5
        assert relative_error(fused(x), ConvLayer.forward(fused, x)) <= 2 * FLOAT32


def test_parametrized_weight(reference: nn.Module, picture: Tensor) -> None:
    conv = first(reference, nn.Conv2d)
    nn.utils.parametrizations.weight_norm(conv)
    fused = fuse(reference)
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(fused(picture), expected_of(reference, picture)) <= FLOAT32
            conv.parametrizations.weight.original0.mul_(1.5)


def test_parameters_made_in_inference_mode(reference: nn.Module, picture: Tensor) -> None:
    with torch.inference_mode():
        fused = fuse(copy.deepcopy(reference))
        for _ in range(2):
            edit_in_place(fused)
            assert relative_error(fused(picture), expected_of(fused, picture)) <= FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
def test_freed_storage(reference: nn.Module, picture: Tensor, backend: str) -> None:
    """Of any tensor that is folded, before and after packing, or of the input: no packed weight
    answers for one, and nothing reads where memory was. Given back, it is read anew."""
    fused = fuse(reference, backend)
    with torch.no_grad():
        result = fused(picture)
        tensors = [*fused.named_parameters(), *fused.named_buffers()]
        for name, tensor in [*tensors, ("input", picture)]:
            if tensor.is_floating_point():
                kept, storage = tensor.clone(), tensor.untyped_storage()
                size = storage.nbytes()
                storage.resize_(0)
                with pytest.raises(RuntimeError, match=rf"{name}.* has shape .* storage holds 0"):
                    fused(picture)
                storage.resize_(size)
                tensor.copy_(kept)
        assert torch.equal(fused(picture), result)


def test_a_new_parameter_at_an_old_address(reference: nn.Module, picture: Tensor) -> None:
    """What is freed may be followed by its successor at the same address, with the same id."""
    fused = fuse(reference)
    conv = first(fused, nn.Conv2d)
    shape = conv.weight.shape
    with torch.no_grad():
        for i in range(60):
            del conv.weight
            conv.weight = nn.Parameter(torch.full(shape, 0.01 * i))
            result = fused(picture[:, :, :4, :4])
            fused.repack()
            torch.testing.assert_close(fused(picture[:, :, :4, :4]), result, rtol=0, atol=0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (nn.Conv2d, "_conv_forward"),
        (nn.Conv2d, "forward"),
        (nn.BatchNorm2d, "forward"),
        (nn.ReLU, "forward"),
        (ConvLayer, "forward"),
    ],
)
def test_methods_put_into_a_class(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], method: str, when: str
) -> None:
    plain = shake(ConvLayer(8, 8)).eval()
    real, x = getattr(kind, method), torch.randn(1, 8, 9, 9)

    def doubled(self: nn.Module, *arguments: Tensor) -> Tensor:
        return 2 * real(self, *arguments)

    if when == "before":
        monkeypatch.setattr(kind, method, doubled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # there may be nothing to swap
        fused = fassd_kernels.accelerate(plain)
    with torch.no_grad():
        fused(x)
        monkeypatch.setattr(kind, method, doubled)
        assert relative_error(fused(x), plain(x)) <= FLOAT32
        monkeypatch.undo()
        assert relative_error(fused(x), plain(x)) <= FLOAT32


def test_transforms_and_forward_ad_run_the_reference(reference: nn.Module, picture: Tensor) -> None:
    fused = fuse(reference)
    tangent = torch.randn_like(picture)
    with torch.no_grad():
        _, expected = torch.func.jvp(reference, (picture,), (tangent,))
        _, result = torch.func.jvp(fused, (picture,), (tangent,))
        batched = torch.func.vmap(fused)(picture[:, None])
        replaced = {k: v * 0.9 for k, v in fused.state_dict().items() if v.is_floating_point()}
        called = torch.func.functional_call(fused, replaced, (picture,))
        plain = torch.func.functional_call(reference, replaced, (picture,))
        fused(picture)
    assert relative_error(result, expected) <= FLOAT32
    assert relative_error(batched[:, 0], expected_of(reference, picture)) <= FLOAT32
    assert relative_error(called, plain) <= 2 * FLOAT32


def test_an_ensemble_by_vmap(reference: nn.Module, picture: Tensor) -> None:
    """PyTorch's recipe: all weights stacked, and a base model without any."""
    others = [shake(copy.deepcopy(reference), seed) for seed in (1, 2)]
    parameters, buffers = torch.func.stack_module_state([fuse(other) for other in others])
    base = copy.deepcopy(fuse(reference)).to("meta")

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (picture,))

    with torch.no_grad():
        results = torch.vmap(call)(parameters, buffers)
        for result, other in zip(results, others, strict=True):
            assert relative_error(result, expected_of(other, picture)) <= FLOAT32


def test_packed_in_inference_mode_then_used_with_gradients(
    reference: nn.Module, picture: Tensor
) -> None:
    fused = fuse(reference.requires_grad_(False))
    with torch.inference_mode():
        fused(picture)
    x = picture.clone().requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("change", [wrap_around, scale_convolution])
def test_a_compiler_notices_what_stands_below_forward(change: Callable[[nn.Module], None]) -> None:
    plain = shake(ConvLayer(8, 8)).eval()
    fused, x = fuse(plain), torch.randn(1, 8, 9, 9)
    change(plain)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(fused, fullgraph=True, backend="aot_eager")(x)
        assert relative_error(result, plain(x)) <= FLOAT32


NARROWED = (lambda: MDA(16, 2), lambda: ConvLayer(7, 9), lambda: HarDBlock(8, 10, 1.7, 4))


@pytest.mark.parametrize("make", NARROWED, ids=["MDA", "ConvLayer", "HarDBlock"])
def test_weights_for_narrow_images(make: Callable[[], nn.Module]) -> None:
    """They lack Winograd's form, and follow every change like the others."""
    torch.manual_seed(0)
    fused = fuse(shake(make()).eval())
    channels = fused.lead_weight().shape[1]
    wide, narrow = (torch.randn(1, channels, 11, NARROW + more) for more in (1, 0))
    with torch.no_grad():
        fused(wide)
        assert not fused._packed.narrow
        fused(narrow)
    packed, own = fused._packed.packed["packed"], fused._packed.narrow["packed"]
    assert sum(map(Tensor.numel, own)) < sum(map(Tensor.numel, packed))
    for image in (narrow, wide):
        check_noticed(fused, image, edit_in_place)
