"""Results files of a machine that never was, with figures that are easy to follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = {
    "device": "Some CPU",
    "device_type": "cpu",
    "cpu": "Some CPU",
    "threads": 2,
    "instruction_set": "AVX-512",
    "torch": "2.13.0",
    "date": "2026-11-20T10:00:00Z",
    "commit": "0123456789abcdef",
}


def timing(median: float, spread: float = 0.001) -> dict[str, Any]:
    return {"median_s": median, "spread_s": spread, "n": 7}


def result(key: str, median: float, **changes: Any) -> dict[str, Any]:
    facts = {"name": key, "key": key, "dtype": "float32", "output": "logits", "match": True}
    return {**facts, **timing(median), **changes}


def comparison(model: str = "fassd_net", **job: Any) -> dict[str, Any]:
    return {
        "job": {
            "model": model,
            "classes": 19,
            "alpha": 2,
            "size": [1024, 2048],
            "batch": 1,
            "threads": None,
            **job,
        },
        "results": [
            result("eager", 0.8, peak_memory_bytes=3 << 28),
            result("channels_last", 0.5),
            result("ours", 0.2, peak_memory_bytes=1 << 28),
            result("ours", 0.16, output="labels"),
            result("ours", 0.1, dtype="float16", output="labels", match=False),
        ],
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a comparison of one network, whose float16 labels disagree."""
    return write_results(tmp_path)


def write_results(parent: Path) -> Path:
    folder = parent / "results"
    folder.mkdir()
    content = {"environment": HERE, "comparisons": [comparison()]}
    (folder / "networks.json").write_text(json.dumps(content))
    return folder
