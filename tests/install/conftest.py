"""One wheel for all tests of this folder, and one built without a compiler."""

from __future__ import annotations

import pytest
from install.wheels import Built, built_wheel, pip_wheel, source_copy, unpack


@pytest.fixture(scope="session")
def built() -> Built:
    return built_wheel()


@pytest.fixture(scope="session")
def built_without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel built without isolation on a machine whose C++ compiler is not there."""
    source = source_copy(tmp_path_factory.mktemp("pure"))
    result = pip_wheel(source, "--no-build-isolation", CXX="no-such-compiler")
    assert result.returncode == 0, result.stdout[-5000:]
    return unpack(source, result.stdout, result.stdout)
