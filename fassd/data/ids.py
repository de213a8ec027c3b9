"""From a network's labels back to the ids of a dataset's masks, as benchmark servers want them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fassd.data.card import CARDS, CardError
from fassd.data.cardfile import load_card, shipped_cards
from fassd.io.palette import IGNORE, classes_of, labels_by_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ClassIds:
    """The ids that a card's masks have for its classes.

    Attributes:
        card: name and file of the card.
        names: names of the classes.
        ids: id of each class, the first one if a mask may have several.
        ignored: the first id without a class, if the card names one, else `IGNORE`.
    """

    card: str
    names: tuple[str, ...]
    ids: tuple[int, ...]
    ignored: int = IGNORE

    def of(self, network: nn.Module) -> npt.NDArray[Any]:
        """The id of every label of a network, (256,) uint8 or uint16; `ignored` for all others.

        Classes are matched by name if the network knows its classes' names, else by position.

        Raises:
            ValueError: the network's classes are not those of the card.
        """
        try:
            order = labels_by_name(network, self.names)
            count = len(classes_of(network))
            if count != len(self.names):
                raise ValueError(f"the network has {count} classes, the card {len(self.names)}")
        except ValueError as error:
            raise ValueError(f"no ids of {self.card}: {error}") from error
        table = np.full(256, self.ignored)
        table[: len(self.ids)] = [self.ids[place] for place in order or range(len(self.ids))]
        return table.astype(np.uint8 if table.max() < 256 else np.uint16)


def read_ids(data: str | os.PathLike[str]) -> ClassIds:
    """Read the ids of a card, whose pictures and masks need not exist.

    Args:
        data: name of a shipped card, a card's YAML file, or a folder, as in `load_card`.

    Raises:
        CardError: there is no such card, it contains an error, or its masks have no ids.
    """
    text = os.fspath(data)
    if text in shipped_cards():
        card = load_card(text, CARDS)
    elif os.path.isdir(text):
        card = load_card(text)
    else:
        card = load_card(text, Path(text).parent)
    codes = [masks.code for masks in card.masks if masks.code.kind == "ids"]
    if not codes:
        kinds = ", ".join(dict.fromkeys(masks.code.kind for masks in card.masks))
        raise CardError(f"{card.named}: its masks have no ids (values: {kinds})")
    first: dict[int, int] = {}
    for value, label in codes[0].labels.items():
        first.setdefault(label, value)
    ignored = first.pop(IGNORE, IGNORE)
    ids = tuple(first[label] for label in range(card.num_classes))
    return ClassIds(card.named, tuple(card.class_names), ids, ignored)
