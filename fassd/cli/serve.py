"""`fassd serve`: networks behind HTTP, and a page to watch them work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fassd.cli import options
from fassd.cli.common import (
    Network,
    app,
    pick_network,
    set_threads,
    split_model,
    tell_weights,
    weights_of,
)
from fassd.cli.options import DTYPES
from fassd.cli.predict import build_segmenter
from fassd.cli.terminal import escape, say

if TYPE_CHECKING:
    from fassd.serve.engine import Choice
    from fassd.serve.schemas import Catalog, Limits, ModelInfo

SERVED = ["fassd_net", "fassd_net_l2"]

AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Another name under which clients may ask for the server, such as that of a proxy "
        "in front of it; may be repeated. A server on a loopback --host answers to localhost and "
        "loopback addresses otherwise; one on another --host to any name, unless this is given.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME[=WEIGHTS]",
        help="Network to offer; may be repeated, the first is the default. WEIGHTS is what "
        "--weights of [cyan]fassd predict[/] takes; a file of [cyan]fassd train[/] or "
        f"[cyan]fassd export[/] needs no NAME=. Default: {', '.join(SERVED)}, or that of "
        "--weights.",
    ),
]
ServedClasses = Annotated[int | None, options.classes_option(256)]
Range = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW:HIGH", help="The same as --range of [cyan]fassd predict[/]."
    ),
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address to listen on. Anything but a loopback address lets other machines in.",
    ),
]


@app.command()
def serve(
    host: Host = "127.0.0.1",
    allow_host: AllowedHosts = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", "-p", min=0, max=65535, metavar="N", help="Port; 0 picks a free one."
        ),
    ] = 8000,
    model: Models = None,
    weights: options.Weights = None,
    classes: ServedClasses = None,
    alpha: options.Alpha = None,
    encoder_name: options.EncoderName = None,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    threads: options.Threads = None,
    max_bytes: Annotated[
        int, typer.Option(min=1024, metavar="N", help="Largest upload, in bytes.")
    ] = 16 * 1024**2,
    max_pixels: Annotated[
        int,
        typer.Option(min=4096, metavar="N", help="Largest picture, and largest batch, in pixels."),
    ] = 8_400_000,
    range_: Range = None,
    queue: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Pictures that may wait.")
    ] = 16,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, metavar="SECONDS", help="Time for an upload, and for its answer."
        ),
    ] = 30,
    batch: Annotated[
        int,
        typer.Option(min=1, max=64, metavar="N", help="Pictures that a network takes at once."),
    ] = 4,
) -> None:
    """Serve a live page, and labels over HTTP.

    The page takes a picture, a video or the webcam, and shows classes, latency and frames per
    second, with plain PyTorch beside the fused kernels. It works offline: nothing is loaded from
    elsewhere.

    [cyan]POST /v1/segment[/] answers a picture with its labels, as PNG or run lengths;
    [cyan]/v1/models[/] lists what can be chosen, [cyan]/openapi.json[/] describes the interface;
    [cyan]/healthz[/] and [cyan]/metrics[/] (Prometheus) are for operators. Nothing is kept or
    written to disk. There are no passwords: mind who can reach --host. Pages of other sites are
    refused, and no single address can take all places.

    Pictures that come while the network is busy share a batch. When --queue is full, the answer is
    429. Exit code: 130 after Ctrl-C, 2 if the server cannot start.

    Needs [cyan]pip install 'fassd-net\\[serve]'[/].

    [bold]Examples[/]

    [cyan]fassd serve[/]

    [cyan]fassd serve -w runs/plants/best.safetensors[/]

    [cyan]fassd serve -m fassd_net=cityscapes -m runs/best.safetensors --port 9000[/]

    [cyan]curl -F image=@street.jpg '127.0.0.1:8000/v1/segment?format=rle'[/]
    """
    from fassd.serve import check_installed

    check_installed()
    from fassd.io.levels import as_range
    from fassd.serve.app import create_app
    from fassd.serve.connection import listen, make_server
    from fassd.serve.engine import Choice, Engine, cached
    from fassd.serve.guard import is_loopback
    from fassd.serve.metrics import Metrics
    from fassd.serve.schemas import Limits

    as_range(range_)
    offered = _offered(model, weights, classes, alpha, encoder_name)
    names = [_host_name(name) for name in allow_host or ()]
    limits = Limits(
        max_bytes=max_bytes, max_pixels=max_pixels, queue=queue, batch=batch, timeout_s=timeout
    )
    with listen(host, port) as socket:
        set_threads(threads)
        networks = cached(lambda of: build_segmenter(offered[of.model], *of[1:], device))
        choices = [Choice(name, backend, dtype) for name in offered]
        models = [_try_out(networks, choice, offered[choice.model]) for choice in choices]
        catalog = _catalog(models, choices[0], device, limits)
        catalog.range = range_
        metrics = Metrics()
        engine = Engine(
            networks,
            queue=queue,
            batch=batch,
            batch_pixels=max_pixels,
            stuck=max(60, 2 * timeout),
            on_batch=metrics.count_batch,
        )
        _log_to_stderr()
        address, number = socket.getsockname()[:2]
        local = is_loopback(address)
        _tell(models, host, number, local)
        hosts = {*names, host.lower()} if local or names else None
        make_server(create_app(catalog, engine, metrics, hosts)).run(sockets=[socket])


def _host_name(text: str) -> str:
    from fassd.serve.guard import host_name

    name = host_name(f"[{text}]" if text.count(":") > 1 and "[" not in text else text)
    if name is None:
        raise typer.BadParameter(f"--allow-host takes a host's name or address, got {text!r}")
    return name


def _offered(
    models: list[str] | None,
    weights: str | None,
    classes: int | None,
    alpha: int | None,
    encoder_name: str | None = None,
) -> dict[str, Network]:
    """The networks of --model and --weights, by the name under which they are offered."""
    from fassd.export import is_exported
    from fassd.models.variants import get_variant

    found: dict[str, Network] = {}
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if models or (weights is None and encoder_name is None):
        pairs = [split_model(model) for model in models or SERVED]
    for name, own in pairs:
        chosen = pick_network(name, own or weights, classes, alpha, encoder_name)
        if is_exported(chosen.model):
            name = Path(chosen.model).stem
        else:
            get_variant(chosen.model)  # an unknown one is an error
            name = chosen.model
        if name in found:
            raise ValueError(f"--model: {name} comes twice; each name can be offered once")
        found[name] = chosen
    return found


def _try_out(networks: Any, choice: Choice, network: Network) -> ModelInfo:
    """Load a network and label a small picture, to find errors before the server starts."""
    import numpy as np

    from fassd.export import is_exported
    from fassd.models import get_variant
    from fassd.serve.engine import UnsuitableError
    from fassd.serve.schemas import ModelInfo, class_table

    try:
        segmenter = networks(choice)
        segmenter.predict(np.zeros((128, 128, segmenter.bands or 3), np.uint8))
    except UnsuitableError as error:
        raise error.__cause__ or error from None
    words = {name: name or "random" for name in (None, "streets", "synthetic", "cityscapes")}
    exported = is_exported(network.model)
    return ModelInfo(
        name=choice.model,
        title=Path(network.model).name if exported else get_variant(network.model).title,
        weights=words.get(weights_of(network.weights, segmenter.model), "own"),
        classes=class_table(segmenter.classes),
        bands=segmenter.bands,
    )


def _catalog(
    models: list[ModelInfo], default: Choice, device: str | None, limits: Limits
) -> Catalog:
    from fassd.serve.schemas import Catalog, Defaults
    from fassd.serve.upload import formats

    classes = models[0].classes
    for info in models:
        info.classes = None if info.classes == classes else info.classes
    return Catalog(
        models=models,
        backends=_backends(device, default.backend),
        dtypes=list(DTYPES),
        defaults=Defaults(**default._asdict()),
        classes=classes or [],
        formats=list(formats()),
        limits=limits,
    )


def _backends(device: str | None, default: str) -> list[str]:
    """Available backends on this device: plain PyTorch, and fused kernels if there are any."""
    import fassd_kernels
    from fassd.models.device import pick_device

    kind = pick_device(device).type
    kernels = [b.name for b in fassd_kernels.backends() if b.takes(kind) and b.available]
    return list(dict.fromkeys(["auto", "reference", default, *kernels]))


def _log_to_stderr() -> None:
    """One line per request, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("fassd.serve")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _tell(models: list[ModelInfo], host: str, port: int, local: bool) -> None:
    for word in dict.fromkeys(info.weights for info in models):
        tell_weights(None if word == "random" else word)
    if not local:
        say(
            f"[yellow]{escape(host)} may be reached from other machines: there is neither "
            "password nor encryption[/]"
        )
    names = escape(", ".join(info.name for info in models))
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {names} at {escape(f'http://{shown}:{port}/')} (Ctrl-C stops)")
