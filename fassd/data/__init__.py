"""Pictures and labels: datasets and their cards, preprocessing, augmentation.

Names are imported when they are first used: normalising a picture needs neither PyTorch nor OpenCV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fassd.data.card import Card, CardError, Pair
    from fassd.data.cardfile import load_card, shipped_cards
    from fassd.data.check import CheckReport, check_card
    from fassd.data.dataset import Sample, SegmentationDataset
    from fassd.data.transforms import TrainTransform
    from fassd.models.preprocess import MEAN, STD, normalize

__all__ = [
    "MEAN",
    "STD",
    "Card",
    "CardError",
    "CheckReport",
    "Pair",
    "Sample",
    "SegmentationDataset",
    "TrainTransform",
    "check_card",
    "load_card",
    "normalize",
    "shipped_cards",
]

_HOMES = {
    "fassd.data.card": ("Card", "CardError", "Pair"),
    "fassd.data.cardfile": ("load_card", "shipped_cards"),
    "fassd.data.check": ("CheckReport", "check_card"),
    "fassd.data.dataset": ("Sample", "SegmentationDataset"),
    "fassd.data.transforms": ("TrainTransform",),
    "fassd.models.preprocess": ("MEAN", "STD", "normalize"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
