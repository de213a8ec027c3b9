"""One list of classes for several data sets: how each card's classes map to the list.

A card's class is one class of the list or, if the card says so (`covers`), a group of them:
CamVid's "car" is car, truck, bus or train of Cityscapes. A network with the list's classes learns
from a pixel of a group that one of these is right, and is scored by the sum of their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fassd.data.card import Card, CardError
from fassd.io.palette import IGNORE, LabelClass, some_of

Members = tuple[int, ...]
"""Positions of classes in a list, at least one."""


@dataclass(frozen=True)
class LabelSpace:
    """The list of classes that a network learns, and cards whose labels use that list.

    Attributes:
        classes: classes of the list.
        groups: members of the labels after the classes: label len(classes) + n stands for
            groups[n].
        cards: the given cards with the classes of the list, and with masks whose labels are the
            list's classes and groups.
        members: for each card, the positions in the list of each of its own classes.
    """

    classes: tuple[LabelClass, ...]
    groups: tuple[Members, ...]
    cards: tuple[Card, ...]
    members: tuple[tuple[Members, ...], ...]

    @property
    def class_names(self) -> list[str]:
        return [info.name for info in self.classes]


def label_space(cards: Sequence[Card]) -> LabelSpace:
    """Make a label space of the first card's classes, with the labels of all cards.

    Raises:
        CardError: there is no card; a card's class is not in the list; or there are more classes
            and groups than 8 bits can distinguish; the message names card and class.
    """
    if not cards:
        raise CardError("there must be at least one card")
    first = cards[0]
    members = [
        tuple((index,) for index in range(first.num_classes)),
        *(members_of(card, first.class_names, f"card {first.name!r}") for card in cards[1:]),
    ]
    several = dict.fromkeys(group for found in members for group in found if len(group) > 1)
    if first.num_classes + len(several) > IGNORE:
        raise CardError(
            f"the {first.num_classes} classes of card {first.name!r} and the {len(several)} groups "
            f"of them in the other cards are more than {IGNORE} labels"
        )
    labels = {group: first.num_classes + number for number, group in enumerate(several)}
    relabelled = (
        _relabelled(card, first, [labels.get(group, group[0]) for group in found])
        for card, found in zip(cards, members, strict=True)
    )
    return LabelSpace(first.classes, tuple(several), tuple(relabelled), tuple(members))


def members_of(card: Card, names: Sequence[str], owner: str) -> tuple[Members, ...]:
    """The positions, in a list of class names, of each class of a card.

    Args:
        card: card whose classes are looked up; classes that have a name in the list are themselves.
        names: list of class names.
        owner: owner of the list, for errors.

    Raises:
        CardError: the list lacks a name; the message names card and class.
    """
    own = card.class_names
    same = sorted(own) == sorted(names)
    covers = card.covers if card.covers and not same else tuple((name,) for name in own)
    for name, covered in zip(own, covers, strict=True):
        for missing in (part for part in covered if part not in names):
            is_it = f"is {missing!r}" if missing == name else f"covers {missing!r}"
            raise CardError(
                f"{card.named}: its class {name!r} {is_it}, which is none of "
                f"the {len(names)} classes of {owner}: {some_of(names)}"
                + ("" if card.covers else " (the key 'covers' of a class says what it is there)")
            )
    return tuple(tuple(names.index(part) for part in covered) for covered in covers)


def _relabelled(card: Card, first: Card, labels: Sequence[int]) -> Card:
    """A card with the classes of the first, in whose masks label n becomes labels[n]."""
    if list(labels) == list(range(card.num_classes)):
        return card

    def label(own: int) -> int:
        return own if own == IGNORE else labels[own]

    masks = tuple(replace(block, code=block.code.relabelled(label)) for block in card.masks)
    return replace(card, classes=first.classes, covers=(), masks=masks)
