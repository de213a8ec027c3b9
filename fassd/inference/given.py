"""Checks of what a `fassd.Segmenter` is given."""

from __future__ import annotations

import operator
import os

import torch

from fassd.export.exported import ExportedNetwork


def check_file(
    network: ExportedNetwork,
    weights: str | os.PathLike[str] | None,
    num_classes: int | None,
    alpha: int | None,
    dtype: torch.dtype | None,
    size: tuple[int, int] | None,
) -> None:
    """Check that the file has the requested properties."""
    path = network.path
    check_alone(path, weights)
    for what, asked, known in (
        ("classes", num_classes, network.num_classes),
        ("alpha", alpha, network.metadata.alpha),
    ):
        if asked not in (None, known):
            raise ValueError(f"{path} has {what} {known}, asked for was {what} {asked}")
    own = network.metadata.dtype
    if dtype not in (None, torch.float32) and str(dtype).removeprefix("torch.") != own:
        raise ValueError(f"{path} computes in {own}, asked for was {dtype}: export it anew")
    only = network.input_size
    if size is not None and only not in (None, size):
        shapes = ["{}x{}".format(*each or ()) for each in (only, size)]
        raise ValueError(f"{path} takes pictures of {shapes[0]} alone, asked for were {shapes[1]}")


def check_alone(path: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> None:
    if weights is not None:
        raise ValueError(f"{path} holds its own weights; weights={os.fspath(weights)!r} has no use")


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(
            f"size must be (height, width), both whole numbers of at least 1, got {size!r}"
        )
    return height, width
