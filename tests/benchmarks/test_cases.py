"""What the GPU report's cases are measured with: forms of a subject, failures, timing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fassd
from benchmarks.rows import speedup
from fassd.bench import cases
from fassd.bench import forms as peers
from fassd.bench.cases import Bench, compare, measure_case, relative_error
from fassd.bench.forms import (
    SWITCHED,
    Candidate,
    Form,
    UnavailableError,
    cudnn_relus,
    fold_batch_norms,
    native,
    randomised,
)
from fassd.bench.subjects import MODULES, Case
from fassd.bench.timing import Sampling

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


# --- peers ----------------------------------------------------------------------------------------


def unfolded(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.mark.parametrize("name", fassd.list_models())
def test_folding_a_network_keeps_its_function(name):
    model = randomised(fassd.create_model(name))
    folded = fold_batch_norms(model)
    # Of each MDA, the batch norms before the 3x3 and after the sum.
    assert unfolded(folded) == 2 * sum(isinstance(m, fassd.models.MDA) for m in model.modules())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_folding_a_module_keeps_its_function(name):
    place = MODULES[name]
    module = randomised(place.build())
    folded = fold_batch_norms(module)
    x = torch.randn(1, place.channels, 8, 8)
    with torch.no_grad():
        assert relative_error(folded(x), module(x)) < 1e-5
    assert unfolded(module) > unfolded(folded) == (2 if name.startswith("MDA") else 0)


def test_random_weights_are_the_same_every_time():
    one, two = (randomised(fassd.models.DAPF(8)).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["bn1.running_var"], torch.ones(8))


def test_a_form_that_is_not_there_says_why():
    module = randomised(fassd.models.DAPF(8))
    missing = Form(module, torch.float32, torch.device("meta"))
    with pytest.raises(UnavailableError, match="no backend meta"):
        native(missing)
    with pytest.raises(UnavailableError, match="needs a CUDA device"):
        cudnn_relus(missing)


def test_cudnn_benchmark_is_on_only_inside():
    before = torch.backends.cudnn.benchmark
    with Candidate("eager", lambda x: x, cudnn_benchmark=True).settings():
        assert torch.backends.cudnn.benchmark and not torch.is_grad_enabled()
    assert torch.backends.cudnn.benchmark is before


SMALL = Case("modules", "MDA(63, 2)", 64, 64, "float32")
BENCH = Bench(CPU, Sampling(rounds=2, sample_ms=0.1), compiler="aot_eager")


def test_a_candidate_that_fails_leaves_the_others(monkeypatch):
    def broken(form: Form) -> Candidate:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel\nfor this")

        return Candidate("channels_last", call)

    monkeypatch.setitem(peers.BUILDERS, "channels_last", broken)
    eager, folded, _ = measure_case(SMALL, "library", BENCH)["candidates"]
    assert eager["match"] and eager["timing"]["n"] == 2
    assert (folded["status"], folded["reason"]) == ("failed", "RuntimeError: no kernel")
    monkeypatch.setitem(peers.BUILDERS, "eager", broken)
    records = measure_case(SMALL, "library", BENCH)["candidates"]
    assert [record["status"] for record in records] == ["failed", "failed", "unavailable"]


def test_a_wrong_candidate_does_not_match(monkeypatch):
    def wrong(form: Form) -> Candidate:
        return Candidate("channels_last", lambda x: form.module(x) * 1.01)

    monkeypatch.setitem(peers.BUILDERS, "channels_last", wrong)
    eager, folded, _ = measure_case(SMALL, "library", BENCH)["candidates"]
    assert eager["match"] and not folded["match"]
    assert folded["rel_error"] == pytest.approx(1e-2, rel=1e-2)
    assert speedup(folded, eager) is None


def test_out_of_memory_together_is_measured_one_by_one(monkeypatch):
    together = cases.measure_together

    def scarce(candidates: dict[str, Candidate], *rest: Any) -> None:
        if len(candidates) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        together(candidates, *rest)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(cases, "measure_together", scarce)
    data = measure_case(SMALL, "library", BENCH)
    assert data["interleaved"] is False
    assert [record.get("match") for record in data["candidates"]] == [True, True, None]


def test_eager_alone_is_not_timed_again(monkeypatch):
    def missing(form: Form) -> Candidate:
        raise UnavailableError("not implemented yet")

    for name in peers.OURS:
        monkeypatch.setitem(peers.BUILDERS, name, missing)
    eager, *ours = measure_case(SMALL, "ours", BENCH)["candidates"]
    assert "timing" not in eager
    assert [form["name"] for form in ours] == ["triton", "triton-graph", "native"]
    assert {(form["status"], form["reason"]) for form in ours} == {
        ("unavailable", "not implemented yet")
    }


@pytest.mark.parametrize("group", SWITCHED)
def test_switched_kernels_need_a_process_of_their_own(group, monkeypatch):
    form = Form(randomised(torch.nn.Conv2d(3, 8, 3)), torch.float32, CPU)
    name = f"native-{group}"
    ((variable, value),) = SWITCHED[group].items()
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UnavailableError, match="was not started with"):
        peers.BUILDERS[name](form)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(peers, "native", lambda form: peers.Candidate("native", form.module))
    assert peers.BUILDERS[name](form).name == name
