"""Small datasets on disk, written from their cards."""

from pathlib import Path

import numpy as np
from PIL import Image

from fassd.data.cardfile import load_card
from fassd.data.patterns import HOLE, fill
from fassd.io.palette import IGNORE

SIZE = 6, 8


def save(path, array):
    """Write an array as a picture, making folders; near-lossless where it is a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    jpeg = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(array).save(path, **jpeg)
    return path


def encode(labels, code):
    """Labels as a mask whose code is `code`; each label as the first id or colour for it."""
    if code.kind == "threshold":
        return np.where(labels == 1, 255, 0).astype(np.uint8)
    first = {label: key for key, label in reversed(code.labels.items())}
    keys = np.vectorize(first.__getitem__)(labels)
    if code.kind == "colors":
        return np.stack([keys >> 16, keys >> 8 & 255, keys & 255], -1).astype(np.uint8)
    return keys.astype(np.uint8 if max(code.labels) < 256 else np.uint16)


def write_tree(card, root, count=2, block=0, seed=0):
    """Fill `root` with the pairs of each split as the card wants them, masks by its `block`-th way.

    There are `count` of them, or those that the card names.

    Returns the labels by path of the picture.
    """
    rng = np.random.default_rng(seed)
    masks = card.masks[block]
    labels = {}
    for name, split in card.splits.items():
        stems = [Path(own).stem for own in split.names or ()]
        stems = stems or [f"{name}_{number}" for number in range(count)]
        for stem in stems:
            holes = {hole: stem for hole, _ in HOLE.findall(split.images)}
            holes = {**holes, "city": "bonn", "name": stem, "split": split.folder}
            image = Path(root, fill(split.images, holes))
            known = [*range(card.num_classes), *[IGNORE] * (IGNORE in masks.code.labels.values())]
            labels[image] = rng.choice(known, SIZE).astype(np.uint8)
            save(image, rng.integers(0, 256, (*SIZE, 3), np.uint8))
            save(Path(root, fill(masks.files, holes)), encode(labels[image], masks.code))
        if split.list_file:
            lines = [f"/old/{stem}.png /old/x.png" if split.column else stem for stem in stems]
            Path(root, split.list_file).parent.mkdir(parents=True, exist_ok=True)
            Path(root, split.list_file).write_text("\n".join(lines) + "\n")
    return labels


CARD = """
name: toy
classes:
  - {name: floor, color: [10, 20, 30], ids: 1}
  - {name: wall, color: [40, 50, 60], ids: [2, 300]}
  - {name: lamp, color: [70, 80, 90], ids: 3}
splits: {train: train, val: val}
images: "{split}/{name}.png"
masks:
  files: "{split}_masks/{name}.png"
  values: ids
  ignore: [0]
"""


def write_card(folder, replace=None):
    """A card file, `CARD` with some pieces replaced."""
    text = CARD
    for old, new in (replace or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "card.yaml"
    path.write_text(text)
    return path


def toy(folder, count=2, replace=None):
    """A card with its tree."""
    card = load_card(write_card(folder, replace))
    write_tree(card, folder, count)
    return card
