"""What holds for every test."""

import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` a file's tests share a worker: its fixtures are made only once.

    Those of tests/export share the exported files. The conformance suite has no costly fixtures,
    and is dealt test by test.
    """
    for item in items:
        group = item.nodeid.partition("::")[0]
        if group.startswith("tests/conformance/") or item.get_closest_marker("xdist_group"):
            continue
        if group.startswith("tests/export/"):
            group = "export"
        item.add_marker(pytest.mark.xdist_group(group))
