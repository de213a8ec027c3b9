"""`fassd serve`: networks behind HTTP, and a page to watch them work."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from fassd.cli.common import (
    DTYPES,
    Alpha,
    Backend,
    Device,
    Dtype,
    Threads,
    app,
    escape,
    pick_weights,
    say,
    set_threads,
    tell_weights,
)
from fassd.cli.predict import build_segmenter

if TYPE_CHECKING:
    from fassd.predict import Segmenter
    from fassd.serve.engine import Choice, Networks
    from fassd.serve.schemas import Catalog, Limits

SERVED = ["fassd_net", "fassd_net_l2"]
LOOPBACK = r"localhost|127\.\d+\.\d+\.\d+|::1"


@app.command()
def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback: anybody.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=WEIGHTS]",
            help="A network to offer, may be repeated, the first is the default; WEIGHTS as "
            f"--weights of [cyan]fassd predict[/]. Default: {', '.join(SERVED)}.",
        ),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=1, max=256, help="Classes.")] = 19,
    alpha: Alpha = 2,
    backend: Backend = "auto",
    dtype: Dtype = "float32",
    device: Device = None,
    threads: Threads = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1024, help="Of an upload.")] = 16
    * 1024**2,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=4096, help="Of a picture, and of a batch.")
    ] = 8_400_000,
    queue: Annotated[
        int, typer.Option("--queue", min=1, max=1024, help="Pictures that may wait.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds, for upload and answer.")
    ] = 30,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=64, help="Pictures that a network takes at once.")
    ] = 4,
    batch_wait: Annotated[
        float,
        typer.Option("--batch-wait", min=0, max=1000, help="Milliseconds to wait for a batch."),
    ] = 0,
) -> None:
    """Serve a live page, and labels over HTTP.

    The page takes a picture, a video or the webcam, and shows classes, latency and frames a second
    of plain PyTorch beside fused kernels. It works offline: nothing is loaded from elsewhere.

    [cyan]POST /v1/segment[/] answers a picture with its labels, as PNG or run lengths;
    [cyan]/v1/models[/] tells what can be chosen, [cyan]/openapi.json[/] all of the interface;
    [cyan]/healthz[/] and [cyan]/metrics[/] (Prometheus) are for operators. Nothing is kept, and
    nothing goes to the disk. There are no passwords: mind who reaches --host.

    Pictures that come while the network is busy share a batch; --batch-wait waits for more, if
    others are being read at the time. Above --queue the answer is 429. Exit code: 130 after
    Ctrl-C, 2 if the server cannot start.

    Needs [cyan]pip install 'fassd-net\\[serve]'[/].

    [bold]Examples[/]

    [cyan]fassd serve[/]

    [cyan]fassd serve -m fassd_net=cityscapes -m fassd_net_l2=runs/best.safetensors --port 9000[/]

    [cyan]curl -F image=@street.jpg '127.0.0.1:8000/v1/segment?format=rle'[/]
    """
    from fassd.serve import check_installed

    check_installed()
    # Threads of the network that spin between pictures keep a core from reading and writing them:
    # 42 pictures a second where it was 34 (L2, 512x1024, 8 clients, two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fassd.serve.app import create_app
    from fassd.serve.connection import listen, make_server
    from fassd.serve.engine import Choice, Engine, Networks
    from fassd.serve.metrics import Metrics
    from fassd.serve.schemas import Limits

    weights = _weights(model or SERVED, classes, alpha)
    limits = Limits(
        max_bytes=max_bytes, max_pixels=max_pixels, queue=queue, batch=batch, timeout_s=timeout
    )
    with listen(host, port) as socket:
        set_threads(threads)

        def load(choice: Choice) -> Segmenter:
            name, backend, dtype = choice
            size = None
            return build_segmenter(
                name, weights[name], classes, alpha, backend, dtype, device, size
            )

        networks = Networks(load)
        choices = [Choice(name, backend, dtype) for name in weights]
        for choice in choices:
            _try_out(networks, choice)
        catalog = _catalog(weights, choices[0], classes, device, limits)
        metrics = Metrics()
        engine = Engine(
            networks,
            queue=queue,
            batch=batch,
            batch_pixels=max_pixels,
            batch_wait=batch_wait / 1000,
            stuck=max(60, 2 * timeout),
            on_batch=metrics.count_batch,
        )
        _log_to_stderr()
        _tell(weights, host, socket.getsockname()[1])
        make_server(create_app(catalog, engine, metrics), timeout).run(sockets=[socket])


def _weights(models: list[str], classes: int, alpha: int) -> dict[str, str | None]:
    """Read NAME and NAME=WEIGHTS."""
    from fassd.models.zoo import get_variant

    found: dict[str, str | None] = {}
    for model in models:
        name, _, weights = model.partition("=")
        get_variant(name)  # an unknown one is an error
        if name in found:
            raise ValueError(f"--model: {name} comes twice; each name can be offered once")
        found[name] = pick_weights(weights or None, name, classes, alpha)
    return found


def _try_out(networks: Networks, choice: Choice) -> None:
    """Load a network and label a small picture: what cannot work shows before the server is up."""
    import numpy as np

    from fassd.serve.engine import UnsuitableError

    try:
        networks.get(choice).predict(np.zeros((128, 128, 3), np.uint8))
    except UnsuitableError as error:
        raise error.__cause__ or error from None


def _catalog(
    weights: dict[str, str | None],
    default: Choice,
    classes: int,
    device: str | None,
    limits: Limits,
) -> Catalog:
    from fassd.models.zoo import get_variant
    from fassd.serve.schemas import Catalog, Defaults, ModelInfo, class_table
    from fassd.serve.upload import formats

    words = {None: "random", "synthetic": "synthetic", "cityscapes": "cityscapes"}
    return Catalog(
        models=[
            ModelInfo(name=name, title=get_variant(name).title, weights=words.get(path, "own"))
            for name, path in weights.items()
        ],
        backends=_backends(device, default.backend),
        dtypes=list(DTYPES),
        defaults=Defaults(**default._asdict()),
        classes=class_table(classes),
        formats=list(formats()),
        limits=limits,
    )


def _backends(device: str | None, default: str) -> list[str]:
    """What can be chosen on this device: plain PyTorch, and what there is of fused kernels."""
    from fassd.predict import pick_device

    names = ["auto", "reference", default]
    try:
        import fassd_kernels
    except ImportError:  # then "auto" is plain PyTorch, and says so when it is loaded
        pass
    else:
        kind = pick_device(device).type
        names += [b.name for b in fassd_kernels.backends() if b.takes(kind) and b.available]
    return list(dict.fromkeys(names))


def _log_to_stderr() -> None:
    """One line per request, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("fassd.serve")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _tell(weights: dict[str, str | None], host: str, port: int) -> None:
    for path in dict.fromkeys(weights.values()):
        tell_weights(path)
    if not re.fullmatch(LOOPBACK, host):
        say(
            f"[yellow]{escape(host)} may be reached from other machines: there is neither "
            "password nor encryption[/]"
        )
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {', '.join(weights)} at {escape(f'http://{shown}:{port}/')} (Ctrl-C stops)")
