"""The device that a network runs on, and its threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

DtypeName = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DtypeName)}


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name; None picks CUDA where there is a GPU, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # Raised for unknown names or numbers, by a PyTorch without CUDA, for kinds of device that
        # this build does not have, and for kinds that come as packages of their own.
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from error
    return device


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use `count` CPU threads within the block; None leaves its own choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
