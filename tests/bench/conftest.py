"""Published figures, as in ``tests/golden``."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def numbers():
    return json.loads((Path(__file__).parents[1] / "golden" / "numbers.json").read_text())
