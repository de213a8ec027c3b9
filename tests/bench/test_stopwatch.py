import json
import math
import os
import signal
import time

import pytest
import torch

from fassd.bench import machine, memory, stopwatch
from fassd.evaluation.agreement import Agreement, agreement_of
from fassd.models import clock


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


def test_short_calls_are_repeated_in_turns():
    calls = []
    runs = {
        name: stopwatch.Run(lambda name=name: calls.append(name), 2, "clock", list) for name in "ab"
    }
    sampling = clock.Sampling(rounds=4, sample_ms=0.0)
    timings = stopwatch.interleaved(runs, torch.device("cpu"), sampling)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 4, "b": 4}
    assert (timings["a"].calls, timings["a"].sets) == (2, 2)
    # Each sample: one call that is not timed, one that is. First the two estimates.
    assert "".join(calls[::2]) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_input_sets_exceed_the_cache():
    mib = 1 << 20
    assert clock.rotation(2 * mib, 50 * mib) * 2 * mib > 50 * mib
    assert clock.rotation(500 * mib, 50 * mib) == 2
    assert clock.rotation(1, 50 * mib) == 512 > clock.rotation(1, 50 * mib, most=64) == 64


def test_outputs_outlive_the_next_call():
    """A runner may give out the same memory again."""
    given = torch.empty(3)
    sets = [(torch.full((3,), value),) for value in (1.0, 2.0)]
    first, last = stopwatch.plain_run(lambda x: given.copy_(x), sets, "clock").outputs()
    assert first.tolist() == [1.0] * 3 and last.tolist() == [2.0] * 3


def test_measures_seconds():
    timing = stopwatch.compare({"nap": lambda: time.sleep(0.02)}, repeats=3, warmup=0)["nap"]
    assert 0.02 <= timing.minimum <= timing.median < 0.2


def test_statistics():
    timing = stopwatch.CallTimes((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.median, timing.quartiles, timing.spread, timing.minimum) == (3, (2, 4), 1, 1)
    assert timing.to_json()["quartiles_s"] == (2, 4) and timing.to_json()["n"] == 5
    single = stopwatch.CallTimes((2.0,))
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
    found = agreement_of(reference, other)
    assert found == Agreement(50.0, 10 / 8)
    assert not found.comparable()
    assert agreement_of(reference, reference.double()) == Agreement(100.0, 0.0)
    assert agreement_of(0 * reference, 0 * reference).relative == 0
    with pytest.raises(ValueError, match="reference's shape"):
        agreement_of(reference, other[..., :1])


def test_agreement_shows_non_finite_outputs():
    reference = torch.randn(1, 3, 4, 4)
    assert math.isnan(agreement_of(reference, reference * math.nan).relative)


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
