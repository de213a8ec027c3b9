"""GraphRunner: what is kept, what makes it capture anew, and when it steps back.

A graph needs a GPU; everything around it does not.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from kernels.conftest import shake
from kernels.stand_ins import OnCpu, Replay
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import fassd
from fassd_kernels import GraphRunner, accelerate
from fassd_kernels.modules import fused as fused_module
from fassd_kernels.modules import network as fused_network
from fassd_kernels.modules import snapshot
from fassd_kernels.runtime import graph

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.fixture(autouse=True)
def count() -> None:
    Replay.captures = Replay.replays = 0
    Replay.fails = False


def network() -> nn.Module:
    torch.manual_seed(0)
    return shake(fassd.create_model("fassd_net_l2", num_classes=5)).eval().requires_grad_(False)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_equals_the_model_and_captures_once_for_a_shape(output: str) -> None:
    fast = accelerate(network(), output=output)
    run = OnCpu(fast)
    for seed in range(3):
        x = picture(seed=seed)
        assert torch.equal(run(x), fast(x))
    assert (Replay.captures, Replay.replays) == (1, 3)
    x = picture(64, 96)
    assert torch.equal(run(x), fast(x))
    assert Replay.captures == 2 and run.shapes == [(1, 3, 64, 64), (1, 3, 64, 96)]


def test_results_are_the_callers_own_unless_he_gives_that_up() -> None:
    run = OnCpu(accelerate(network()))
    first = run(picture(seed=1))
    before = first.clone()
    run(picture(seed=2))
    assert torch.equal(first, before)
    run = OnCpu(accelerate(network()), copy_output=False)
    first = run(picture(seed=1))
    assert run(picture(seed=2)) is first


def test_the_shape_unused_for_longest_makes_place() -> None:
    run = OnCpu(accelerate(network()), max_shapes=2)
    small, middle, large = picture(64, 64), picture(64, 96), picture(96, 96)
    for x in (small, middle, small, large, small):
        run(x)
    assert Replay.captures == 3 and run.shapes == [(1, 3, 96, 96), (1, 3, 64, 64)]


def test_layout_and_type_have_graphs_of_their_own() -> None:
    run = OnCpu(accelerate(network(), dtype=torch.float16))
    x = picture()
    run(x)
    run(x.half())
    run(x.contiguous(memory_format=torch.channels_last))
    assert Replay.captures == 3


def scaled(model: nn.Module) -> dict[str, Tensor]:
    return {name: value * 1.01 for name, value in model.state_dict().items()}


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "edit": lambda fast: fast.finalConv.bias.add_(1),
    "load": lambda fast: fast.load_state_dict(scaled(fast)),
    "move": lambda fast: setattr(fast.finalConv.bias, "data", fast.finalConv.bias.data + 1),
    "assign": lambda fast: fast.load_state_dict(scaled(fast), assign=True),
    "exchange": lambda fast: setattr(
        fast.finalConv, "bias", nn.Parameter(fast.finalConv.bias + 1, requires_grad=False)
    ),
    "exchange in place": lambda fast: exchange_in_place(fast.finalConv),
    "output": lambda fast: setattr(fast, "output", "labels"),
    "layout": lambda fast: transpose(fast.base[0].conv.weight),
    "uncounted": lambda fast: (fast.finalConv.bias.data.add_(1), fast.finalConv.repack()),
    "training": lambda fast: train(fast),
}


def exchange_in_place(conv: nn.Module) -> None:
    """Another parameter in the same memory, of as many edits as the one before."""
    edits = conv.bias._version
    conv.bias.data.add_(1)
    conv.bias = nn.Parameter(conv.bias.data, requires_grad=False)
    assert conv.bias._version == edits


def transpose(weight: nn.Parameter) -> None:
    weight.data = weight.data.transpose(2, 3)


def train(fast: nn.Module) -> None:
    """A forward pass that changes the statistics of batch norms."""
    fast.train()(picture(128, 128, seed=5))
    fast.eval()


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_captured_anew(change: str) -> None:
    fast = accelerate(network())
    run, x = OnCpu(fast), picture()
    before = run(x)
    run(picture(64, 96))
    with torch.no_grad():
        CHANGES[change](fast)
    assert torch.equal(run(x), fast(x)) and not torch.equal(run(x), before)
    assert Replay.captures == 3 and run.shapes == [(1, 3, 64, 64)]


def test_statistics_are_noticed_where_nothing_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """F.batch_norm does not, but the modules pack anew."""
    for module in (fused_module, fused_network):
        monkeypatch.setattr(module, "kernels_used", nullcontext)
    model = network()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.num_batches_tracked = None
    fast = accelerate(model)
    run, x = OnCpu(fast), picture()
    before = run(x)
    edits = [buffer._version for buffer in fast.buffers()]
    with torch.no_grad():
        train(fast)
    assert edits == [buffer._version for buffer in fast.buffers()]
    assert torch.equal(run(x), fast(x)) and not torch.equal(run(x), before)


@pytest.mark.parametrize("what", ["optimizer_steps", "collectives"])
def test_what_edits_without_counting_is_counted(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    run, x = OnCpu(accelerate(network())), picture()
    run(x)
    monkeypatch.setattr(snapshot, what, 1 if what == "optimizer_steps" else lambda: 1)
    run(x)
    run(x)
    assert Replay.captures == 2


def test_another_precision_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    run, x = OnCpu(accelerate(network())), picture()
    run(x)
    monkeypatch.setattr(graph, "tf32_requested", lambda: True)
    run(x)
    run(x)
    assert Replay.captures == 2


def test_the_graph_runs_while_the_model_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU does not wait for it; and a result that is void is not given out."""
    fast = accelerate(network())
    run, x, did = OnCpu(fast), picture(), []
    run(x)

    def noting(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def noted(*arguments: object) -> object:
            did.append(name)
            return inner(*arguments)

        monkeypatch.setattr(owner, name, noted)

    noting(Replay, "replay")
    noting(OnCpu, "look")
    run(x)
    assert did == ["replay", "look"]
    with torch.no_grad():
        fast.finalConv.bias.add_(1)
    assert torch.equal(run(x), fast(x))
    assert did == ["replay", "look", "replay", "look", "replay"]
    fast.requires_grad_()
    with pytest.warns(RuntimeWarning, match="a gradient is asked for"):
        run(x)
        run(x)
    assert did[5:] == ["replay", "look", "look"]  # not in vain again


LATER: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "hook": (lambda fast: fast.finalConv.register_forward_hook(plus_one), "carries hooks"),
    "hook of a table": (
        lambda fast: fast.finalConv._forward_hooks.update({0: plus_one}),
        "carries hooks",
    ),
    "forward": (
        lambda fast: setattr(fast.finalConv, "forward", lambda x: 1 + fast.conv_of(x)),
        "carries hooks",
    ),
    "training": (lambda fast: fast.train(), "training mode"),
    "training of a part": (lambda fast: fast.mda.train(), "a part of it, is in training mode"),
    "gradient": (lambda fast: fast.finalConv.requires_grad_(), "a gradient is asked for"),
    "inference mode": (lambda fast: setattr(fast.finalConv, "bias", inferred(fast)), "inference"),
}


def plus_one(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output + 1


def inferred(fast: nn.Module) -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(fast.finalConv.bias + 1, requires_grad=False)


@pytest.mark.parametrize("change", LATER)
def test_what_comes_later_is_noticed(change: str) -> None:
    make, reason = LATER[change]
    fast = accelerate(network())
    fast.conv_of = type(fast.finalConv).forward.__get__(fast.finalConv)
    run, x = OnCpu(fast), picture(128, 128)
    before = run(x)
    run(x)
    make(fast)
    if "training" in change:  # whose statistics change at every call
        fast_too = copy.deepcopy(fast)
    with pytest.warns(RuntimeWarning, match=reason):
        result = run(x)
    right = fast_too(x) if "training" in change else fast(x)
    assert torch.equal(result, right) and result.requires_grad == (change == "gradient")
    assert torch.equal(result, before) == (change == "gradient")


def test_a_hook_of_all_modules_is_noticed() -> None:
    run, x = OnCpu(accelerate(network())), picture()
    run(x)
    hook = global_hooks.register_module_forward_hook(lambda *_: None)
    with hook, pytest.warns(RuntimeWarning, match="carries hooks"):
        run(x)
    assert Replay.replays == 1


def test_packed_weights_live_as_long_as_the_graph() -> None:
    fast = accelerate(network())
    run, x = OnCpu(fast), picture()
    run(x)
    block = next(m for m in fast.modules() if type(m).__name__ == "FusedHarDBlock")
    weight = weakref.ref(block._packed.packed["weights"][0])
    block.repack()
    gc.collect()
    assert weight() is not None
    run.reset()
    gc.collect()
    assert weight() is None


def hooked() -> nn.Module:
    fast = accelerate(network())
    fast.base[0].register_forward_hook(lambda *_: None)
    return fast


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: accelerate(network()).train(), "training mode"),
        (hooked, "carries hooks"),
        (lambda: accelerate(network()).requires_grad_(), "a gradient is asked for"),
    ],
    ids=["training", "hooks", "gradient"],
)
def test_steps_back_and_says_so_once(make: Callable[[], nn.Module], reason: str) -> None:
    run = OnCpu(make())
    with pytest.warns(RuntimeWarning, match=f"runs without a CUDA graph .*{reason}") as caught:
        first = run(picture(128, 128))
        run(picture(128, 128))
    assert len([w for w in caught if "GraphRunner" in str(w.message)]) == 1
    assert Replay.captures == 0 and first.shape == (1, 5, 128, 128)
    assert first.requires_grad == ("gradient" in reason)


def test_autocast_is_left_to_the_model() -> None:
    run = OnCpu(accelerate(network()))
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(RuntimeWarning, match="autocast"):
        assert run(picture()).dtype == torch.bfloat16


def test_a_capture_that_fails_is_no_error() -> None:
    fast = accelerate(network())
    run, x = OnCpu(fast), picture()
    Replay.fails = True
    with pytest.warns(
        RuntimeWarning, match=r"the capture failed: RuntimeError: operation not[^\n]*$"
    ):
        assert torch.equal(run(x), fast(x))
    Replay.fails = False
    assert torch.equal(run(x), fast(x)) and Replay.captures == 0  # not tried at every call
    run.reset()
    assert torch.equal(run(x), fast(x)) and Replay.captures == 1


def test_inference_mode_now_and_then() -> None:
    fast = accelerate(network())
    run, x = OnCpu(fast), picture()
    with torch.inference_mode():
        first = run(x)
    with torch.no_grad():
        assert torch.equal(run(x), first) and torch.equal(first, fast(x))
    assert Replay.captures == 1
    with torch.inference_mode():
        made_there = accelerate(network())
        with pytest.warns(RuntimeWarning, match="made in inference mode"):
            OnCpu(made_there)(x)


def test_threads_do_not_mix_their_pictures() -> None:
    fast = accelerate(network())
    run = OnCpu(fast)
    pictures = [picture(seed=seed) for seed in range(4)]
    right = [fast(x) for x in pictures]

    def work(index: int) -> None:
        for _ in range(3):
            assert torch.equal(run(pictures[index]), right[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_on_a_cpu_the_model_is_called() -> None:
    fast, x = accelerate(network()), picture()
    with pytest.warns(RuntimeWarning, match="the input is on cpu; CUDA graphs need a GPU"):
        assert torch.equal(GraphRunner(fast)(x), fast(x))


def test_arguments() -> None:
    with pytest.raises(TypeError, match="model is a int"):
        GraphRunner(3)
    with pytest.raises(ValueError, match="max_shapes is 0; expected at least 1"):
        GraphRunner(nn.Identity(), max_shapes=0)


@on_gpu
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_on_a_gpu(output: str) -> None:
    fast = accelerate(network().cuda(), dtype=torch.float16, output=output)
    run = GraphRunner(fast, max_shapes=2)
    other = torch.cuda.Stream()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            for height, width in ((64, 64), (96, 128), (128, 64)):
                x = picture(height, width, seed).cuda()
                assert torch.equal(run(x), fast(x))
                other.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(other):
                    result = run(x)
                torch.cuda.current_stream().wait_stream(other)
                assert torch.equal(result, fast(x))
        with torch.no_grad():
            fast.finalConv.bias.add_(1)
        assert torch.equal(run(x), fast(x))
