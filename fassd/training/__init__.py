"""Training and evaluation.

Public names are imported on first use, so that the command line does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fassd.evaluation.evaluate import Evaluation, evaluate
    from fassd.evaluation.metrics import ConfusionMatrix, Scores
    from fassd.training.loop import Trainer
    from fassd.training.loss import BootstrappedCrossEntropy
    from fassd.training.modelcard import model_card
    from fassd.training.optim import poly_learning_rate
    from fassd.training.recipe import Recipe, list_presets, load_recipe

_HOME = {
    "BootstrappedCrossEntropy": "fassd.training.loss",
    "ConfusionMatrix": "fassd.evaluation.metrics",
    "Evaluation": "fassd.evaluation.evaluate",
    "Recipe": "fassd.training.recipe",
    "Scores": "fassd.evaluation.metrics",
    "Trainer": "fassd.training.loop",
    "evaluate": "fassd.evaluation.evaluate",
    "list_presets": "fassd.training.recipe",
    "load_recipe": "fassd.training.recipe",
    "model_card": "fassd.training.modelcard",
    "poly_learning_rate": "fassd.training.optim",
}

__all__ = [
    "BootstrappedCrossEntropy",
    "ConfusionMatrix",
    "Evaluation",
    "Recipe",
    "Scores",
    "Trainer",
    "evaluate",
    "list_presets",
    "load_recipe",
    "model_card",
    "poly_learning_rate",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fassd.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
