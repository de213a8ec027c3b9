"""Options, and which backends, operators and dtypes a test runs with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import settings

# Read when the C++ kernels first take memory: theirs is poisoned as well as PyTorch's.
os.environ.setdefault("FASSD_KERNELS_POISON", "1")

from conformance import definition, harness
from conformance.harness import OPERATORS, Subject, Target

from fassd_kernels.tuning.trials import TF32_TOLERANCE

SAMPLED_EXAMPLES, SAMPLED_COSTLY = 10, 4
# Where rows are sampled: one in so many of the tests of layouts. It has no factor in common with
# the numbers of layouts, dtypes and shapes, so that each of them is met.
SAMPLED_LAYOUTS = 7
# And of tests with many cases of one kind: ties, widths, addresses.
SAMPLED_KINDS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption(
        "--backend",
        action="append",
        help="test this backend, and fail if it is not available; may be repeated "
        f"(default: all available; {harness.REQUIRE}=a,b names those that must be)",
    )
    group.addoption(
        "--device", action="append", help="test on this device, cpu or cuda; may be repeated"
    )
    group.addoption(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help=f"test one row in N of the tables, {SAMPLED_EXAMPLES} drawn calls ({SAMPLED_COSTLY} "
        f"of many launches) in place of {definition.drawn.max_examples}, one layout in "
        f"{SAMPLED_LAYOUTS}, one in {SAMPLED_KINDS} of many alike, every second value that is not "
        "finite; repeat nothing",
    )
    group.addoption(
        "--tf32",
        action="store_true",
        help="let GPU backends round what they multiply in float32 to TF32, in its tolerance",
    )
    group.addoption(
        "--fuzz",
        type=float,
        metavar="SECONDS",
        help="draw calls of any sizes for this long, for each operator and backend",
    )


def chosen(config: pytest.Config) -> list[Target]:
    # The defaults serve a run that collects this folder from above, where the options are unknown.
    asked = config.getoption("backend", None) or []
    devices = config.getoption("device", None) or []
    return harness.targets(asked, devices)


def pytest_report_header(config: pytest.Config) -> str:
    return f"conformance: {', '.join(map(str, chosen(config)))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``subject`` every operator on every target.

    ``@pytest.mark.operators(...)`` narrows it; with ``dtype`` it gets the target's dtypes as well;
    ``target`` alone is a backend without an operator, ``device`` a place without a backend.
    """
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", chosen(metafunc.config), ids=str)
    if "device" in metafunc.fixturenames:
        devices = dict.fromkeys(target.device for target in chosen(metafunc.config))
        metafunc.parametrize("device", list(devices))
    if "subject" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("operators")
    subjects = [
        Subject(operator, target)
        for operator in (marker.args if marker else OPERATORS)
        for target in chosen(metafunc.config)
        if operator in target.backend.operators
    ]
    marker = metafunc.definition.get_closest_marker("takes")
    if marker:
        subjects = [subject for subject in subjects if set(marker.args) <= set(subject.dtypes)]
    if "dtype" in metafunc.fixturenames:
        rows = [(subject, dtype) for subject in subjects for dtype in subject.dtypes]
        names = [f"{subject}-{str(dtype).removeprefix('torch.')}" for subject, dtype in rows]
        metafunc.parametrize(("subject", "dtype"), rows, ids=names)
    else:
        metafunc.parametrize("subject", subjects, ids=str)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "operators(*names): the operators that a test is for")
    config.addinivalue_line("markers", "takes(*dtypes): what a backend must take to be tested")
    if (config.getoption("every", None) or 1) > 1:  # taken when test modules are read
        definition.drawn = settings(definition.drawn, max_examples=SAMPLED_EXAMPLES)
        definition.drawn_costly = settings(definition.drawn, max_examples=SAMPLED_COSTLY)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the rows of a table, one in so many: each row is a case of its own, and they are mixed.

    They name layouts, too, so that fewer of the tests of layouts will do. Of three values that are
    not finite an operator meets one or two.
    """
    every = config.getoption("every", None) or 1
    layouts, values, kinds = (SAMPLED_LAYOUTS, 2, SAMPLED_KINDS) if every > 1 else (1, 1, 1)
    steps = {
        "test_table": every,
        "test_table_contiguous": every,
        "test_layouts": layouts,
        "test_gradients_of_layouts": layouts,
        "test_non_finite_pixels": values,
        "test_non_finite_vectors": values,
        "test_labels_of_ties": kinds,
        "test_every_width": kinds,
        "test_rows_at_any_address": kinds,
    }
    seen: dict[str, int] = {}
    kept, left = [], []
    for item in items:
        table = item.nodeid.partition("[")[0]
        count = seen[table] = seen.get(table, -1) + 1
        step = steps.get(table.partition("::")[2], 1) if "tests/conformance/" in table else 1
        (left if count % step else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture
def some(pytestconfig: pytest.Config) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What a test goes through: all of it, or where rows are sampled one in three."""
    sampled = (pytestconfig.getoption("every", None) or 1) > 1
    return lambda things: things[::3] if sampled else things


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN: what a kernel forgets to write shows, and what it reads too early."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.fixture(autouse=True, scope="module")
def quick_interpreter() -> Iterator[None]:
    with harness.quick_interpreter():
        yield


@pytest.fixture(autouse=True)
def full_precision(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a GPU computes in float32 is held to that, not to TF32, unless it is asked for."""
    tf32 = pytestconfig.getoption("tf32", False)
    if tf32:
        monkeypatch.setitem(harness.TOLERANCES, torch.float32, TF32_TOLERANCE)
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32, False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
