"""One list of classes for several data sets: how the classes of each card lie in it.

A card's class is one class of the list or, where the card says so (`covers`), a group of them:
"car" of CamVid is car, truck, bus or train of Cityscapes. A network of the list's classes learns
from a pixel of a group that one of them is right, and is scored by their probabilities' sum.
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
    """The list that a network learns, and the cards whose labels are written in it.

    Attributes:
        classes: those of the list.
        groups: the members of the labels behind the classes: label len(classes) + n stands for
            groups[n].
        cards: as they were given, but for their classes, which are the list's, and their masks'
            labels, which are the list's classes and groups.
        members: for each card, what each of its own classes is in the list.
    """

    classes: tuple[LabelClass, ...]
    groups: tuple[Members, ...]
    cards: tuple[Card, ...]
    members: tuple[tuple[Members, ...], ...]

    @property
    def class_names(self) -> list[str]:
        return [info.name for info in self.classes]


def label_space(cards: Sequence[Card]) -> LabelSpace:
    """The classes of the first card as the list, and in it the labels of all.

    Raises:
        CardError: no card; a card's class is not in the list, or there are more classes and groups
            than 8 bits tell apart; the message names card and class.
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
    """The positions, in a list of class names, of what each class of a card is there.

    Args:
        card: whose classes; they are themselves where they have the list's names.
        names: the list.
        owner: whose list that is, for errors.

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
    """A card with the first one's classes, whose masks' label n becomes labels[n]."""
    if list(labels) == list(range(card.num_classes)):
        return card

    def label(own: int) -> int:
        return own if own == IGNORE else labels[own]

    masks = tuple(replace(block, code=block.code.relabelled(label)) for block in card.masks)
    return replace(card, classes=first.classes, covers=(), masks=masks)
