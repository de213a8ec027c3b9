"""Sockets: a port that is ours before anything is loaded, and clients that hang."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["listen", "make_server"]

CONNECTIONS = 512
"""Sockets at once; uvicorn answers 503 on those above."""

GRACE = 5
"""Seconds that requests have to end when the server is told to stop."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; clients wait in its backlog until the server is up.

    Raises:
        OSError: the address is in use, not this machine's, or may not be taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        unknown = isinstance(error, socket.gaierror)  # whose numbers are not the system's
        reason = error.strerror if unknown else os.strerror(error.errno or 0)
        raise OSError(
            f"cannot listen on {host} port {port}: {reason}; "
            "--host and --port choose another address"
        ) from error


def make_server(app: Any, patience: float) -> uvicorn.Server:
    """A server that hangs up on clients that keep it waiting for `patience` seconds."""
    protocol = type("Protocol", (PatientProtocol,), {"patience": patience})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=CONNECTIONS,
    )
    return uvicorn.Server(config)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever in three cases: a request's head that does
    not end, the rest of a body that was refused, and an answer that is not read.

    (A body that does not end is the application's to time.)
    """

    patience: float = 30.0
    _head: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # it is that of a socket
        # asyncio does so only where it made the socket; without it an answer takes 40 ms more.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer is not None:
            self._answer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # which resumes writing
        self._forget_head()

    def _time_head(self) -> None:
        """Time the client while no request of its is being served."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head is None:
            self._head = self.loop.call_later(self.patience, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
