"""Wrapper of every request: security headers, counting, the log, and no traceback for clients."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fassd.serve.metrics import Metrics

LOG = logging.getLogger("fassd.serve")

HEADERS = {
    # The page can only load its own files, pictures it made itself, and this server's API.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Observer:
    """ASGI middleware. Logs method, route and status: nothing that a client can choose freely."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        with self.metrics.in_progress.track_inprogress():
            try:
                await self.app(scope, receive, send_noting)
            except Exception:
                LOG.exception("internal error")
                if not status:
                    failed = JSONResponse({"detail": "internal error"}, status_code=500)
                    await failed(scope, receive, send_noting)
        route = getattr(scope.get("route"), "path", "(unknown)")
        seconds = time.perf_counter() - started
        self.metrics.requests.labels(route, status or "gone").inc()
        self.metrics.total.labels(route).observe(seconds)
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "(other)"
        LOG.info("%s %s %s %.0f ms", method, route, status or "gone", 1000 * seconds)
