"""A captured network in use: types, sizes, gradients, edits, threads and hooks."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from graphs.networks import CALLS, FORMS, Block, Everything, agree, compiled, shaken
from torch import Tensor, nn

from fassd_kernels import accelerate
from fassd_kernels.graphs.backend import compile_graph
from fassd_kernels.graphs.captured import Captured

# --- types, sizes and gradients ------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-12)],
)
def test_types(dtype: torch.dtype, tolerance: float) -> None:
    model = shaken(Everything()).to(dtype)
    fast, _ = compiled(model)
    agree(fast, model, torch.randn(1, 3, 32, 40).to(dtype), tolerance=tolerance)


def test_sizes_come_and_go() -> None:
    model = shaken(Everything())
    fast, recorded = compiled(model)
    for shape in ((1, 3, 32, 40), (2, 3, 33, 40), (1, 3, 64, 34), (3, 3, 32, 40), (0, 3, 32, 40)):
        agree(fast, model, torch.randn(shape))
    assert len(recorded.graphs) < 5  # sizes are free from the second on


def test_autocast_is_pytorchs() -> None:
    model = shaken(Everything())
    fast, _ = compiled(model)
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).equal(model(x))


def test_gradients_are_the_models() -> None:
    model = shaken(Everything())
    fast, _ = compiled(model)
    ours, theirs = (
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) for _ in "ab"
    )
    fast(ours.requires_grad_()).square().sum().backward()
    weights = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(theirs.requires_grad_()).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(weights, [parameter.grad for parameter in model.parameters()])


def test_complex_and_quantised_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).to(torch.complex64)
    fast, _ = compiled(model.eval())
    x = torch.randn(1, 3, 6, 6, dtype=torch.complex64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    quantised = torch.quantize_per_tensor(torch.randn(1, 3, 6, 6), 0.1, 0, torch.qint8)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).eval()
    read = torch.compile(lambda x: plain(x.dequantize()), backend=compile_graph)
    with torch.no_grad():
        torch.testing.assert_close(read(quantised), plain(quantised.dequantize()))


# --- weights that change -------------------------------------------------------------------------


EDITS: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m.stem.weight.mul_(-1),
    "through data": lambda m: m.norm.running_var.data.add_(1),
    "loaded": lambda m: m.load_state_dict({k: v + 0.5 for k, v in m.state_dict().items()}),
    "another tensor": lambda m: setattr(m.up, "weight", nn.Parameter(-m.up.weight)),
    "another layer": lambda m: setattr(m, "head", nn.Conv2d(10, 5, 3, padding=1)),
    "a setting": lambda m: setattr(m.norm, "eps", 0.5),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    "through", [compiled, lambda model: (accelerate(model, inplace=True), None)]
)
def test_edits_are_seen(through: Any, edit: str) -> None:
    model = shaken(Everything())
    twin = copy.deepcopy(model)
    fast, _ = through(model)
    x = torch.randn(1, 3, 32, 40)
    agree(fast, twin, x)
    with torch.no_grad():
        for each in (model, twin):
            torch.manual_seed(5)
            EDITS[edit](each)
    agree(fast, twin, x)


def test_threads() -> None:
    model = shaken(Everything())
    fast = accelerate(model)
    inputs = [torch.randn(1, 3, 32, 40) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        fast(inputs[0])

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                assert torch.allclose(fast(inputs[index]), expected[index], 1e-4, 1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# --- accelerate ----------------------------------------------------------------------------------


def test_a_captured_model_is_the_model() -> None:
    model = shaken(Everything())
    fast: Any = accelerate(model)
    assert isinstance(fast, Captured) and isinstance(fast, Everything)
    assert type(model) is Everything
    assert list(fast.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 3, 32, 40)
    first = agree(fast, model, x)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is type(fast)
        assert agree(copied, model, x).equal(first)
    same = accelerate(model, inplace=True)
    assert same is model and isinstance(model, Captured)


def test_training_and_hooks_run_the_models_own() -> None:
    model = shaken(Everything())
    fast = accelerate(model).train()
    x = torch.randn(2, 3, 32, 40)
    fast(x).sum().backward()
    assert fast.stem.weight.grad is not None
    assert not fast.norm.running_mean.equal(model.norm.running_mean)
    fast = accelerate(model)
    agree(fast, model, x)
    seen: list[str] = []
    handle = fast.tall.register_forward_hook(lambda *_: seen.append("tall"))
    agree(fast, model, x)
    handle.remove()
    agree(fast, model, x)
    assert seen == ["tall"] * (CALLS + 1)


def test_weights_that_are_lent_for_one_call() -> None:
    model = shaken(Everything())
    fast = accelerate(model)
    x = torch.randn(1, 3, 32, 40)
    own = agree(fast, model, x)
    others = {name: value + 0.25 for name, value in model.state_dict().items()}
    with torch.no_grad():
        lent = torch.func.functional_call(fast, others, x)
        expected = torch.func.functional_call(model, others, x)
    torch.testing.assert_close(lent, expected, rtol=1e-4, atol=1e-4)
    assert agree(fast, model, x).equal(own)


def test_control_flow_is_told_once() -> None:
    class Branching(Everything):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if y.mean() > 0:
                y = -y
            return torch.sigmoid(y)

    model = shaken(Branching())
    fast = accelerate(model)
    x = torch.randn(1, 3, 32, 40)
    with pytest.warns(RuntimeWarning, match="Branching is captured in parts"):
        agree(fast, model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(fast, model, -x)


def test_many_models_in_one_process() -> None:
    """More than the graphs that Dynamo keeps for one piece of code."""
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4 + seed, 3, padding=1), nn.Conv2d(4 + seed, 2, 1)
        ).eval()
        agree(accelerate(model), model, torch.randn(1, 3, 8, 9))
    assert counted["unique_graphs"] - before == 10


def test_lists_and_dictionaries_of_modules_are_not_called() -> None:
    class Called(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            return self["b"](self["a"](x))  # type: ignore[no-any-return]

    model = shaken(Called({"a": Block(4), "b": Block(4)}))
    fast: Any = accelerate(model)
    assert isinstance(fast, Captured)
    agree(fast, model, torch.randn(1, 4, 6, 6))
    parts: Any = accelerate(nn.ModuleList([Block(4), nn.ModuleDict({"a": Block(4)})]))
    assert isinstance(parts[0], Captured) and isinstance(parts[1]["a"], Captured)
    assert not isinstance(parts, Captured) and not isinstance(parts[1], Captured)


def test_parts_of_a_model_that_has_fused_modules() -> None:
    from fassd.models import MDA

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.mda = Block(8), MDA(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.mda(self.block(x))  # type: ignore[no-any-return]

    model = shaken(Mixed())
    fast: Any = accelerate(model)
    assert type(fast) is Mixed and isinstance(fast.block, Captured)
    agree(fast, model, torch.randn(1, 8, 12, 10))
