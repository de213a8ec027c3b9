"""Fixtures that run the command line inside the test process, and networks for it."""

import re

import pytest
import torch
from training.fakes import street
from typer.testing import CliRunner

from fassd.bench.jobs import calibrate
from fassd.cli import app
from fassd.data import normalize
from fassd.models import create_model

PLAIN = ("--backend", "reference", "--device", "cpu")
FAST = ("--model", "fassd_net_l2", *PLAIN)


@pytest.fixture
def run_fassd(monkeypatch):
    """``run_fassd("predict", ...)`` -> a result with exit_code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("FASSD_DEBUG", raising=False)

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def succeed(run_fassd):
    """Likewise of a command that ends with 0."""

    def run(*arguments):
        result = run_fassd(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def refusal(run_fassd):
    """``refusal("predict", ...)`` -> the error, as one line, of a command that ends with 2."""

    def run(*arguments):
        result = run_fassd(*arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output, result.output
        return " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())

    return run


def calibrated(name, *settings, scene=0, seed=0):
    """A network with random weights whose labels vary with what a generated scene shows."""
    torch.manual_seed(seed)
    batch = torch.from_numpy(normalize(street(scene)[0]))[None]
    return calibrate(create_model(name, *settings), batch)
