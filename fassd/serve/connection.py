"""The server's socket, opened before anything is loaded, and uvicorn's settings."""

from __future__ import annotations

import os
import socket
from typing import Any

import uvicorn

BACKLOG = 256
"""Maximum clients waiting to be accepted, and maximum accepted at a time."""

GRACE = 5
"""Seconds that requests have to finish when the server is stopped."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; clients wait in its backlog until the server is up.

    Raises:
        OSError: the address is in use, not this machine's, or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        unknown = isinstance(error, socket.gaierror)  # its numbers are not the system's
        reason = error.strerror if unknown else os.strerror(error.errno or 0)
        raise OSError(
            f"cannot listen on {host} port {port}: {reason}; "
            "--host and --port choose another address"
        ) from error
    # Inherited by connections, for which asyncio only does so if it made the socket; without it an
    # answer takes 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_server(app: Any) -> uvicorn.Server:
    """A server that closes connections without a request after five seconds.

    uvicorn waits for requests whose heads do not end, and for clients that do not read: a proxy in
    front of it does not.
    """
    config = uvicorn.Config(
        app,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE,
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)
