"""Options of `pytest benchmarks/`, what its tests run with, and where their figures come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.choices import Choices, choices
from fassd.bench import machine
from fassd.bench.machine import environment

CHOICES = pytest.StashKey[Choices]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fassd benchmarks")
    group.addoption(
        "--full",
        action="store_true",
        help="every network, size, dtype and thread count, all compiled; takes hours",
    )
    group.addoption(
        "--sizes",
        metavar="HxW,..",
        help="of the networks' pictures (default: 512x1024; full: half and double, too)",
    )
    group.addoption("--dtypes", metavar="D,..", help="float32 (the default), float16, bfloat16")
    group.addoption(
        "--threads", metavar="N,..", help="of PyTorch (default: its own choice; full: 1, too)"
    )
    group.addoption("--device", help="cpu or cuda (default: cuda where there is a GPU)")


def pytest_configure(config: pytest.Config) -> None:
    # A run that collects this folder from above does not know the options.
    names = ("full", "sizes", "dtypes", "threads", "device")
    asked = {name: config.getoption(name, None) for name in names}
    config.stash[CHOICES] = choices(**{**asked, "full": bool(asked["full"])})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``candidate`` all of the cases of its file's `PART`."""
    if "candidate" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.stash[CHOICES]
    rows = [
        pytest.param(
            case,
            threads,
            candidate,
            id=f"{case.subject}-{case.height}x{case.width}-{case.dtype}-{threads}-{candidate}",
        )
        for case in chosen.cases(metafunc.module.PART)
        for threads in chosen.threads
        for candidate in chosen.candidates(case)
    ]
    metafunc.parametrize(("case", "threads", "candidate"), rows)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Put the CPU, the versions, the commit and the device into ``--benchmark-json``."""
    device = config.stash[CHOICES].device
    machine_info["fassd"] = {**environment(), **machine.environment(device)}


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.config.stash[CHOICES].device


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
