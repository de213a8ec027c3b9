"""FusedNetwork: what is fused across modules, labels, and whole networks against float64."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.conftest import exact, network, relative_error, shake, short
from kernels.conftest import random_picture as picture
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fassd
import fassd_kernels
from fassd.data import normalize
from fassd.synth import render_street
from fassd_kernels import FusedNetwork, accelerate

# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_logits_and_labels(batch: int, layout: torch.memory_format) -> None:
    model, x = network(), picture(batch=batch).contiguous(memory_format=layout)
    right = exact(model, x)
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), right) <= 2e-6
        labels = accelerate(model, output="labels")(x)
    assert labels.shape == (batch, 97, 130) and labels.dtype == torch.uint8
    assert (labels == right.argmax(1)).double().mean() >= 0.999


FAST = accelerate(network("fassd_net_l2"))
PLAIN = network("fassd_net_l2").double()


@given(
    height=st.integers(113, 180),
    width=st.integers(113, 260),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_size(height: int, width: int, batch: int, seed: int) -> None:
    x = picture(height, width, batch, seed)
    with torch.no_grad():
        assert relative_error(FAST(x), PLAIN(x.double())) <= 2e-6


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    fast, x = accelerate(network()), picture(200, 300)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(fast(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["fassd_net", "fassd_net_l2"])
def test_labels_of_trained_weights(name: str) -> None:
    model = fassd.create_model(name, weights="streets").eval()
    scene = render_street(384, 768, seed=5, split="val")[0]
    x = torch.from_numpy(normalize(scene))[None]
    right = exact(model, x).argmax(1)
    assert len(right.unique()) >= 8, "a dull picture proves nothing"
    for dtype in (torch.float32, torch.float16):
        with torch.no_grad():
            labels = accelerate(model, dtype=dtype, output="labels")(x)
        assert (labels == right).double().mean() >= 0.999, dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e37])
def test_pixels_that_are_not_finite_or_huge(value: float) -> None:
    """They spoil what they spoil in the reference, though Winograd's sums would mix infinities."""
    torch.manual_seed(0)
    model = shake(fassd.models.HarDBlock(24, 10, 1.7, 4)).eval()
    x = torch.randn(1, 24, 40, 200)
    x[0, 5, 20, 90] = value
    with torch.no_grad():
        right, result = model(x), accelerate(model)(x)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(result), kind(right))
    small = right.abs() < 1e3
    assert 0.9 < small.float().mean() < 1
    assert relative_error(result[small], right[small]) <= 2e-6


# --- fusion across modules ------------------------------------------------------------------------


def test_what_one_picture_takes(operator_calls: list[str]) -> None:
    with torch.no_grad():
        accelerate(network(), output="labels")(picture())
    encoder = ["conv_act"] * 4 + ["hardblock", "conv_act"] * 4
    decoder = ["upsample_conv1x1", "mda", "hardblock"] * 3
    assert operator_calls == [*encoder, "dapf", *decoder, "conv_act", "upsample_argmax"]


@pytest.mark.parametrize(
    "name", ["base.5", "base.6", "base.5.conv", "conv1x1_up.1", "mda.0", "DAPF"]
)
def test_hooks_run(name: str) -> None:
    model, x = network(), picture()
    fast = accelerate(model)
    shapes: list[torch.Size] = []
    handle = fast.get_submodule(name).register_forward_hook(
        lambda _m, _i, output: shapes.append(output.shape)
    )
    with torch.no_grad():
        hooked = fast(x)
        assert len(shapes) == 1
        handle.remove()
        fast(x)
    assert len(shapes) == 1
    assert relative_error(hooked, exact(model, x)) <= 2e-6


def test_a_hook_that_changes_what_it_sees() -> None:
    model, x = network(), picture()
    for name in ("base.5", "conv1x1_up.2"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output: output * 0.5)
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), model(x)) <= 4e-6


def test_a_skip_of_another_width(operator_calls: list[str]) -> None:
    """A decoder 1x1 packs its weight for the width of what is upsampled, and notices a change."""
    model = network()
    layer = accelerate(model).conv1x1_up[0]
    with torch.no_grad():
        for low in (224, 100, 224):
            x, s = torch.randn(1, low, 5, 6), torch.randn(1, 384 - low, 9, 11)
            up = nn.functional.interpolate(x, (9, 11), mode="bilinear", align_corners=True)
            right = model.conv1x1_up[0](torch.cat([up, s], 1))
            assert relative_error(layer.after_upsample(x, s), right) <= 2e-6
            assert relative_error(layer(torch.cat([up, s], 1)), right) <= 2e-6
    assert operator_calls.count("upsample_conv1x1") == 3


def test_other_poolings_stay() -> None:
    model, x = network(), picture(130, 170)
    model.base[6] = nn.AvgPool2d(2, ceil_mode=True)
    model.base[9] = nn.MaxPool2d(2)
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), exact(model, x)) <= 2e-6


# --- it stays a network ---------------------------------------------------------------------------


def test_training_gives_logits_and_fresh_labels_after() -> None:
    fast = accelerate(network("fassd_net_l2", 4), output="labels").train()
    x = picture(128, 128, 2)
    logits = fast(x)
    assert logits.shape == (2, 4, 128, 128) and logits.requires_grad
    before = fast.eval()(x)
    fast.train()
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.5)
    fast(x).square().mean().backward()
    optimizer.step()
    after = fast.eval()(x)
    plain = fassd.create_model("fassd_net_l2", num_classes=4)
    plain.load_state_dict(fast.state_dict())
    with torch.no_grad():
        right = plain.eval()(x).argmax(1)
    assert (after == right).double().mean() >= 0.999
    assert not torch.equal(after, before)


def test_copies_and_state_dict() -> None:
    model, x = network(), picture()
    fast = accelerate(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        expected = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), accelerate(fast)):
            assert torch.equal(other(x), expected)
    assert "output=logits" in repr(fast) and "FusedHarDBlock" in repr(fast)


def test_accelerated_again_with_labels() -> None:
    model, x = network(), picture()
    fast = accelerate(accelerate(model), output="labels")
    with torch.no_grad():
        assert (fast(x) == exact(model, x).argmax(1)).double().mean() >= 0.999


def test_compile_fullgraph() -> None:
    """The labels' graph is that of the logits, and the operator that ends it."""
    model, x = short(), picture(120, 130)
    torch._dynamo.reset()
    fast = accelerate(model, output="labels")
    with torch.no_grad():
        labels = torch.compile(fast, fullgraph=True, backend="aot_eager")(x)
    assert (labels == exact(model, x).argmax(1)).double().mean() >= 0.999


def test_gradients_in_eval_mode() -> None:
    model, x = network("fassd_net_l2", 4), picture(120, 130)
    gradients = []
    for module in (model, accelerate(model)):
        leaf = x.clone().requires_grad_()
        module(leaf).square().mean().backward()
        gradients.append(leaf.grad)
    assert relative_error(gradients[1], gradients[0]) <= 1e-3


def test_autocast() -> None:
    model, x = network("fassd_net_l2"), picture(120, 130)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = accelerate(model)(x)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, exact(model, x)) <= 0.1


def test_batch_norms_without_running_statistics() -> None:
    """They cannot be folded: such parts run as they are."""
    model, x = network("fassd_net_l2"), picture(160, 160, 2)
    for name in ("base.1.norm", "base.4.layers.2.norm", "mda.1.bn_relu_2.bn"):
        norm = model.get_submodule(name)
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = None
    with torch.no_grad():
        assert relative_error(accelerate(model)(x), exact(model, x)) <= 4e-6


class Own(fassd.models.FASSDNet):
    """Somebody's subclass, with another forward and a method more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2

    def loss(self) -> int:
        return 1


class Named(fassd.models.FASSDNet):
    """A subclass with the same forward."""

    def loss(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [Own, Named])
def test_subclasses_stay_and_their_modules_are_swapped(kind: type[fassd.models.FASSDNet]) -> None:
    own = shake(kind(5)).eval()
    fast = accelerate(own)
    assert type(fast) is kind and fast.loss() == 1
    assert type(fast.DAPF).__name__ == "FusedDAPF"
    with torch.no_grad():
        assert relative_error(fast(picture()), exact(own, picture())) <= 2e-6


def test_a_network_in_a_wrapper_is_fused_as_a_whole() -> None:
    model = network("fassd_net_l2")
    wrapped = accelerate(nn.Sequential(model))
    assert isinstance(wrapped[0], FusedNetwork)
    x = picture(120, 130)
    with torch.no_grad():
        assert relative_error(wrapped(x), exact(model, x)) <= 2e-6


@pytest.mark.parametrize("name", ["DAPF.bn1", "base.5", "conv1x1_up.0", "base.4.layers.1.conv"])
@pytest.mark.parametrize("early", [True, False])
def test_a_module_with_a_forward_of_its_own_is_called(name: str, early: bool) -> None:
    """As wrapping libraries patch modules: on the instance."""
    model, x = network(), picture()

    def patch(target: nn.Module) -> None:
        part = target.get_submodule(name)
        original = part.forward
        part.forward = lambda x: original(x) * 0.5

    fast = accelerate(model)
    patch(model)
    if early:
        fast = accelerate(model)
    else:
        patch(fast)
    with torch.no_grad():
        assert relative_error(fast(x), model(x)) <= 4e-6


def test_hooks_of_all_modules_see_every_part() -> None:
    model, x = network(), picture()
    fast, seen = accelerate(model), []
    hook = torch.nn.modules.module.register_module_forward_hook
    counts = []
    for module in (model, fast):
        seen.clear()
        handle = hook(lambda m, _i, _o: seen.append(type(m).__name__))
        with torch.no_grad():
            module(x)
        handle.remove()
        counts.append(seen.count("BatchNorm2d"))
    assert counts[0] == counts[1] > 50


def test_trace_and_export() -> None:
    model, x = short(), picture(120, 130)
    fast = accelerate(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and in use
        traced = torch.jit.trace(fast, x)
        assert relative_error(traced(x), exact(model, x)) <= 2e-6
        other = picture(150, 140)
        assert relative_error(traced(other), exact(model, other)) <= 2e-6
        exported = torch.export.export(fast, (x,)).module()
        assert relative_error(exported(x), exact(model, x)) <= 2e-6
        assert relative_error(fast(x), exact(model, x)) <= 2e-6


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_symbolic_trace_is_the_plain_network(output: str) -> None:
    model = network("fassd_net_l2")
    fast = accelerate(model, output=output)
    traced = torch.fx.symbolic_trace(fast)
    assert not any("fassd_kernels" in str(node.target) for node in traced.graph.nodes)
    x = picture(120, 131)
    with torch.no_grad():
        result, expected = traced(x), exact(model, x)
    if output == "labels":
        assert result.dtype == torch.uint8
        assert (result == expected.argmax(1)).float().mean() > 0.999
    else:
        assert relative_error(result, expected) <= 2e-6


def test_shape_propagation_leaves_nothing_behind() -> None:
    model, x = network("fassd_net_l2"), picture(120, 130)
    fast = accelerate(model)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert fast(mode.from_tensor(x)).shape == (1, 7, 120, 130)
        result = fast(x)
    assert type(result) is Tensor
    assert relative_error(result, exact(model, x)) <= 2e-6


def test_inputs_are_cast_by_either_way_to_labels() -> None:
    model, x = network("fassd_net_l2"), picture(120, 130)
    scores = accelerate(model, dtype=torch.float16)
    labels = accelerate(model, dtype=torch.float16, output="labels")
    with torch.no_grad():
        assert torch.equal(scores.predict_labels(x), labels(x))
        assert scores(x).dtype == torch.float16


def test_a_segmenter_respects_hooks_of_its_network() -> None:
    scene = render_street(128, 192, seed=1, split="val")[0]
    segmenter = fassd.Segmenter(network("fassd_net_l2"))
    plain = segmenter.predict(scene)
    segmenter.model.register_forward_hook(lambda _m, _i, output: output.flip(1))
    flipped = segmenter.predict(scene)
    assert (flipped == 6 - plain).mean() >= 0.999


def test_a_child_process_does_not_inherit_a_locked_pool() -> None:
    """Forked while other threads are inside the kernels."""
    if not hasattr(os, "fork") or fassd_kernels.backends()["cpu"].reason:
        pytest.skip("needs fork and the C++ backend")
    program = """
import os, threading, warnings
import torch
from fassd_kernels import ops
warnings.simplefilter("ignore")
torch.set_num_threads(1)
x, stop = torch.randn(1, 8, 64, 64), []
def work():
    while not stop:
        ops.upsample(x, (96, 96))
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(60):
    child = os.fork()
    if child == 0:
        ops.upsample(x, (96, 96))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.append(1)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# --- pictures as they come ------------------------------------------------------------------------

LEVELS = {"mean": [103.5, 116.3, 123.7], "std": [57.4, 57.1, 58.4]}


@pytest.mark.parametrize("name", ["fassd_net", "fassd_net_l1", "baseline_aspp"])
def test_label_pictures(name: str, operator_calls: list[str]) -> None:
    fast = accelerate(network(name), output="labels")
    draw = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (2, 97, 130, 3), generator=draw).to(torch.uint8)
    x = fassd_kernels.ops.normalize(frames, **LEVELS, dtype=torch.float32)
    operator_calls.clear()
    with torch.no_grad():
        labels = fast.label_pictures(frames, **LEVELS)
        assert operator_calls[0] == "normalize_conv_act" and "normalize" not in operator_calls
        assert torch.equal(labels, fast(x))


def test_label_pictures_where_the_first_layer_is_not_fusible() -> None:
    fast = accelerate(network("fassd_net_l2"), output="labels")
    frames = torch.randint(0, 256, (1, 120, 130, 3)).to(torch.uint8)
    x = fassd_kernels.ops.normalize(frames, **LEVELS, dtype=torch.float32)
    seen: list[tuple[int, ...]] = []
    with torch.no_grad():
        right = fast(x)
        fast.base[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
        assert torch.equal(fast.label_pictures(frames, **LEVELS), right)
        assert len(seen) == 1, "the hook saw the layer called"
        with pytest.raises(ValueError, match="at least"):
            fast.label_pictures(frames[:, :20], **LEVELS)
        fast.train()
        assert fast.label_pictures(frames, **LEVELS).shape == (1, 120, 130)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_stable_over_frames_of_changing_size() -> None:
    if fassd_kernels.backends()["cpu"].reason:
        pytest.skip(fassd_kernels.backends()["cpu"].reason)
    fast = accelerate(network("fassd_net_l2"), output="labels")
    draw = torch.Generator().manual_seed(0)
    held = []
    with torch.inference_mode():
        for _ in range(400):
            height, width = (int(v) for v in torch.randint(57, 120, (2,), generator=draw))
            fast(torch.zeros(1, 3, height, width))
            held.append(fassd_kernels.held_memory())
    assert max(held[200:]) <= 1.1 * max(held[:200])
    assert max(held) <= 16 * 2**20
    fassd_kernels.release_memory()
    assert fassd_kernels.held_memory() <= 2**22, "but for large pages begun"


# --- refusals -------------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match="output is 'probabilities'; expected one of logits, labels"
    ):
        accelerate(network(), output="probabilities")
    with pytest.raises(TypeError, match=r"needs a fassd.models.FASSDNet.*Sequential"):
        accelerate(nn.Sequential(network()), output="labels")
    with pytest.raises(ValueError, match="at most 256 classes; the model has 300"):
        accelerate(fassd.create_model("fassd_net_l2", num_classes=300), output="labels")

    with pytest.raises(TypeError, match=r"needs a fassd.models.FASSDNet itself.*Own"):
        accelerate(Own(), output="labels")
    with pytest.raises(ValueError, match="at least 29x29 pixels"):
        accelerate(network())(picture(20, 200))
