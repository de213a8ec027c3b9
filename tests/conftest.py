"""What holds for every test."""

import signal
from typing import Any

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist loadfile`` a file's tests share a worker, which makes its fixtures once.

    Those of tests/export share the exported files, those of tests/install a wheel. The conformance
    suite has no costly fixtures: dealt test by test, it keeps all workers busy to the end.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = "/".join(file.split("/")[:2])
            if folder == "tests/conformance":
                return nodeid
            return folder if folder in ("tests/export", "tests/install") else file

    return Scheduling(config, log)
