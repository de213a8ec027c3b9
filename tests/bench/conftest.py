"""Published figures, as in ``tests/golden``."""

import json
from pathlib import Path

import pytest
from golden.analogy import BY_ANALOGY


@pytest.fixture(scope="session")
def numbers():
    found = json.loads((Path(__file__).parents[1] / "golden" / "numbers.json").read_text())
    found["variants"].update(BY_ANALOGY)
    return found
