"""Class names and colours, and the two pictures made of them: label map and overlay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

IGNORE = 255
"""Label of a pixel that belongs to no class; drawn black."""

NAMED = 6
"""Number of names of a list that an error spells out; of longer lists it only gives the count."""


class LabelClass(NamedTuple):
    """One class: its name and its RGB colour."""

    name: str
    color: tuple[int, int, int]


CITYSCAPES = (
    LabelClass("road", (128, 64, 128)),
    LabelClass("sidewalk", (244, 35, 232)),
    LabelClass("building", (70, 70, 70)),
    LabelClass("wall", (102, 102, 156)),
    LabelClass("fence", (190, 153, 153)),
    LabelClass("pole", (153, 153, 153)),
    LabelClass("traffic light", (250, 170, 30)),
    LabelClass("traffic sign", (220, 220, 0)),
    LabelClass("vegetation", (107, 142, 35)),
    LabelClass("terrain", (152, 251, 152)),
    LabelClass("sky", (70, 130, 180)),
    LabelClass("person", (220, 20, 60)),
    LabelClass("rider", (255, 0, 0)),
    LabelClass("car", (0, 0, 142)),
    LabelClass("truck", (0, 0, 70)),
    LabelClass("bus", (0, 60, 100)),
    LabelClass("train", (0, 80, 100)),
    LabelClass("motorcycle", (0, 0, 230)),
    LabelClass("bicycle", (119, 11, 32)),
)
"""The 19 Cityscapes training classes; the position is the trainId."""


def class_names(num_classes: int) -> list[str]:
    """Names of `num_classes` classes: Cityscapes' for 19, else "class 0", "class 1", ..."""
    if num_classes == len(CITYSCAPES):
        return [info.name for info in CITYSCAPES]
    return [f"class {index}" for index in range(num_classes)]


def palette(num_classes: int = 19) -> npt.NDArray[np.uint8]:
    """Colours of `num_classes` classes, (num_classes, 3) uint8 RGB, no two alike and none black.

    19 classes get the Cityscapes colours. For any other count the colours only depend on the class
    index: three bits of (index + 1) at a time go to red, green and blue from the highest bit down,
    so neighbouring indices lie far apart and 16,777,215 classes stay distinct.

    Raises:
        ValueError: `num_classes` is not in 1 .. 16,777,215.
    """
    if not 1 <= num_classes < 2**24:
        raise ValueError(f"num_classes must be from 1 to {2**24 - 1:,}, got {num_classes}")
    if num_classes == len(CITYSCAPES):
        return np.array([info.color for info in CITYSCAPES], np.uint8)
    number = np.arange(1, num_classes + 1)[:, None]
    channel = np.arange(3)
    colors = np.zeros((num_classes, 3), np.uint8)
    for triple in range(8):
        bit = number >> (3 * triple + channel) & 1
        colors |= (bit << (7 - triple)).astype(np.uint8)
    return colors


def default_classes(num_classes: int) -> tuple[LabelClass, ...]:
    """`class_names` with the colours of `palette`."""
    return _classes(class_names(num_classes), palette(num_classes).tolist())


def classes_of(network: nn.Module) -> tuple[LabelClass, ...]:
    """Names and colours of a network's classes, in the order of its labels.

    They come from the network's file, of weights or of `fassd export`, if it has them; otherwise
    they are `default_classes`, of 19 classes for a module without `num_classes`.
    """
    from fassd.models import info_of

    info = info_of(network)
    if info is None or not info.class_names:
        return default_classes(getattr(network, "num_classes", len(CITYSCAPES)))
    return _classes(info.class_names, info.colors or palette(info.num_classes).tolist())


def labels_by_name(network: nn.Module, data: Sequence[str]) -> list[int] | None:
    """The data's label of each of a network's classes; None if they are the same.

    They also count as the same if the network does not know the names of its classes, or only
    numbers.

    Args:
        network: any network; `classes_of` gives its names.
        data: names of the data's classes, the same as the network's in any order.

    Raises:
        ValueError: the names differ; the message says how.
    """
    from fassd.models import info_of

    info = info_of(network)
    own, data = list(info.class_names) if info is not None else [], list(data)
    if not own or own == data:
        return None
    if sorted(own) == sorted(data) and len(set(data)) == len(data):
        return [data.index(name) for name in own]
    numbered = [f"class {index}" for index in range(len(data))]
    if own == numbered:
        return None
    sides = (("network", own, data), ("data", data, own))
    differences = [
        f"only the {side} has {some_of([name for name in one if name not in other])}"
        for side, one, other in sides
        if not set(one) <= set(other)
    ]
    what = "the network's classes are not those of the data"
    if len(own) != len(data):
        what = f"the network has {len(own)} classes, but the data's labels have {len(data)}"
    raise ValueError(f"{what}: {'; '.join(differences) or 'a name stands twice'}")


def some_of(names: Sequence[str]) -> str:
    """Names for an error, which spells out the first `NAMED` of them."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def _classes(names: Sequence[str], colors: Sequence[Sequence[int]]) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(name, (r, g, b)) for name, (r, g, b) in zip(names, colors, strict=True))


def colorize(
    labels: npt.ArrayLike, colors: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Paint a label map; `IGNORE` is drawn black, unless it is the index of a class.

    Args:
        labels: (H, W) integers.
        colors: (classes, 3) uint8 RGB, as from `palette`; the Cityscapes colours by default.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: `labels` is not two-dimensional and integer, or has an index without a colour.
    """
    labels = _checked_labels(labels)
    colors = palette() if colors is None else colors
    table = np.zeros((max(int(labels.max(initial=0)), IGNORE) + 1, 3), np.uint8)
    shared = min(len(table), len(colors))
    table[:shared] = colors[:shared]
    strays = (labels >= len(colors)) & (labels != IGNORE) | (labels < 0)
    if strays.any():
        raise ValueError(
            f"labels holds {labels[strays].flat[0]}, but there are colours for 0 to "
            f"{len(colors) - 1} (and {IGNORE} for pixels to ignore)"
        )
    return table[labels]


def overlay(
    image: npt.NDArray[np.uint8],
    labels: npt.ArrayLike,
    opacity: float = 0.5,
    colors: npt.NDArray[np.uint8] | None = None,
    certainty: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Lay the coloured label map over the picture; ignored pixels keep the picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        opacity: strength of the colours, from 0, only the picture, to 1, only the colours.
        colors: as in `colorize`.
        certainty: (H, W) uint8, 255 for certain; where it is low the colours fade.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: `opacity` is outside 0 .. 1, the sizes differ, or as in `colorize`.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be from 0 to 1, got {opacity}")
    labels = _checked_labels(labels)
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 of shape {(*labels.shape, 3)} to fit the labels, "
            f"got {image.dtype} of shape {image.shape}"
        )
    painted = colorize(labels, colors)
    # Fixed point in 1/256: exact at both ends, and 255 * 256 + 128 still fits 16 bits.
    weight: np.uint16 | npt.NDArray[np.uint16] = np.uint16(round(opacity * 256))
    if certainty is not None:
        weight = ((int(weight) * certainty.astype(np.uint32) + 127) // 255).astype(np.uint16)
        weight = weight[..., None]
    mixed = image * (np.uint16(256) - weight) + painted * weight + np.uint16(128)
    result = (mixed >> 8).astype(np.uint8)
    if colors is None or len(colors) <= IGNORE:
        np.copyto(result, image, where=(labels == IGNORE)[..., None])
    return result


def leave_out(
    labels: npt.NDArray[Any], certainty: npt.NDArray[np.uint8], least: float | None
) -> npt.NDArray[Any]:
    """Labels, with `IGNORE` where the certainty, of 255, is below `least`, of 1; None for none."""
    if least is not None:
        labels[certainty < 255 * least] = IGNORE
    return labels


Draw = Callable[..., npt.NDArray[np.uint8]]
"""A function of a picture, its labels and, if available, their certainty."""


def drawing(view: str, opacity: float, colors: npt.NDArray[np.uint8]) -> Draw:
    """A function that draws a picture, (H, W, 3) uint8 RGB, from a picture and its labels.

    Args:
        view: view to draw: "overlay", "labels", "side-by-side": the picture to the left of its
            labels, or "trainids": the labels themselves, (H, W).
        opacity: strength of the colours in the overlay.
        colors: (classes, 3) uint8 RGB.

    Raises:
        ValueError: the view is another.
    """
    views: dict[str, Draw] = {
        "overlay": lambda image, labels, *certainty: overlay(
            image, labels, opacity, colors, *certainty
        ),
        "labels": lambda _, labels, *certainty: colorize(labels, colors),
        "side-by-side": lambda image, labels, *certainty: np.hstack(
            [image, colorize(labels, colors)]
        ),
        "trainids": lambda _, labels, *certainty: labels,
    }
    if view not in views:
        raise ValueError(f"view must be one of {', '.join(views)}, got {view!r}")
    return views[view]


def _checked_labels(labels: npt.ArrayLike) -> npt.NDArray[np.integer]:
    array = np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape (H, W), got {array.dtype} of shape {array.shape}"
        )
    return array
