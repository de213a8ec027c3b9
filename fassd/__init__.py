"""FASSD-Net: real-time semantic segmentation with dilated asymmetric convolutions.

>>> import fassd
>>> model = fassd.create_model("fassd_net", num_classes=19)
>>> labels = fassd.Segmenter(model).predict("street.jpg")

Public names are imported on first use, so that ``import fassd`` and ``fassd --help`` do not wait
for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fassd.models import create_model, list_models, load, load_checkpoint
    from fassd.predict import Segmenter

_HOME = {
    "create_model": "fassd.models",
    "list_models": "fassd.models",
    "load": "fassd.models",
    "load_checkpoint": "fassd.models",
    "Segmenter": "fassd.predict",
}

__all__ = ["Segmenter", "__version__", "create_model", "list_models", "load", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("models", "data", "training", "predict", "complexity", "palette", "panel"):
        return importlib.import_module(f"fassd.{name}")
    raise AttributeError(f"module 'fassd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
