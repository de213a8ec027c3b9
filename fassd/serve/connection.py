"""Sockets: a port opened before anything is loaded, clients that stop responding, and overload."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fassd.serve.guard import network_of

CONNECTIONS = 512
"""Maximum number of sockets; for one more, one that keeps the server waiting is closed."""

BACKLOG = 256
"""Maximum clients waiting to be accepted, and maximum accepted at a time."""

HEAD = 10.0
"""Maximum seconds in which a request's head must arrive."""

GRACE = 5
"""Seconds that requests have to finish when the server is stopped."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; clients wait in its backlog until the server is up.

    Raises:
        OSError: the address is in use, not this machine's, or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        unknown = isinstance(error, socket.gaierror)  # its numbers are not the system's
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
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which waits for ever in three cases: a request's head that does not end,
    the rest of a body that was refused, and an answer that is not read.

    (The application limits the time of a body that does not end.)
    """

    patience: float = 30.0
    _head: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # the transport of a socket
        self.address = network_of(self.client[0] if self.client else "")
        self.since = self.loop.time()
        if len(self.connections) > CONNECTIONS:
            self._make_room()
        # asyncio only does so if it made the socket; without it an answer takes 40 ms more.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since = self.loop.time()
        self._time_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # resumes writing
        self._forget_head()

    @property
    def _is_served(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _waits(self) -> bool:
        """True if the server waits for the client."""
        return self._answer is not None or not self._is_served

    def _make_room(self) -> None:
        """Close another connection: one that waits rather than one that is served, from the address
        with most of them, and of these the oldest."""
        others = cast(set[PatientProtocol], self.connections) - {self}
        counts = Counter(each.address for each in others)
        oldest = min(others, key=lambda it: (not it._waits, -counts[it.address], it.since))
        self.connections.discard(oldest)
        oldest.transport.abort()

    def _time_head(self) -> None:
        """Limit the client's time while none of its requests is being served."""
        if self._is_served:
            self._forget_head()
        elif self._head is None:
            self._head = self.loop.call_later(min(self.patience, HEAD), self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
