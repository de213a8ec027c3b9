"""`fassd serve`: networks behind HTTP, and a page to watch them work.

* `engine`: loaded networks, the bounded queue, and the one thread that runs batches;
* `upload`: a request's picture, read and decoded within limits, in memory alone;
* `encode`: labels as PNG and as run lengths;
* `schemas`, `app`: the HTTP interface; `metrics`: what Prometheus reads;
* `observe`: around every request: security headers, counting, the log;
* `connection`: sockets, and clients that hang;
* `page/`: the page, sent from memory.
"""

from __future__ import annotations

from fassd.io.packages import need

__all__ = ["check_installed"]


def check_installed() -> None:
    """See whether the server's packages are there.

    Raises:
        ImportError: one is not; the message names it and says how to install all of them.
    """
    for name in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        need(name, "fassd serve needs", "serve")
