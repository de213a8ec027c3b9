"""The line: bounded, in order, batched where that changes nothing; a stuck thread shows."""

import threading

import numpy as np
import pytest
from serve.apps import CHOICE, MODEL, Gate, encoded, load, post, serving, street, wait_for

from fassd.serve.engine import (
    BusyError,
    Choice,
    Engine,
    StoppingError,
    UnsuitableError,
    cached,
    label_pictures,
)


@pytest.fixture
def run():
    """``run(load, **settings)`` -> a started engine, stopped when the test ends."""
    engines = []

    def start(load, **settings):
        engine = Engine(cached(load), **settings)
        engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.stop()


def grey(level, size=(8, 8)):
    return np.full((*size, 3), level, np.uint8)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_what_single_pictures_give(backend, dtype):
    segmenter = load(Choice(MODEL, backend, dtype))
    pictures = [street(index=index) for index in range(3)]
    single = [segmenter.predict(picture) for picture in pictures]
    batch = label_pictures(segmenter, pictures)
    for one, other in zip(batch, single, strict=True):
        assert one.dtype == np.uint8
        # 16-bit sums may be taken in another order.
        assert (one == other).mean() >= (1 if dtype == "float32" else 0.999)


def test_too_small_is_told():
    segmenter = load(CHOICE)
    for count in (1, 2):
        with pytest.raises(UnsuitableError, match="at least"):
            label_pictures(segmenter, [grey(0)] * count)


def batches_of(run, pictures, **settings):
    """The results of pictures that wait while the first one's network is loaded, and the sizes of
    the batches that the network took."""
    batches, loading = [], threading.Event()
    engine = run(
        lambda choice: loading.wait(20) and load(choice),
        on_batch=lambda choice, n, seconds: batches.append(n),
        **settings,
    )
    futures = [engine.submit(CHOICE, pictures[0])]
    wait_for(lambda: not engine.waiting)
    futures += [engine.submit(CHOICE, picture) for picture in pictures[1:]]
    loading.set()
    return [future.result(20) for future in futures], batches


def test_what_waits_shares_a_batch(run):
    alike = [street(64, 64, index) for index in range(4)]
    pictures = [street(64, 64), *alike, street(64, 96), street(64, 64)]
    results, batches = batches_of(run, pictures, batch=3)
    assert batches == [1, 3, 2, 1]
    assert [result.batch for result in results] == [1, 3, 3, 3, 2, 1, 2]
    segmenter = load(CHOICE)
    for picture, result in zip(alike, results[1:5], strict=True):
        np.testing.assert_array_equal(result.labels, segmenter.predict(picture))


def test_a_batch_has_no_more_pixels_than_the_largest_picture(run):
    most = 2 * 64 * 64 + 1
    _, batches = batches_of(run, [street(64, 64)] * 6, batch=8, batch_pixels=most)
    assert batches == [1, 2, 2, 1]


def test_the_line_is_bounded_and_in_order(run):
    gate = Gate()
    engine = run(lambda choice: gate, queue=3, batch=1)
    futures = [engine.submit(CHOICE, grey(0))]
    assert gate.entered.acquire(timeout=5)  # at work, not in line
    futures += [engine.submit(CHOICE, grey(level)) for level in (1, 2, 3)]
    assert engine.full and engine.waiting == 3
    with pytest.raises(BusyError):
        engine.submit(CHOICE, grey(4))
    assert futures[1].cancel() and not engine.full
    futures.append(engine.submit(CHOICE, grey(5)))
    gate.open.set()
    for future in (*futures[:1], *futures[2:]):
        assert (future.result(5).labels == 7).all()
    assert gate.seen == [0, 2, 3, 5]


def test_stopping_refuses_those_in_line(run):
    gate = Gate()
    engine = run(lambda choice: gate)
    working = engine.submit(CHOICE, grey(0))
    assert gate.entered.acquire(timeout=5)
    waiting = engine.submit(CHOICE, grey(1))
    threading.Timer(0.1, gate.open.set).start()
    engine.stop()
    assert working.result(1).batch == 1
    with pytest.raises(StoppingError):
        waiting.result(1)
    with pytest.raises(StoppingError):
        engine.submit(CHOICE, grey(2))
    assert not engine.healthy


def test_networks_are_loaded_once_and_the_longest_unused_goes():
    loaded = []
    networks = cached(lambda choice: loaded.append(choice.model) or object(), keep=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        networks(Choice(name, "auto", "float32"))
        assert networks.cache_info().currsize <= 2
    assert loaded == ["a", "b", "c", "b"]


def test_over_the_limit_is_429_and_too_long_504(gated):
    client, engine, gate = gated
    picture = encoded(grey(1))
    answers = []

    def ask():
        answers.append(post(client, picture))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    assert gate.entered.acquire(timeout=5)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: engine.waiting == 2)
    refused = post(client, picture)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    for thread in threads:
        thread.join(10)
    assert [answer.status_code for answer in answers] == [504] * 3
    assert "no labels after 1.5 s" in answers[0].json()["detail"]
    assert engine.waiting == 0  # those that gave up left the line
    gate.open.set()
    assert post(client, picture).status_code == 200
    assert len(gate.seen) == 2  # the first, that was at work already, and the last
    metrics = client.get("/metrics").text
    assert 'fassd_rejected_total{reason="busy"} 1.0' in metrics
    assert 'fassd_rejected_total{reason="timeout"} 3.0' in metrics


def test_a_stuck_network_is_unhealthy():
    gate = Gate()
    with serving(load=lambda choice: gate, timeout_s=0.2, stuck=0.1) as (client, _):
        assert client.get("/healthz").json() == {"status": "ok"}
        assert post(client, encoded(grey(1))).status_code == 504
        answer = client.get("/healthz")
        assert answer.status_code == 503 and answer.json() == {"status": "stuck"}
        gate.open.set()
        wait_for(lambda: client.get("/healthz").status_code == 200)
