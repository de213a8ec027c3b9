"""What does not fit in memory is an error, not the end of the process."""

import numpy as np
import pytest
import torch

from fassd.cli import memory

MEGABYTE = 1 << 20


def test_what_does_not_fit_is_an_error_while_memory_is_bound(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Sizes beside which what earlier tests left, and is freed in between, does not count.
    monkeypatch.setattr(memory, "_free", lambda: 2048 * MEGABYTE)
    with memory.bounded_memory():
        np.zeros(64 * MEGABYTE, np.uint8)
        with pytest.raises(MemoryError):
            np.zeros(4096 * MEGABYTE, np.uint8)
        with pytest.raises(RuntimeError, match="allocate memory"):
            torch.empty(4096 * MEGABYTE, dtype=torch.uint8)
    with memory.bounded_memory(4), pytest.raises(MemoryError):
        np.zeros(1024 * MEGABYTE, np.uint8)
    np.zeros(4096 * MEGABYTE, np.uint8)


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    machine = memory._free()
    assert machine > 64 * MEGABYTE
    for name, text in (
        ("memory.max", f"{48 * MEGABYTE}\n"),
        ("memory.current", f"{40 * MEGABYTE}\n"),
        ("memory.stat", f"anon 5\nfile {10 * MEGABYTE}\nkernel 3\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory._free() == 18 * MEGABYTE
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free() > 64 * MEGABYTE
