"""Networks whose convolutions compute in bytes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs.networks import Block, Everything, shaken
from graphs.test_random import Random
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fassd_kernels import accelerate
from fassd_kernels.backends import BackendError
from fassd_kernels.graphs import backend
from fassd_kernels.graphs.quantizing import quantize
from fassd_kernels.graphs.ranges import BINS, SHARES, Grid, Histogram
from fassd_kernels.reference.quantized import dequantize
from fassd_kernels.reference.quantized import quantize as to_bytes


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(count: int = 3, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape or (2, 3, 32, 40), generator=generator) for _ in range(count)]


def in_bytes(model: nn.Module, calibration: list[Tensor] | None = None) -> Any:
    return accelerate(model, dtype=torch.int8, calibration=calibration or inputs())


def error(fast: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Relative error of a model in bytes."""
    with torch.no_grad():
        expected, found = model(x), fast(x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).norm() / expected.norm())


class Spy:
    """`quantize`, and the graphs that it made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        monkeypatch.setattr(backend, "quantize", self)

    def __call__(self, module: torch.fx.GraphModule, *arguments: Any) -> Any:
        self.graphs.append(module)
        return quantize(module, *arguments)

    def calls(self) -> list[str]:
        """What the last graph calls, with the type of the result, in order."""
        module = self.graphs[-1]
        nodes = [n for n in module.graph.nodes if n.op not in ("placeholder", "output")]
        found = []
        for node in nodes:
            calls = node.op == "call_module"
            step: Any = module.get_submodule(str(node.target)) if calls else None
            name = type(step).__name__ if calls else str(getattr(node.target, "__name__", node))
            result = getattr(step, "result", None)
            found.append(f"{name} to bytes" if result else name)
        return found


# --- which parts compute in bytes ----------------------------------------------------------------


def test_what_computes_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, model = Spy(monkeypatch), shaken(Everything())
    assert error(in_bytes(model), model, inputs()[0]) < 0.02
    # The first and the last convolution are not; what the last one reads is no bytes either.
    assert spy.calls() == [
        "StepToBytes to bytes",
        "QuantizedStep to bytes",
        "QuantizedStep to bytes",
        "QuantizedStep to bytes",
        "QuantizedUpsample",
        "QuantizedStep",
        "Step",
        "Upsample",
    ]


class Sums(nn.Module):
    """Sums and batch norms that no convolution computes, concatenations in concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(10, 4, 1)
        self.left, self.right = nn.Conv2d(6, 10, 1), nn.Conv2d(6, 10, (1, 3), padding=(0, 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(10) for _ in range(2))
        self.slopes = nn.PReLU(10)
        self.middle, self.join = nn.Conv2d(10, 5, 3, padding=1), nn.Conv2d(21, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        left, right = self.left(x), F.leaky_relu(self.right(x))
        total = self.slopes(self.norms[0](left + right))
        alone = self.norms[1](left)
        y = torch.cat([self.middle(total), self.middle(alone).relu()], 1)
        y = F.interpolate(y, size=(20, 27), mode="bilinear", align_corners=False)
        x = F.interpolate(x, size=(20, 27), mode="bilinear", align_corners=False)
        y = self.join(torch.cat([x, torch.cat([y, y[:, :5]], 1)], 1))
        return self.last(y)


def test_sums_and_concatenations(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, model = Spy(monkeypatch), shaken(Sums())
    assert error(in_bytes(model), model, inputs()[0]) < 0.03
    calls = spy.calls()
    assert calls.count("QuantizedSum") == 2 and "batch_norm" not in calls and "add" not in calls


def test_residuals_and_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    stem, head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    model = shaken(nn.Sequential(stem, nn.ReLU(), Block(8), Block(8), nn.AvgPool2d(2), head))
    spy = Spy(monkeypatch)
    assert error(in_bytes(model), model, inputs()[0]) < 0.02
    # The second block reads bytes, and adds them.
    assert spy.calls()[:5] == [
        "StepToBytes to bytes",
        "QuantizedStep to bytes",
        "QuantizedStep to bytes",
        "QuantizedStep to bytes",
        "QuantizedStep",
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(0, 11)),
        min_size=3,
        max_size=9,
    ),
    st.integers(0, 99),
)
def test_random_graphs(plan: list[tuple[int, int, int]], seed: int) -> None:
    torch._dynamo.reset()
    model = shaken(Random([(0, 0, 0), *plan, (1, 11, 3)], seed))
    data = inputs(2, 2, 3, 15, 18)
    assert error(in_bytes(model, data), model, data[0]) < 0.1


# --- a model in use ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = shaken(Everything())
    return model, in_bytes(model)


def test_it_is_the_model(pair: tuple[nn.Module, Any]) -> None:
    model, fast = pair
    assert isinstance(fast, Everything)
    assert list(fast.state_dict()) == list(model.state_dict())
    (x,) = inputs(1)
    with torch.no_grad():
        expected = fast(x)
        assert not expected.equal(model(x))
        for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert copied(x).equal(expected)


def test_other_sizes_have_the_same_ranges(pair: tuple[nn.Module, Any]) -> None:
    model, fast = pair
    before = dict(fast.quantization.grids)
    for shape in ((1, 3, 33, 50), (3, 3, 32, 64)):
        (x,) = inputs(1, *shape)
        assert error(fast, model, x) < 0.02
    assert fast.quantization.grids == before


def test_edits_are_quantised_anew(pair: tuple[nn.Module, Any]) -> None:
    model, fast = (copy.deepcopy(each) for each in pair)
    (x,) = inputs(1)
    with torch.no_grad():
        first = fast(x)
        for each in (model, fast):
            each.wide.weight *= 0.5  # within the ranges that were measured
    assert error(fast, model, x) < 0.02
    with torch.no_grad():
        assert (fast(x) - first).norm() > 0.03 * first.norm()


def test_training_gradients_and_hooks_are_the_models(pair: tuple[nn.Module, Any]) -> None:
    model, fast = (copy.deepcopy(each) for each in pair)
    (x,) = inputs(1)
    torch.testing.assert_close(fast.train()(x), model.train()(x))
    fast.eval(), model.eval()
    with torch.no_grad():
        expected = model(x)
    x.requires_grad_()
    torch.testing.assert_close(fast(x), expected)
    hook = fast.wide.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert torch.allclose(fast(x), expected, 1e-4, 1e-4)
        hook.remove()
        assert not torch.allclose(fast(x), expected, 1e-4, 1e-4)


def test_sixteen_bits() -> None:
    model = shaken(Everything()).bfloat16()
    fast = in_bytes(model, [x.bfloat16() for x in inputs()])
    assert error(fast, model, inputs()[0].bfloat16()) < 0.03


def test_calibrated_as_it_will_run() -> None:
    model = shaken(Everything())
    fast = accelerate(model.train(), dtype=torch.int8, calibration=iter(inputs()))
    assert fast.training and fast.norm.training
    before = copy.deepcopy(model.state_dict())
    assert all(x.equal(y) for x, y in zip(fast.state_dict().values(), before.values(), strict=True))
    assert error(fast.eval(), model.eval(), inputs()[0]) < 0.02


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calibration", "kind", "text"),
    [
        (None, TypeError, "dtype=torch.int8 needs calibration"),
        ([], ValueError, "calibration is empty"),
        (torch.zeros(1, 3, 8, 8), TypeError, "calibration is a Tensor; expected an iterable"),
        (["x"], TypeError, r"calibration\[0\] holds a str; expected a tensor"),
        (
            [torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8)],
            ValueError,
            r"calibration\[1\], of sh",
        ),
        ([torch.full((1, 3, 8, 8), torch.nan)], ValueError, r"calibration\[0\].*not finite"),
    ],
)
def test_bad_calibration(calibration: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        accelerate(shaken(Everything()), dtype=torch.int8, calibration=calibration)


def test_bad_models() -> None:
    model, data = shaken(Everything()), inputs()
    with pytest.raises(TypeError, match=r"calibration is for dtype=torch.int8; dtype is None"):
        accelerate(model, calibration=data)
    with pytest.raises(TypeError, match=r"takes a model of torch.float32.*has torch.float64"):
        accelerate(copy.deepcopy(model).double(), dtype=torch.int8, calibration=data)
    with pytest.raises(TypeError, match="holds a CapturedEverything, which is accelerated already"):
        accelerate(accelerate(model), dtype=torch.int8, calibration=data)
    with pytest.raises(BackendError, match="the CPU alone; Everything is on meta"):
        accelerate(copy.deepcopy(model).to("meta"), dtype=torch.int8, calibration=data)
    with pytest.raises(BackendError, match="runs on backend cpu, not on backend 'reference'"):
        accelerate(model, dtype=torch.int8, calibration=data, backend="reference")


# --- ranges --------------------------------------------------------------------------------------


def test_histograms_grow() -> None:
    parts = [torch.randn(2, 3, 9, 8) * 10.0**e for e in (-3, 1, 0)] + [torch.zeros(1, 3, 0, 8)]
    found = Histogram()
    for part in parts:
        found.add(part)
    values = torch.cat([part.flatten() for part in parts])
    largest = float(values.abs().max())
    assert largest <= found.limit < 2 * largest
    assert (found.low, found.high) == (float(values.min()), float(values.max()))
    whole = torch.histc(values, BINS, -found.limit, found.limit).double()
    # A value on the border of two bins is rounded to either.
    assert (found.counts.cumsum(0) - whole.cumsum(0)).abs().max() <= 2


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_the_range_has_the_least_error(sign: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(1, 1, 1000, 1000)
    values[0, 0, 0, 0] = 8  # a range up to here would be too coarse
    values = values if sign == 0 else sign * values.relu()
    found = Histogram()
    found.add(values)
    low, high = found.low, found.high

    def squares(grid: Grid) -> float:
        back = dequantize(to_bytes(values, *grid), *grid)
        return float(((back - values) ** 2).sum())

    grid = found.grid()
    best = min(squares(Grid.of(share * low, share * high)) for share in SHARES.tolist())
    assert squares(grid) < 1.02 * best < 0.8 * squares(Grid.of(low, high))
    assert 0 <= grid.zero <= 255 and (sign == 0 or grid.zero == (0 if sign > 0 else 255))


def test_of_a_large_map_some_values_are_counted() -> None:
    values = torch.zeros(1, 1, 1200, 1200)
    values[0, 0, ::2, :] = 1
    values[0, 0, 1, 1] = -3  # in between, but still in the range
    found = Histogram()
    found.add(values)
    assert found.counts.sum() == 600 * 600 and (found.low, found.high) == (-3, 1)


def test_a_map_of_zeros() -> None:
    found = Histogram()
    found.add(torch.zeros(1, 2, 3, 4))
    assert found.grid() == Grid(1.0, 0)
