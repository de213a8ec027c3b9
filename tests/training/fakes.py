"""Small data sets, with files and without, and a network without training."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from fassd.io.images import ImageError, write_image
from fassd.io.palette import CITYSCAPES
from fassd.synth import render_street

CLASSES = 4
CARD = """
name: streets
classes: [{classes}]
splits: {{val: val}}
images: "{{split}}/{{name}}.png"
masks: {{files: "{{split}}/labels/{{name}}.png", values: index, ignore: [255]}}
"""


class FakeDataset:
    """Noise with labels, of differing sizes.

    Args:
        broken: the pictures that do not read.
        shift: is added to the labels.
        enlarged: how much larger the pictures are.
        ignored: share of the labels that is 255.
    """

    def __init__(self, length=5, broken=(), num_classes=CLASSES, shift=0, enlarged=1, ignored=0.1):
        self.card = SimpleNamespace(
            num_classes=num_classes,
            class_names=tuple(f"kind {i}" for i in range(num_classes)),
            covers=(),
        )
        self.length = length
        self.broken = broken
        self.shift = shift
        self.enlarged = enlarged
        self.ignored = ignored

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        path = Path(f"picture{index}.png")
        if index in self.broken:
            raise ImageError(f"{path}: is damaged or truncated")
        rng = np.random.default_rng(index)
        size = (self.enlarged * (30 + index), self.enlarged * (41 + 2 * index))
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        labels = (image[..., 0] // (256 // CLASSES)).astype(np.uint8) + np.uint8(self.shift)
        labels[rng.random(size) < self.ignored] = 255
        return SimpleNamespace(image=image, labels=labels, path=path)


def random_network(classes=CLASSES, **settings):
    """One convolution of which every output looks at its surroundings."""
    torch.manual_seed(3)
    return nn.Conv2d(3, classes, 3, padding=1, **settings)


def street(index):
    """A generated scene and its labels, of which the upper rows are left out."""
    scene, labels = render_street(64, 128, seed=index)
    labels[:3] = 255
    return scene, labels


def write_card(folder, classes):
    """A card of (name, color) classes, split "val", whose masks lie in val/labels."""
    entries = (f"{{name: {name}, color: {list(color)}}}" for name, color in classes)
    folder.mkdir(exist_ok=True)
    (folder / "card.yaml").write_text(CARD.format(classes=", ".join(entries)))


def write_streets(folder, count):
    """A data set of `count` generated scenes, with its card."""
    write_card(folder, CITYSCAPES)
    for index in range(count):
        scene, labels = street(index)
        write_image(folder / f"val/scene{index}.png", scene)
        write_image(folder / f"val/labels/scene{index}.png", labels)
