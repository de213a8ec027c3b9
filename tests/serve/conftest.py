"""Clients of applications with small limits."""

import logging

import pytest
from serve.apps import Gate, serving
from serve.browser import Browser
from typer.testing import CliRunner

from fassd.cli import app


@pytest.fixture(scope="session")
def client():
    with serving() as (client, _):
        yield client


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def gated():
    """A client, the engine, and the gate of its only network; runs one picture at a time."""
    gate = Gate()
    with serving(load=lambda choice: gate, batch=1, queue=2, timeout_s=1.5) as (client, engine):
        yield client, engine, gate
        gate.open.set()


@pytest.fixture
def run_fassd(monkeypatch):
    """``run_fassd("serve", ...)`` -> a result with exit_code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FASSD_DEBUG", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    log = logging.getLogger("fassd.serve")  # which the command sets up for a terminal
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(log, attribute, getattr(log, attribute))

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
