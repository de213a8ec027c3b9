"""Facts about a network that its file of weights stores, and that the network carries after it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fassd.models.encoder import Encoder
from fassd.models.network import FASSDNet
from fassd.models.preprocess import OURS, Preprocessing, preprocessing_of

Color = tuple[int, int, int]

ATTRIBUTE = "network_info"
"""Attribute of a network's head that holds its `NetworkInfo`: copies and accelerated networks keep
it, and replacing the head drops the classes with it."""


@dataclass(frozen=True)
class NetworkInfo:
    """Facts about a network beside its weights.

    Attributes:
        model: a name of `list_models()`, or a full one (`fassd.models.variants.full_name`).
        alpha: DAPF's reduction.
        class_names: names of the classes, in the order of the labels; empty if unknown.
        colors: RGB colours of the classes, 0 to 255 each; empty if unknown.
        preprocessing: normalisation of its pictures; None for that of HarDNet's encoders.
        temperature: divisor of its logits that makes its probabilities match how often it is right
            (`fassd val --temperature fit`).
    """

    model: str
    alpha: int = 2
    class_names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    preprocessing: Preprocessing | None = None
    temperature: float = 1.0

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if they are unknown."""
        return len(self.class_names)

    @classmethod
    def of(cls, model: str, alpha: int, classes: Sequence[tuple[str, Color]]) -> NetworkInfo:
        """The facts of a network with classes, (name, colour) each."""
        return cls(model, alpha, tuple(n for n, _ in classes), tuple(color for _, color in classes))

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`."""
        colors = self.colors or (None,) * self.num_classes
        own: dict[str, Any] = {}
        if self.preprocessing:
            own["preprocessing"] = asdict(self.preprocessing)
        if self.temperature != 1:
            own["temperature"] = self.temperature
        return {
            "model": self.model,
            "num_classes": self.num_classes,
            "alpha": self.alpha,
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(self.class_names, colors, strict=True)
            ],
            **own,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> NetworkInfo:
        """Read what `to_json` made.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is something else.
        """
        names = [entry["name"] for entry in facts["classes"]]
        colors = [entry["color"] for entry in facts["classes"]]
        own = facts.get("preprocessing")
        return cls(
            _text(facts["model"]),
            _alpha(facts["alpha"]),
            tuple(map(_text, names)),
            () if None in colors else tuple(map(_color, colors)),
            None if own is None else Preprocessing.checked(**own),
            checked_temperature(facts.get("temperature", 1.0)),
        )

    @classmethod
    def from_metadata(cls, text: str) -> NetworkInfo | None:
        """Read what `fassd train` writes beside weights; None if that says nothing about a network.

        Raises:
            ValueError: the text cannot be read.
        """
        try:
            facts = json.loads(text)
            if facts.get("network") is not None:
                found = cls.from_json(facts["network"])
            elif "recipe" in facts and "data" in facts:  # runs that stored no colours
                recipe, names = facts["recipe"], map(_text, facts["data"]["classes"])
                found = cls(_text(recipe["model"]), _alpha(recipe["alpha"]), tuple(names))
            else:
                return None
            _whole(found.num_classes, 1, 2**16)
            return found
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error!s:.80}") from error


def read_info(path: str | os.PathLike[str]) -> NetworkInfo | None:
    """Facts that a file of weights holds about its network; None without any, or if unreadable.

    Raises:
        ValueError: the file holds facts that cannot be understood.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    # Here, so that the networks can be used where only PyTorch is installed.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("fassd")
    except (SafetensorError, OSError):  # loading the weights reports what is wrong
        return None
    try:
        return None if text is None else NetworkInfo.from_metadata(text)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata cannot be understood ({error})") from error


def info_of(network: nn.Module) -> NetworkInfo | None:
    """Facts known about a network, or about the one inside a wrapper; None if there are none.

    The classes are unknown if their number differs from the network's own.
    """
    parts = list(network.modules())
    found = next((vars(part)[ATTRIBUTE] for part in parts if ATTRIBUTE in vars(part)), None)
    if found is not None:
        pictures = preprocessing_of(network)
        found = replace(found, preprocessing=None if pictures == OURS else pictures)
    counts = (part.num_classes for part in parts if isinstance(part, FASSDNet))
    if found is None or next(counts, found.num_classes) == found.num_classes:
        return found
    return replace(found, class_names=(), colors=())


def remember(network: nn.Module, found: NetworkInfo | None) -> None:
    """Store on a network what the file of all its weights says, except for what it was built as."""
    if found is not None and found.preprocessing is not None:
        for part in network.modules():
            if isinstance(part, (Encoder, FASSDNet)):
                part.__dict__["preprocessing"] = found.preprocessing
    own = info_of(network)
    if own is not None:
        told = found or NetworkInfo(own.model)
        found = replace(
            own,
            class_names=told.class_names,
            colors=told.colors,
            temperature=told.temperature,
        )
    heads = (getattr(part, "finalConv", None) for part in network.modules())
    setattr(next(filter(None, heads), network), ATTRIBUTE, found)


def temperature_of(network: nn.Module) -> float:
    """Divisor of a network's logits before probabilities are computed; 1 by default."""
    found = (vars(part)[ATTRIBUTE] for part in network.modules() if ATTRIBUTE in vars(part))
    info = next(found, None)
    return 1.0 if info is None else info.temperature


def set_temperature(network: nn.Module, temperature: float) -> None:
    """Set a network's temperature.

    Raises:
        ValueError: the temperature is not a finite number above 0.
    """
    info = info_of(network) or NetworkInfo(type(network).__name__)
    remember(network, replace(info, temperature=checked_temperature(temperature)))


def checked_temperature(value: Any) -> float:
    """Return `value` as a temperature.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"temperature must be a finite number above 0, got {value!r:.40}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.40} is not a name (text that is not empty)")
    return value


def _alpha(value: Any) -> int:
    return _whole(value, 1, 2**16)


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a whole number from {low} to {high}")
    return value


def _color(value: Any) -> Color:
    red, green, blue = value
    return _whole(red, 0, 255), _whole(green, 0, 255), _whole(blue, 0, 255)
