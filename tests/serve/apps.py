"""Applications with small limits, servers of them, pictures, segmenters whose pace a test sets."""

import contextlib
import functools
import io
import re
import socket
import threading
import time

import httpx
import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image

from fassd.inference.segmenter import Segmenter
from fassd.io.palette import LabelClass
from fassd.serve.app import create_app
from fassd.serve.connection import listen, make_server
from fassd.serve.engine import Choice, Engine, cached
from fassd.serve.metrics import Metrics
from fassd.serve.schemas import Catalog, Defaults, Limits, ModelInfo, class_table
from fassd.serve.upload import formats
from fassd.synth import render_street

MODEL = "fassd_net_l2"
CHOICE = Choice(MODEL, "auto", "float32")


PLANTS = ModelInfo(
    name="plants",
    title="Plants",
    weights="own",
    classes=class_table([LabelClass(f"plant {i}", (i, 200, 3)) for i in range(19)]),
)
"""Another network than `MODEL`, of classes of its own."""


def load(choice):
    return Segmenter(
        MODEL,  # which stands for `PLANTS`, too
        weights="streets",
        backend=choice.backend,
        dtype=getattr(torch, choice.dtype),
        device="cpu",
    )


class Steady:
    """A segmenter that labels a picture in 10 ms."""

    def predict(self, picture):
        time.sleep(0.01)
        return np.zeros(picture.shape[:2], np.uint8)


def steady(choice):
    return Steady()


class Gate:
    """A segmenter that labels everything 7, but not before its gate is open."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.seen = []

    def predict(self, picture):
        self.entered.release()
        assert self.open.wait(20)
        self.seen.append(int(picture[0, 0, 0]))
        return np.full(picture.shape[:2], 7, np.uint8)


def build(load=load, **settings):
    """An application and its engine."""
    hosts = settings.pop("hosts", None)
    limits = {
        "max_bytes": 200_000,
        "max_pixels": 128 * 160,
        "queue": 4,
        "batch": 4,
        "timeout_s": 20.0,
    } | {name: settings.pop(name) for name in list(settings) if name in Limits.model_fields}
    models = [ModelInfo(name=MODEL, title="FASSD-Net-L2", weights="streets")]
    catalog = Catalog(
        models=models + settings.pop("others", []),
        backends=["auto", "reference"],
        dtypes=["float32", "bfloat16"],
        defaults=Defaults(**CHOICE._asdict()),
        classes=class_table(19),
        formats=list(formats()),
        range=settings.pop("range", None),
        limits=Limits(**limits),
    )
    metrics = Metrics()
    engine = Engine(
        cached(load),
        queue=limits["queue"],
        batch=limits["batch"],
        on_batch=metrics.count_batch,
        **settings,
    )
    return create_app(catalog, engine, metrics, hosts), engine


@contextlib.contextmanager
def serving(**settings):
    """A client of an application with these limits, and its engine."""
    app, engine = build(**settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, engine


@contextlib.contextmanager
def listening(app=None, **settings):
    """The address of a server on a real socket, of an application or of one with settings."""
    app = app or build(**settings)[0]
    with listen("127.0.0.1", 0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@functools.cache
def street(height=96, width=160, index=0):
    return render_street(height, width, 3, split="test", index=index)[0]


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = encoded(np.zeros((8, 8, 3), np.uint8))
HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(PICTURE), PICTURE)


def connect(url, address="127.0.0.1"):
    """A connection to a server, from an address of this machine."""
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0))


@contextlib.contextmanager
def connections(url, count, sent, address="127.0.0.1"):
    """So many connections from an address, with the same bytes sent on each."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(connect(url, address)) for _ in range(count)]
        for each in found:
            each.sendall(sent)
        yield found


def received(connection):
    """All that comes until the other side hangs up."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def in_progress(url):
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(r"^fassd_requests_in_progress (\S+)", text, re.M)[1]) - 1  # this one


def wait_for(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(client, data, name="image", **query):
    return client.post("/v1/segment", files={name: ("x", data)}, params=query)
