"""Real sockets: clients that hang, hang up or send too much; load; the command itself."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import httpx
import pytest
from fastapi.testclient import TestClient
from serve.apps import (
    HEAD,
    PICTURE,
    REQUEST,
    Gate,
    build,
    connect,
    encoded,
    in_progress,
    listening,
    received,
    steady,
    street,
    wait_for,
)


def test_clients_that_hang_do_not_hold_the_server():
    with listening(timeout_s=1.0) as url:
        silent, half_head, half_body, deaf = (connect(url) for _ in range(4))
        half_head.sendall(HEAD)
        half_body.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        deaf.sendall(200 * b"GET /v1/example HTTP/1.1\r\nHost: x\r\n\r\n")
        assert httpx.get(f"{url}/healthz").status_code == 200  # others are served meanwhile
        answer = received(half_body)
        assert b"408 Request Timeout" in answer and b"after 1 s" in answer
        for each in (silent, half_head, deaf):
            each.close()
        wait_for(lambda: in_progress(url) == 0, 15)


def test_a_client_that_hangs_up_leaves_the_line():
    gate = Gate()
    app, engine = build(load=lambda choice: gate, batch=1)
    with listening(app) as url:
        first, second = connect(url), connect(url)
        first.sendall(REQUEST)
        assert gate.entered.acquire(timeout=5)
        second.sendall(REQUEST)
        wait_for(lambda: engine.waiting == 1)
        second.close()
        wait_for(lambda: engine.waiting == 0)
        gate.open.set()
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        assert len(gate.seen) == 1
        assert 'reason="gone"} 1.0' in httpx.get(f"{url}/metrics").text


def test_an_answer_is_not_held_back():
    with listening(load=steady) as url, httpx.Client(base_url=url) as client:
        seconds = []
        for _ in range(30):
            started = time.perf_counter()
            client.post("/v1/segment", files={"image": PICTURE}).raise_for_status()
            seconds.append(time.perf_counter() - started)
    # 0.01 of work; Nagle's algorithm adds 0.04, though not to a connection's first answers.
    assert min(seconds[15:]) < 0.035


def test_too_much_is_refused_before_all_of_it_came():
    with listening() as url:
        with connect(url) as lying:  # in pieces, without an end
            lying.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            piece = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
            for _ in range(4):
                lying.sendall(piece)
            assert lying.recv(1000).startswith(b"HTTP/1.1 413")
        with connect(url) as honest:  # by its Content-Length alone
            honest.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
            assert honest.recv(1000).startswith(b"HTTP/1.1 413")
        answer = httpx.post(f"{url}/v1/segment", files={"image": b"\0" * 8_000_000})
        assert answer.status_code == 413 and "limit of 200,000" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------ load


def outcomes(url, users, seconds):
    """How often each status came, with so many users who send without a pause."""

    async def user(client, found):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = await client.post("/v1/segment", files={"image": PICTURE})
            found[answer.status_code] += 1
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.02)

    async def everybody():
        found = Counter()
        limits = httpx.Limits(max_connections=users)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20) as client:
            await asyncio.gather(*(user(client, found) for _ in range(users)))
        return found

    return asyncio.run(everybody())


def test_under_load_within_the_limit_above_it_and_again_within():
    app, engine = build(load=steady, batch=1)
    with listening(app) as url:
        within = outcomes(url, 4, 1.5)
        assert set(within) == {200} and within[200] > 20
        above = outcomes(url, 24, 1.5)
        assert set(above) == {200, 429} and above[200] > 20
        again = outcomes(url, 4, 1.0)
        assert set(again) == {200} and again[200] > 10
        assert engine.waiting == 0 and engine.healthy and in_progress(url) == 0


# --------------------------------------------------------------------------------------- command


def fassd(*arguments):
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "fassd", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_serves_until_ctrl_c():
    with fassd("-m", "fassd_net_l2", "--port", 0, "--threads", 1, "--device", "cpu") as process:
        try:
            lines = iter(process.stderr.readline, "")
            url = next(m[1] for line in lines if (m := re.search(r"at (http://\S+)/ ", line)))
            assert url.startswith("http://127.0.0.1:")
            files = {"image": encoded(street())}
            answer = httpx.post(f"{url}/v1/segment?format=rle", files=files, timeout=30)
            assert answer.status_code == 200 and len(answer.json()["classes"]) > 3
            catalog = httpx.get(f"{url}/v1/models").json()
            assert catalog["backends"][:2] == ["auto", "reference"]
            assert catalog["limits"]["max_bytes"] == 16 * 1024**2
            for host, status in (("evil.example", 403), ("localhost:1", 200)):
                answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
                assert answer.status_code == status
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait(20) == 130
    assert "POST /v1/segment 200" in rest and "stopped" in rest and "Traceback" not in rest


def test_a_port_in_use_is_one_line_before_anything_is_loaded(monkeypatch, run_fassd):
    monkeypatch.setattr("fassd.cli.serve.build_segmenter", lambda *_: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_fassd("serve", "--port", port)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; "
        "--host and --port choose another address\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-m", "resnet"), "resnet"),
        (("-m", "fassd_net=absent.pth"), "absent.pth"),
        (("-m", "fassd_net", "-m", "fassd_net=cityscapes"), "fassd_net comes twice"),
        (("-m", "fassd_net_l2", "--backend", "magic"), "magic"),
        (("--host", "256.1.1.1"), "cannot listen on 256.1.1.1"),
        (("--queue", 0), "--queue"),
        (("--allow-host", "http://seg.example/"), "--allow-host takes a host's name or address"),
        (("--range", "9:3"), "range must be auto or LOW:HIGH"),
    ],
)
def test_mistakes_are_one_line(run_fassd, arguments, told):
    result = run_fassd("serve", "--port", 0, *arguments)
    assert result.exit_code == 2 and told in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ((), {"localhost": 200, "seg.example": 403, "10.0.0.1": 403}),
        (("--allow-host", "Seg.Example:443"), {"seg.example": 200, "evil.example": 403}),
        (("--host", "0.0.0.0"), {"localhost": 200, "seg.example": 200, "10.0.0.1": 200}),
        (
            ("--host", "0.0.0.0", "--allow-host", "seg.example", "--allow-host", "::2"),
            {"localhost": 200, "seg.example": 200, "[::2]:8000": 200, "evil.example": 403},
        ),
    ],
)
def test_hosts_are_served_and_strangers_warned_of(monkeypatch, run_fassd, options, hosts):
    found = {}

    class Server:
        def __init__(self, app):
            client = TestClient(app)
            for host in hosts:
                found[host] = client.get("/v1/models", headers={"Host": host}).status_code

        def run(self, sockets):
            assert sockets[0].getsockname()[1] > 0

    monkeypatch.setattr("fassd.serve.connection.make_server", Server)
    arguments = ("--port", 0, "-m", "fassd_net_l2=random", "--device", "cpu", *options)
    result = run_fassd("serve", *arguments)
    assert result.exit_code == 0 and found == hosts
    told = " ".join(result.stderr.split())
    assert "random weights" in told and "serving fassd_net_l2 at" in told
    for warning in (
        "0.0.0.0 may be reached from other machines",
        "neither password nor encryption",
    ):
        assert (warning in told) == ("0.0.0.0" in options)


def test_a_missing_package_is_named(monkeypatch, run_fassd):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    result = run_fassd("serve")
    assert result.exit_code == 2
    assert "fassd serve needs prometheus_client: pip install 'fassd-net[serve]'" in result.stderr
