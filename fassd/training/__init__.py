"""Training and evaluation.

Public names are imported on first use, so that the command line does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fassd.training.evaluation import Evaluation, evaluate
    from fassd.training.metrics import ConfusionMatrix, Scores

_HOME = {
    "ConfusionMatrix": "fassd.training.metrics",
    "Evaluation": "fassd.training.evaluation",
    "Scores": "fassd.training.metrics",
    "evaluate": "fassd.training.evaluation",
}

__all__ = ["ConfusionMatrix", "Evaluation", "Scores", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fassd.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
