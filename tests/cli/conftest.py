"""Fixtures that run the command line inside the test process."""

import pytest
from typer.testing import CliRunner

from fassd.cli import app


@pytest.fixture
def run_fassd(monkeypatch):
    """``run_fassd("predict", ...)`` -> a result with exit_code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("FASSD_DEBUG", raising=False)

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
