"""Limits on requests: names of the server, origins of pages, and a fair share per address.

A page from another site cannot read answers, but can send requests from its visitor's browser, also
to servers on the visitor's own machine (cross-site requests); and if its own name resolves to that
machine, they look like requests of the same site (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fassd.serve.engine import BusyError

HEALTH = "/healthz"
"""Routes that are always answered, so that an overloaded server does not look dead."""


def host_name(text: str) -> str | None:
    """The host of "host" or "host:port", in lower case; None if there is none.

    An IPv6 address is in brackets, and is returned without them; a name is returned without the dot
    that may end it.
    """
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([\w.-]+?)\.?)(?::\d*)?", text.strip().lower())
    if found is None or found[2]:
        return found and found[2]
    try:
        return str(ipaddress.ip_address(found[1]))  # of its spellings the one that sockets have
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """True if a name or address is this machine's own by definition."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(scope: Scope) -> str:
    """Address of a request's client, by `network_of`."""
    return network_of((scope.get("client") or ("",))[0])


def network_of(client: str) -> str:
    """The unit of addresses: for IPv6 the network, all of whose addresses one customer has."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or int(address) >> 64)


def share(places: int) -> int:
    """Maximum number of `places` for one address."""
    return places - places // 4


class Shares:
    """Places of which one address cannot take all.

    Args:
        most: maximum number for one address.
        places: number of places for all addresses.
    """

    def __init__(self, most: int, places: float = math.inf) -> None:
        self.most, self.places = most, places
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, address: str) -> Iterator[None]:
        """Occupy a place.

        Raises:
            BusyError: no place is free.
        """
        if self._taken[address] >= self.most or self._taken.total() >= self.places:
            raise BusyError
        self._taken[address] += 1
        try:
            yield
        finally:
            self._taken[address] -= 1
            self._taken += Counter()  # removes addresses without a place


class Guard:
    """ASGI middleware that refuses requests from other sites and for other hosts, and overload.

    Args:
        app: application for all other requests.
        hosts: names and addresses by which the server may be requested, besides the loopback ones
            and the address of the connection; None for any.
        places: maximum simultaneous requests, not counting those for `HEALTH`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, places: int) -> None:
        self.app, self.hosts = app, hosts
        self._requests = Shares(share(places), places)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send)
        elif scope["path"] == HEALTH:
            await self.app(scope, receive, send)
        else:
            await self._with_place(scope, receive, send)

    async def _with_place(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._requests.place(address_of(scope)))
            except BusyError:
                answer = {"detail": "too many requests at once from your address"}
                busy = JSONResponse(answer, 429, {"Retry-After": "1"})
                await busy(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        """The reason why a request is refused, or None."""
        headers = Headers(scope=scope)
        given = headers.get("host", "")
        host = host_name(given)
        if self.hosts is not None and not self._is_ours(host, scope):
            return f"the host {given[:60]!r} is not served; fassd serve --allow-host adds one"
        if self._is_foreign(scope["method"], headers):
            return (
                "pages of other sites are not served; behind a proxy that changes the header Host, "
                "fassd serve --allow-host takes the name in its page's address"
            )
        return None

    def _is_ours(self, host: str | None, scope: Scope) -> bool:
        own = scope.get("server") or ("",)
        return host is not None and (
            is_loopback(host) or host == own[0] or host in (self.hosts or ())
        )

    def _is_foreign(self, method: str, headers: Headers) -> bool:
        """True if a browser sends it for a page of another origin, unless it follows a link."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            link = method in ("GET", "HEAD") and headers.get("sec-fetch-dest") == "document"
            return site not in ("same-origin", "none") and not link
        origin = headers.get("origin")  # all that browsers send to a server without encryption
        if origin is None:
            return False
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return True
        if place == headers.get("host", "").lower():
            return False
        name = host_name(place)  # a proxy may change the header Host, or leave out its port
        return name is None or is_loopback(name) or name not in (self.hosts or ())
