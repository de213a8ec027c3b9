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

EXTRA = "pip install 'fassd-net[serve]'"
"""Installs what the server needs."""

__all__ = ["EXTRA", "check_installed"]


def check_installed() -> None:
    """See whether the server's packages are there.

    Raises:
        ImportError: one is not; the message names it and says how to install all of them.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"fassd serve needs {error.name}: {EXTRA}") from error
