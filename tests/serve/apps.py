"""Applications with small limits, servers of them, pictures, segmenters whose pace a test sets."""

import contextlib
import io
import threading
import time

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image

from fassd.inference.segmenter import Segmenter
from fassd.serve.app import create_app
from fassd.serve.connection import listen, make_server
from fassd.serve.engine import Choice, Engine, Networks
from fassd.serve.metrics import Metrics
from fassd.serve.schemas import Catalog, Defaults, Limits, ModelInfo, class_table
from fassd.serve.upload import formats
from fassd.synth import render_street

MODEL = "fassd_net_l2"
CHOICE = Choice(MODEL, "auto", "float32")


def load(choice):
    return Segmenter(
        choice.model,
        weights="synthetic",
        backend=choice.backend,
        dtype=getattr(torch, choice.dtype),
        device="cpu",
    )


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
    """An application, its engine and its metrics."""
    hosts = settings.pop("hosts", None)
    limits = {
        "max_bytes": 200_000,
        "max_pixels": 128 * 160,
        "queue": 4,
        "batch": 4,
        "timeout_s": 20.0,
    } | {name: settings.pop(name) for name in list(settings) if name in Limits.model_fields}
    models = [ModelInfo(name=MODEL, title="FASSD-Net-L2", weights="synthetic")]
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
        Networks(load),
        queue=limits["queue"],
        batch=limits["batch"],
        on_batch=metrics.count_batch,
        **settings,
    )
    return create_app(catalog, engine, metrics, hosts), engine, metrics


@contextlib.contextmanager
def serving(**settings):
    """A client of an application with these limits, and its engine."""
    app, engine, _ = build(**settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, engine


@contextlib.contextmanager
def listening(app, patience=20.0):
    """The address of a server on a real socket."""
    with listen("127.0.0.1", 0) as socket:
        server = make_server(app, patience)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def street(height=96, width=160, index=0):
    return render_street(height, width, 3, split="test", index=index)[0]


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def post(client, data, name="image", **query):
    return client.post("/v1/segment", files={name: ("x", data)}, params=query)
