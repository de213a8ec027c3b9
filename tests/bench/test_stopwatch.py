import json
import math
import os
import signal
import time

import pytest
import torch

from fassd.bench import machine, memory, stopwatch
from fassd.bench import run as bench
from fassd.evaluation.agreement import Agreement, agreement_of_scores


def test_rounds_interleave_and_begin_with_another_candidate_each_time():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    ticks = []
    timings = stopwatch.compare(candidates, repeats=3, warmup=1, tick=lambda: ticks.append(1))
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]
    assert len(ticks) == 4
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_settling_calls_once_unmeasured_after_a_wait():
    calls = []
    candidates = {
        name: lambda name=name: calls.append((name, time.perf_counter())) for name in "ab"
    }
    timings = stopwatch.compare(candidates, repeats=2, warmup=1, settle=0.02)
    assert "".join(name for name, _ in calls) == "ba" + "aabb" + "bbaa"
    assert all(len(timing.seconds) == 2 for timing in timings.values())
    moments = [moment for _, moment in calls]
    assert all(moments[i] - moments[i - 1] >= 0.02 for i in range(2, 10, 2))


def test_measures_seconds():
    timing = stopwatch.compare({"nap": lambda: time.sleep(0.02)}, repeats=3, warmup=0)["nap"]
    assert 0.02 <= timing.minimum <= timing.median < 0.2


def test_statistics():
    timing = stopwatch.Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.median, timing.quartiles, timing.spread, timing.minimum) == (3, (2, 4), 1, 1)
    single = stopwatch.Timing((2.0,))
    assert (single.median, single.quartiles, single.spread) == (2, (2, 2), 0)


@pytest.mark.parametrize(
    ("candidates", "settings", "message"),
    [
        ({}, {}, "candidates is empty"),
        ({"a": int}, {"repeats": 0}, "repeats must be at least 1"),
        ({"a": int}, {"warmup": -1}, "warmup at least 0"),
    ],
)
def test_compare_names_what_is_wrong(candidates, settings, message):
    with pytest.raises(ValueError, match=message):
        stopwatch.compare(candidates, **settings)


def test_agreement_counts_labels_and_scales_the_difference():
    reference = torch.tensor([[4.0, -8.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    other = torch.tensor([[4.0, 2.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    found = agreement_of_scores(reference, other)
    assert found == Agreement(50.0, 10 / 8)
    assert not found.comparable
    assert agreement_of_scores(reference, reference.double()) == Agreement(100.0, 0.0)
    assert agreement_of_scores(0 * reference, 0 * reference).relative == 0
    with pytest.raises(ValueError, match="reference's shape"):
        agreement_of_scores(reference, other[..., :1])


def test_agreement_shows_non_finite_outputs():
    reference = torch.randn(1, 3, 4, 4)
    assert math.isnan(agreement_of_scores(reference, reference * math.nan).relative)


def allocating_call(mebibytes):
    """A call that needs so much memory; run by the measuring process."""
    return lambda: torch.ones(mebibytes * 2**18).sum()


def test_peak_memory_of_a_child(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__.rpartition("/")[0]))
    found = memory.peak_memory_of_child("test_stopwatch:allocating_call", {"mebibytes": 64})
    assert found.peak is not None, found.note
    assert 64 <= found.peak / 2**20 < 90


def test_a_failed_measurement_gives_the_reason_and_no_figure():
    found = memory.peak_memory_of_child("fassd.nowhere:call", {})
    assert found.peak is None
    assert "fassd.nowhere" in found.note


def test_a_measuring_process_that_dies_names_the_signal(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__.rpartition("/")[0]))
    found = memory.peak_memory_of_child("test_stopwatch:dying_call", {})
    assert (found.peak, found.note) == (None, "the measuring process was ended by SIGSEGV")


def dying_call():
    """A call that ends its process as a wrong address does."""
    return lambda: os.kill(os.getpid(), signal.SIGSEGV)


def test_environment_is_json_and_complete():
    record = json.loads(json.dumps(machine.environment()))
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["device"] and record["date"].endswith("Z")


# ------------------------------------------------------------------------------------------ bench

SMALL = bench.Job(model="fassd_net_l2", size=(64, 96), repeats=2, warmup=0, memory=False)


def replace(**changes):
    return bench.Job(**{**SMALL.__dict__, **changes})


def test_paths():
    assert list(SMALL.paths()) == ["PyTorch float32", "fassd_kernels float32"]
    assert list(replace(backend="reference", compile=True).paths()) == [
        "PyTorch float32",
        "torch.compile float32",
    ]
    assert list(replace(dtype="float16", device="cuda").paths()) == [
        "PyTorch float32",
        "PyTorch float16",
        "fassd_kernels float16",
    ]


def test_calibrated_random_weights_show_several_classes_and_are_reproducible():
    first, second = bench.run(SMALL), bench.run(SMALL)
    assert first.picture.shape == (64, 96, 3) and first.labels.shape == (64, 96)
    assert (first.labels == second.labels).all()
    shares = torch.bincount(torch.from_numpy(first.labels).flatten(), minlength=19) / (64 * 96)
    assert shares.max() < 0.9 and (shares > 0.01).sum() >= 3


def test_report_of_agreeing_paths():
    report = bench.run(SMALL)
    assert report.labels_agree > 99.9
    assert report.rows[0].speedup == 1
    record = json.loads(json.dumps(report.to_json()))
    assert record["job"]["size"] == [64, 96]
    assert record["results"][1]["n"] == 2
    assert record["results"][1]["speedup"] > 0
    assert any("random weights" in note for note in record["notes"])


def test_no_speedup_where_outputs_disagree(monkeypatch):
    def broken(model, backend="auto", dtype=None):
        return model if backend == "reference" else torch.nn.Sequential(model, Negative())

    class Negative(torch.nn.Module):
        def forward(self, x):
            return -x

    monkeypatch.setattr(bench, "accelerated", broken)
    report = bench.run(SMALL)
    assert report.rows[1].speedup is None
    assert report.labels_agree < 99
    assert any("no speed-up is given" in note for note in report.notes)
    assert report.to_json()["results"][1]["speedup"] is None


def test_calibrate_leaves_momentum_and_gives_eval_mode():
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(2, momentum=0.3))
    batch = torch.randn(2, 2, 8, 8) * 3 + 5
    assert bench.calibrate(layer, batch) is layer
    assert layer[0].momentum == 0.3 and not layer.training
    torch.testing.assert_close(layer[0].running_mean, batch.mean((0, 2, 3)))
    torch.testing.assert_close(layer[0].running_var, batch.var((0, 2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fassd"}, "unknown model 'fassd'"),
        ({"dtype": "int8"}, "dtype must be float32, float16 or bfloat16, got 'int8'"),
        ({"size": (16, 96)}, "at least"),
    ],
)
def test_bench_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        bench.run(replace(**changes))
