"""`fassd serve`: networks behind HTTP, and a page to try them.

* `engine`: loaded networks, the bounded queue, and the one thread that runs batches;
* `upload`: a request's picture, read and decoded within limits, only in memory;
* `encode`: labels as PNG and as run lengths;
* `schemas`, `app`: the HTTP interface; `metrics`: figures for Prometheus;
* `observe`: wraps every request: security headers, counting, the log;
* `connection`: the socket, and uvicorn's settings;
* `page/`: the page, sent from memory.
"""

from __future__ import annotations

from fassd.io.packages import need

__all__ = ["check_installed"]


def check_installed() -> None:
    """Check that the server's packages are installed.

    Raises:
        ImportError: one is missing; the message names it and says how to install all of them.
    """
    for name in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        need(name, "fassd serve needs", "serve")
