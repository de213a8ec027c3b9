"""The HTTP interface: labels of a picture, available choices, health, metrics, the page.

Annotations are evaluated here, as FastAPI reads them: no `from __future__ import annotations`.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import Future
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

import fassd
from fassd.io.levels import as_range
from fassd.io.untrusted import complaint
from fassd.models.sizes import parse_size
from fassd.serve.encode import certainties, run_lengths, shares, to_png
from fassd.serve.engine import (
    BusyError,
    Choice,
    Engine,
    LabelledPicture,
    StoppingError,
    UnsuitableError,
)
from fassd.serve.example import EXAMPLES, street
from fassd.serve.guard import HEALTH, Guard, Shares, address_of, share
from fassd.serve.metrics import Metrics
from fassd.serve.observe import Observer
from fassd.serve.page import add_page
from fassd.serve.schemas import Catalog, ClassInfo, Failure, Health, Segmentation, options_model
from fassd.serve.upload import RefusedError, decode, read_upload

REQUESTS = 256
"""Maximum simultaneous requests, not counting those for health; more are answered 429."""

UPLOADS = 32
"""Maximum pictures read and decoded at a time; more are answered 429. Limits the memory."""

DECODERS = 2
"""Number of threads that decode and encode pictures: the cores belong to the network."""

PROBLEMS = 8
"""Maximum number of wrong parameters named in an answer."""

CLIENT_GONE = 499
"""Status for the log only: the client hung up."""

PICTURE = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": PICTURE},
                    "additionalProperties": False,
                },
                "encoding": {"image": {"contentType": "image/*"}},
            },
            "image/*": {"schema": PICTURE},
        },
    }
}
FAILURES = {
    400: "No picture, or a damaged one.",
    403: "From a page of another site, or to a host that is not served.",
    408: "The upload took too long.",
    413: "Too many bytes or pixels.",
    415: "Another type of body, or of picture.",
    422: "A choice that is not offered, or does not fit the picture.",
    429: "The line is full; the header Retry-After says when to come again.",
    500: "An internal error.",
    503: "The server is stopping.",
    504: "No labels within the time.",
}


def create_app(
    catalog: Catalog, engine: Engine, metrics: Metrics, hosts: Collection[str] | None = None
) -> FastAPI:
    """The application.

    Args:
        catalog: available choices, and the limits.
        engine: engine that labels the pictures; started and stopped with the application.
        metrics: counters; their `count_batch` is the engine's `on_batch`.
        hosts: names for `Guard`; None for any.
    """
    metrics.watch(engine)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await anyio.to_thread.run_sync(engine.stop)

    app = FastAPI(
        title="fassd serve",
        description="Real-time semantic segmentation with the FASSD-Net family.",
        version=fassd.__version__,
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, hosts=hosts, places=REQUESTS)
    app.add_middleware(Observer, metrics=metrics)
    _tell_failures(app, catalog, engine, metrics)
    _add_status(app, catalog, engine, metrics)
    _add_segment(app, catalog, _RequestHandler(catalog, engine, metrics))
    add_page(app)
    return app


def _add_status(app: FastAPI, catalog: Catalog, engine: Engine, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def models() -> Catalog:
        """What can be asked for: networks, backends, precisions, classes, limits."""
        return catalog

    @app.get(HEALTH, responses={503: {"model": Health}})
    async def healthz() -> JSONResponse:
        """200 while pictures are labelled; 503 when the network's thread is stuck or dead."""
        if engine.healthy:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stuck"}, status_code=503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters and histograms in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    drawing = asyncio.Lock()

    @app.get(
        "/v1/example",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 422: {"model": Failure}},
    )
    async def example(scene: Annotated[int, Query(ge=0, lt=EXAMPLES)] = 0) -> Response:
        """A generated street, 512x1024, of textures that no training sees."""
        async with drawing:
            return Response(await anyio.to_thread.run_sync(street, scene), media_type="image/jpeg")


def _add_segment(app: FastAPI, catalog: Catalog, handler: "_RequestHandler") -> None:
    options_type = options_model(catalog)

    @app.post(
        "/v1/segment",
        response_class=Response,
        openapi_extra=BODY,
        responses={
            200: {
                "model": Segmentation,
                "content": {"image/png": {"schema": PICTURE}},
                "headers": {"Server-Timing": {"schema": {"type": "string"}}},
                "description": "The labels. Server-Timing has the milliseconds of each step.",
            },
            **{status: {"model": Failure, "description": t} for status, t in FAILURES.items()},
        },
    )
    # The type is made from this server's choices, so no checker can know it.
    async def segment(request: Request, options: Annotated[options_type, Query()]) -> Response:  # type: ignore[valid-type]
        """The class of every pixel of a picture."""
        return await handler.serve(request, options)


class _RequestHandler:
    """Takes one request of ``/v1/segment`` from upload to answer."""

    def __init__(self, catalog: Catalog, engine: Engine, metrics: Metrics) -> None:
        self.catalog, self.engine, self.metrics = catalog, engine, metrics
        self.limits = catalog.limits
        self.decoders = anyio.CapacityLimiter(DECODERS)
        self.uploads = Shares(share(UPLOADS), UPLOADS)
        # Of the pictures in the queue, including those in the network.
        self.line = Shares(share(self.limits.queue) + self.limits.batch)

    async def serve(self, request: Request, options: Any) -> Response:
        size = self._size(options.size)
        choice = Choice(options.model, options.backend, options.dtype)
        began = time.perf_counter()
        address = address_of(request.scope)
        with contextlib.ExitStack() as in_line:
            with self.uploads.place(address):
                limits = self.limits
                data = await read_upload(request, limits.max_bytes, limits.timeout_s)
                read = time.perf_counter()
                if self.engine.full:  # decoding would be in vain
                    raise BusyError
                with self._in_time():
                    values = as_range(self.catalog.range)
                    bands = self.catalog.bands_of(options.model)
                    picture = await self._in_thread(
                        decode, data, limits.max_pixels, size, values, bands
                    )
                decoded = time.perf_counter()
                in_line.enter_context(self.line.place(address))
                future = self.engine.submit(choice, picture, options.confidence)
            left = limits.timeout_s - (decoded - read)
            labelled = await self._awaited(request, future, left)
        self.metrics.waited.observe(labelled.waited)
        timing = {
            "read": read - began,
            "decode": decoded - read,
            "queue": labelled.waited,
            "network": labelled.network,
        }
        classes = self.catalog.classes_of(options.model)
        return await self._in_thread(self._answer, labelled, classes, options.format, timing, began)

    def _size(self, text: str | None) -> tuple[int, int] | None:
        if text is None:
            return None
        height, width = parse_size(text)
        if height * width > self.limits.max_pixels:
            raise UnsuitableError(f"size: at most {self.limits.max_pixels:,} pixels, got {text}")
        return height, width

    @contextlib.contextmanager
    def _in_time(self) -> Any:
        try:
            with anyio.fail_after(self.limits.timeout_s):
                yield
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> RefusedError:
        self.metrics.rejected.labels("timeout").inc()
        return RefusedError(504, f"no labels after {self.limits.timeout_s:g} s; try again later")

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self.decoders)

    async def _awaited(
        self, request: Request, future: Future[LabelledPicture], seconds: float
    ) -> LabelledPicture:
        """The engine's answer; a client that left or waited too long gives up its place in line."""
        answer = asyncio.wrap_future(future)
        gone = asyncio.create_task(_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(both, timeout=seconds, return_when="FIRST_COMPLETED")
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise self._too_late()
        finally:
            answer.cancel()
            gone.cancel()

    def _answer(
        self,
        labelled: LabelledPicture,
        classes: list[ClassInfo],
        form: str,
        seconds: dict[str, float],
        began: float,
    ) -> Response:
        """Encode the labels, with the milliseconds of every step."""
        started = time.perf_counter()
        labels, certainty = labelled.labels, labelled.certainty
        if form == "png":
            body: Any = to_png(labels, certainty)
        else:
            present = enumerate(shares(labels, len(classes)))
            means = None if certainty is None else certainties(labels, certainty, len(classes))
            body = {
                "height": labels.shape[0],
                "width": labels.shape[1],
                "classes": [
                    {
                        **classes[i].model_dump(),
                        "share": share,
                        "confidence": None if means is None else means[i],
                    }
                    for i, share in present
                    if share > 0
                ],
                "counts": run_lengths(labels),
                "batch": labelled.batch,
            }
        now = time.perf_counter()
        seconds |= {"encode": now - started, "total": now - began}
        timing = {step: round(1000 * value, 3) for step, value in seconds.items()}
        steps = [f"{step};dur={value}" for step, value in timing.items()]
        headers = {"Server-Timing": ", ".join([*steps, f'batch;desc="{labelled.batch}"'])}
        if form == "png":
            return Response(body, media_type="image/png", headers=headers)
        return JSONResponse({**body, "timing_ms": timing}, headers=headers)


async def _gone(request: Request) -> None:
    """Return when the client hangs up; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tell_failures(app: FastAPI, catalog: Catalog, engine: Engine, metrics: Metrics) -> None:
    """Turn exceptions into answers of one line."""

    def answer(status: int, detail: str, **headers: str) -> JSONResponse:
        return JSONResponse({"detail": detail}, status_code=status, headers=headers)

    async def refused(_: Request, error: RefusedError) -> Response:
        headers = {"Connection": "close"} if error.close else {}
        return answer(error.status, error.message, **headers)

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = error.errors()[:PROBLEMS]
        found = [complaint(each, skip=1) for each in told]
        if any(each["type"] == "extra_forbidden" for each in told):
            found.append(f"accepted are {', '.join(options_model(catalog).model_fields)}")
        return answer(422, "; ".join(found))

    async def unsuitable(_: Request, error: UnsuitableError) -> Response:
        return answer(422, str(error))

    async def busy(_: Request, error: BusyError) -> Response:
        metrics.rejected.labels("busy").inc()
        seconds = str(max(1, math.ceil(engine.patience)))
        return answer(429, "too many pictures are waiting", **{"Retry-After": seconds})

    async def stopping(_: Request, error: StoppingError) -> Response:
        metrics.rejected.labels("stopping").inc()
        return answer(503, "the server is stopping")

    async def gone(_: Request, error: ClientDisconnect) -> Response:
        metrics.rejected.labels("gone").inc()
        return Response(status_code=CLIENT_GONE)

    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        RefusedError: refused,
        RequestValidationError: invalid,
        UnsuitableError: unsuitable,
        BusyError: busy,
        StoppingError: stopping,
        ClientDisconnect: gone,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
