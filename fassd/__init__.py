"""FASSD-Net: real-time semantic segmentation with dilated asymmetric convolutions.

>>> import fassd
>>> model = fassd.create_model("fassd_net", num_classes=19)
>>> labels = fassd.Segmenter(model).predict("street.jpg")

Public names are imported on first use, so that ``import fassd`` and ``fassd --help`` do not wait
for PyTorch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter
    from fassd.models import create_model, list_models, load, load_checkpoint

_HOME = {
    "create_model": "fassd.models",
    "list_models": "fassd.models",
    "load": "fassd.models",
    "load_checkpoint": "fassd.models",
    "Segmenter": "fassd.inference.segmenter",
}

__all__ = ["Segmenter", "__version__", "create_model", "list_models", "load", "load_checkpoint"]


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    OpenMP reads this setting when PyTorch is imported, so it must be made before. Threads that spin
    occupy cores needed for reading, writing, another process or the network's own next thread: L2
    took 1126 ms for a picture of 360x480 on two cores beside two other busy processes, and 36 ms
    with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name == "Segmenter":
        wait_asleep()
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("bench", "data", "evaluation", "inference", "io", "models", "synth", "training"):
        return importlib.import_module(f"fassd.{name}")
    raise AttributeError(f"module 'fassd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
