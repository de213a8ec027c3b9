"""What a file of weights says of its network, and the network says after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

__all__ = ["ATTRIBUTE", "Color", "NetworkInfo", "info_of", "name_classes"]

Color = tuple[int, int, int]

ATTRIBUTE = "network_info"
"""Attribute of a network that holds its `NetworkInfo`: copies and accelerated networks share it."""


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network beside its weights.

    Attributes:
        model: a name of `list_models()`.
        alpha: DAPF's reduction.
        class_names: names of the classes, in the order of the labels; empty if unknown.
        colors: RGB colours of the classes, 0 to 255 each; empty if unknown.
    """

    model: str
    alpha: int = 2
    class_names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of the classes; 0 if they are unknown."""
        return len(self.class_names)

    def with_classes(self, classes: Sequence[tuple[str, Color]]) -> NetworkInfo:
        """The same network with other classes, (name, colour) each."""
        names, colors = tuple(name for name, _ in classes), tuple(color for _, color in classes)
        return replace(self, class_names=names, colors=colors)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`."""
        colors = self.colors or (None,) * self.num_classes
        return {
            "model": self.model,
            "num_classes": self.num_classes,
            "alpha": self.alpha,
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(self.class_names, colors, strict=True)
            ],
        }

    @classmethod
    def from_metadata(cls, text: str) -> NetworkInfo | None:
        """Read what `fassd train` writes beside weights; None if that says nothing of a network.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            facts = json.loads(text)
            if facts.get("network") is not None:
                network = facts["network"]
                names = [entry["name"] for entry in network["classes"]]
                colors = [entry["color"] for entry in network["classes"]]
            elif "recipe" in facts and "data" in facts:  # of runs that stored no colours
                network, names, colors = facts["recipe"], facts["data"]["classes"], []
            else:
                return None
            return cls(
                _text(network["model"]),
                _whole(network["alpha"], 1, 2**16),
                tuple(map(_text, names)),
                () if None in colors else tuple(map(_color, colors)),
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error!s:.80}") from error


def info_of(network: nn.Module) -> NetworkInfo | None:
    """What is known of a network, or of the one inside a wrapper; None if nothing is.

    The classes are unknown if their number is not that of the network's, whose head was exchanged.
    """
    for part in network.modules():
        info = part.__dict__.get(ATTRIBUTE)
        if isinstance(info, NetworkInfo):
            known = getattr(part, "num_classes", info.num_classes) == info.num_classes
            return info if known else replace(info, class_names=(), colors=())
    return None


def name_classes(network: nn.Module, classes: Sequence[tuple[str, Color]]) -> None:
    """Let a network of `create_model` know its classes, (name, colour) each."""
    info = info_of(network)
    if info is not None:
        setattr(network, ATTRIBUTE, info.with_classes(classes))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.40} is not a name")
    return value


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a whole number from {low} to {high}")
    return value


def _color(value: Any) -> Color:
    red, green, blue = value
    return _whole(red, 0, 255), _whole(green, 0, 255), _whole(blue, 0, 255)
