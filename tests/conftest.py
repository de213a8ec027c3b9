"""What holds for every test."""

import atexit
import gc
import signal
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What PyTorch, its compiler and a thousand modules keep is walked through by each full collection,
# which finds next to nothing: an eighth of the time of what is compiled. Below, what has outlived a
# file of tests is left out of all later ones, so that they are cheap.
gc.set_threshold(10_000, 20, 10)
# Extension modules report what is left at the end of the process, which must then be collected.
atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """The garbage of a file of tests is gone when the next begins."""
    yield
    gc.collect()
    gc.freeze()


# Compiling the wheel takes longest, and begins before all else. The conformance suite comes last:
# in small parts, it keeps all workers busy to the end.
FIRST, LAST = "tests/install", "tests/conformance"


def folder_of(nodeid: str) -> str:
    return "/".join(nodeid.partition("::")[0].split("/")[:2])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, whose order is that of the dealing (``--no-loadscope-reorder``)."""
    if hasattr(config, "workerinput"):
        places = {FIRST: 0, LAST: 2}
        items.sort(key=lambda item: places.get(folder_of(item.nodeid), 1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist loadfile`` a file's tests share a worker, which makes its fixtures once.

    Those of tests/export share the exported files, with the command's, those of tests/install a
    wheel. The conformance suite has no costly fixtures: it is dealt in parts of some forty tests.
    (Test by test, the scheduler would go through all that it has dealt after each of them.)
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = folder_of(nodeid)
            if folder == LAST:
                return f"{folder} {crc32(nodeid.encode()) % 256}"
            if nodeid.startswith("tests/cli/test_export.py"):
                return "tests/export"
            return folder if folder in ("tests/export", FIRST) else super()._split_scope(nodeid)

    return Scheduling(config, log)
