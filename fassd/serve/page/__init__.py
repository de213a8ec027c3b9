"""The page's files, sent from memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["FILES", "add_page"]

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/sources.js": ("sources.js", "text/javascript"),
    "/view.js": ("view.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Route, file, and media type."""


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` with its files; it loads nothing from other sites."""
    folder = resources.files(__package__)
    for route, (name, kind) in FILES.items():
        app.add_route(
            route, _sender(folder.joinpath(name).read_bytes(), kind), ["GET"], None, False
        )


def _sender(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(content, media_type=kind)

    return send
