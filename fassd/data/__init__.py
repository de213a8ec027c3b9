"""Pictures and labels: datasets and their cards, preprocessing, augmentation, generated streets.

Names are imported when they are first used: neither PyTorch nor OpenCV is needed to normalise a
picture.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fassd.data.card import Card, CardError, Pair, load_card, shipped_cards
    from fassd.data.check import CheckReport, check_card
    from fassd.data.dataset import Sample, SegmentationDataset
    from fassd.data.synthetic import render_street
    from fassd.data.transforms import MEAN, STD, TrainTransform, normalize

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
    "render_street",
    "shipped_cards",
]

_HOMES = {
    "card": ("Card", "CardError", "Pair", "load_card", "shipped_cards"),
    "check": ("CheckReport", "check_card"),
    "dataset": ("Sample", "SegmentationDataset"),
    "synthetic": ("render_street",),
    "transforms": ("MEAN", "STD", "TrainTransform", "normalize"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"fassd.data.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
