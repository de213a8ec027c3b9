"""What the GPU report's cases are measured with: forms of a subject, failures, timing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fassd
from benchmarks.report import Row
from fassd.bench import candidates
from fassd.bench.candidates import (
    FORMS,
    OUR_FORMS,
    SWITCHED,
    BuildContext,
    Candidate,
    UnavailableError,
    native,
)
from fassd.bench.cases import Bench, measure_case
from fassd.bench.folding import fold_batch_norms, randomised
from fassd.bench.subjects import MODULES, Case
from fassd.evaluation.agreement import compare
from fassd.models.clock import Sampling
from fassd_kernels.tuning.accuracy import relative_error

CPU = torch.device("cpu")

# --- agreement ------------------------------------------------------------------------------------


def test_compare_refuses_what_is_not_a_number():
    reference = [torch.ones(4)]
    record: dict[str, Any] = {}
    compare([torch.full((4,), 1.001)], reference, 2e-3, record)
    assert record["match"] and record["rel_error"] == pytest.approx(1e-3, rel=1e-3)
    compare([torch.tensor([1.0, 1.0, float("nan"), 1.0])], reference, 2e-3, record)
    assert record["rel_error"] is None and not record["match"]
    with pytest.raises(RuntimeError, match="shape"):
        relative_error(torch.ones(3), torch.ones(4))


def test_labels_are_judged_by_their_scores():
    scores = torch.zeros(1, 3, 1, 4)
    scores[0, :, 0] = torch.tensor([[3.0, 1.0, 0.0, 2.0], [1.0, 4.0, 0.0, 2.0], [0, 0, 2.0, 1.99]])
    right = torch.tensor([[[0, 1, 2, 0]]])
    assert relative_error(right, scores) == 0.0
    # Of two equal scores, either label is right; of nearly equal ones, nearly.
    assert relative_error(torch.tensor([[[0, 1, 2, 1]]]), scores) == 0.0
    best = (9 + 16 + 4 + 4) ** 0.5
    near, far = (torch.tensor([[[a, 1, 2, b]]]) for a, b in ((0, 2), (1, 0)))
    assert relative_error(near, scores) == pytest.approx(0.01 / best, rel=1e-3)
    assert relative_error(far.to(torch.uint8), scores) == pytest.approx(2 / best, rel=1e-6)
    # A label that was not written is no number.
    unwritten = torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8)
    assert not relative_error(unwritten, scores) < float("inf")
    with pytest.raises(RuntimeError, match="shape"):
        relative_error(right[:, :, :3], scores)


def test_labels_are_compared_by_their_share():
    labels = torch.arange(200).view(2, 10, 10)
    other = labels.clone()
    other[0, 0, 0] = 7
    assert relative_error(other.to(torch.uint8), labels) == pytest.approx(1 / 200)


# --- forms ----------------------------------------------------------------------------------------


def unfolded(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.mark.parametrize("name", fassd.list_models())
def test_folding_a_network_keeps_its_function(name):
    model = randomised(fassd.create_model(name))
    folded = fold_batch_norms(model)
    # Of each MDA, the batch norms before the 3x3 and after the sum.
    assert unfolded(folded) == 2 * sum(isinstance(m, fassd.models.MDA) for m in model.modules())
    side = max(64, model.minimum_size)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_folding_a_module_keeps_its_function(name):
    place = MODULES[name]
    module = randomised(place.build())
    folded = fold_batch_norms(module)
    x = torch.randn(1, place.maps[0][0], 8, 8)
    with torch.no_grad():
        assert relative_error(folded(x), module(x)) < 1e-5
    assert unfolded(module) > unfolded(folded) == (2 if name.startswith("MDA") else 0)


def test_random_weights_are_the_same_every_time():
    one, two = (randomised(fassd.models.DAPF(8)).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["bn1.running_var"], torch.ones(8))


def test_a_form_that_is_not_there_says_why():
    module = randomised(fassd.models.DAPF(8))
    missing = BuildContext(module, torch.device("meta"))
    with pytest.raises(UnavailableError, match="no backend meta"):
        native(missing, torch.float32)


def test_cudnn_benchmark_is_on_only_inside():
    before = torch.backends.cudnn.benchmark
    with FORMS["channels_last"].settings():
        assert torch.backends.cudnn.benchmark and not torch.is_grad_enabled()
    assert torch.backends.cudnn.benchmark is before


SMALL = Case("modules", "MDA(63, 2)", 64, 64, "float32")
BENCH = Bench(CPU, Sampling(rounds=2, sample_ms=0.1), compiler="aot_eager")


def stand_in(monkeypatch, name: str, build: Any) -> None:
    monkeypatch.setitem(FORMS, name, Candidate(name, name, build))


def test_a_candidate_that_fails_leaves_the_others(monkeypatch):
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel\nfor this")

    stand_in(monkeypatch, "channels_last", lambda context, dtype: broken)
    eager, folded = measure_case(SMALL, "library", BENCH)["candidates"]
    assert eager["match"] and eager["timing"]["n"] == 2
    assert (folded["status"], folded["reason"]) == ("failed", "RuntimeError: no kernel")
    stand_in(monkeypatch, "eager", lambda context, dtype: broken)
    records = measure_case(SMALL, "library", BENCH)["candidates"]
    assert [record["status"] for record in records] == ["failed", "failed"]


def test_a_wrong_candidate_does_not_match(monkeypatch):
    def wrong(context: BuildContext, dtype: torch.dtype) -> Any:
        return lambda x: context.module(x) * 1.01

    stand_in(monkeypatch, "channels_last", wrong)
    data = measure_case(SMALL, "library", BENCH)
    eager, folded = data["candidates"]
    assert eager["match"] and not folded["match"]
    assert folded["rel_error"] == pytest.approx(1e-2, rel=1e-2)
    assert Row(data, folded).speedup is None and Row(data, eager).speedup == 1


def test_eager_alone_is_not_timed_again(monkeypatch):
    def missing(context: BuildContext, dtype: torch.dtype) -> Any:
        raise UnavailableError("not implemented yet")

    for name in OUR_FORMS:
        stand_in(monkeypatch, name, missing)
    eager, *ours = measure_case(SMALL, "ours", BENCH)["candidates"]
    assert "timing" not in eager
    assert [form["name"] for form in ours] == ["triton", "native"]
    assert {(form["status"], form["reason"]) for form in ours} == {
        ("unavailable", "not implemented yet")
    }


@pytest.mark.parametrize("group", SWITCHED)
def test_switched_kernels_need_a_process_of_their_own(group, monkeypatch):
    context = BuildContext(torch.nn.Conv2d(3, 8, 3), CPU)
    build = FORMS[f"native-{group}"].build
    ((variable, value),) = SWITCHED[group].items()
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UnavailableError, match="was not started with"):
        build(context, torch.float32)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(candidates, "native", lambda context, dtype: context.module)
    assert build(context, torch.float32) is context.module
