"""A tiny Cityscapes tree of generated scenes, and a recipe that trains on it in a second or two."""

import csv
import errno
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file

from fassd.data import SegmentationDataset, load_card
from fassd.evaluation import evaluate as evaluation
from fassd.io.images import write_image
from fassd.io.palette import CITYSCAPES
from fassd.synth import render_street
from fassd.synth.write import LABEL_IDS
from fassd.training import state as files
from fassd.training.loop import Trainer
from fassd.training.recipe import load_recipe

SIZE = (64, 128)


@cache
def scene(index, size=SIZE):
    return render_street(*size, seed=index)


def write_cityscapes(folder, train=6, val=3, size=SIZE):
    """`train` and `val` scenes as Cityscapes has them; returns the card."""
    for split, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        for number in numbers:
            image, labels = scene(number, size)
            stem = f"town/town_{number:06d}_000019"
            write_image(folder / f"leftImg8bit/{split}/{stem}_leftImg8bit.png", image)
            write_image(folder / f"gtFine/{split}/{stem}_gtFine_labelIds.png", LABEL_IDS[labels])
    return load_card(folder)


COARSE = """
name: coarse
classes:
  - {name: flat, covers: [road, sidewalk, terrain]}
  - {name: built, covers: [building, wall, fence]}
  - sky
  - {name: other, covers: [pole, traffic light, traffic sign, vegetation, person, rider, car, truck,
      bus, train, motorcycle, bicycle]}
splits: {train: train, val: val}
images: "{split}/{name}.png"
masks: {files: "{split}/masks/{name}.png", values: index, ignore: [255]}
"""


def write_coarse(folder, train=4, val=2):
    """Generated scenes whose masks tell four groups of Cityscapes' classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.yaml").write_text(COARSE)
    card = load_card(folder)
    table = np.full(256, 255, np.uint8)
    for label, names in enumerate(card.covers):
        table[[info.name in names for info in CITYSCAPES] + 237 * [False]] = label
    for split, numbers in (("train", range(20, 20 + train)), ("val", range(120, 120 + val))):
        for number in numbers:
            image, labels = scene(number)
            write_image(folder / f"{split}/s{number}.png", image)
            write_image(folder / f"{split}/masks/s{number}.png", table[labels])
    return load_card(folder)


def small_recipe(**changes):
    settings = {
        "model": "fassd_net_l2",
        "crop": list(SIZE),
        "steps": 6,
        "batch": 2,
        "warmup": 0,
        "min_pixels": 256,
        "workers": 0,
        "log_every": 2,
        "val_every": 3,
        "save_every": 2,
        "precision": "float32",
        "seed": 5,
    }
    return load_recipe("demo").replace(**{**settings, **changes})


class Recorder:
    """A reporter that remembers."""

    def __init__(self):
        self.losses, self.scores, self.messages = {}, {}, []

    def started(self, recipe, step):
        self.first = step

    def stepped(self, step, loss, learning_rate):
        self.losses[step] = loss

    def validating(self, done, total):
        assert 1 <= done <= total

    def validated(self, step, evaluations, best):
        self.scores[step] = (evaluations[0].scores.miou, best)

    def message(self, text):
        self.messages.append(text)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_run(one, other):
    """The same bytes of logs, the same bits of every tensor that is kept."""
    for name in ("log.csv", "val.csv", "recipe.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.safetensors", "best.safetensors", "checkpoint.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


def resume(card, folder, recipe=None):
    """Go on with a run to its end; what it reported."""
    recorder = Recorder()
    Trainer(recipe, card, folder, resume=True, reporter=recorder).run()
    return recorder


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def at_step(trainer, number, act, after=False):
    """Do something right before or after a step, counted from 1."""
    take = trainer._train_step

    def acting(*arguments):
        if trainer.step == number - 1 and not after:
            act()
        take(*arguments)
        if trainer.step == number and after:
            act()

    trainer._train_step = acting


MOMENTS = (
    "loading", "forward", "backward", "optimizer", "averaging", "validation", "writing",
)  # fmt: skip


def interrupt(trainer, moment, step, monkeypatch, number=signal.SIGINT):
    """Let a signal come to this process once, at this moment of the step (of a run with `ema`)."""
    at = {
        "loading": (SegmentationDataset, "__getitem__"),
        "forward": (trainer.learner, "_forward"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (trainer.learner.optimizer, "step"),
        "averaging": (trainer.learner.average, "update_parameters"),
        "validation": (evaluation, "_predicted"),
        "writing": (files, "_write"),
    }
    owner, name = at[moment]
    done = getattr(owner, name)
    # What is loaded and computed before the step is counted belongs to the next one.
    before = step if moment in ("validation", "writing") else step - 1

    def interrupted(*arguments, **settings):
        nonlocal before
        if trainer.step == before:
            before = None
            os.kill(os.getpid(), number)
        return done(*arguments, **settings)

    monkeypatch.setattr(owner, name, interrupted)


@contextmanager
def double_precision():
    """Trainers made inside are to be given to `feed_doubles`.

    Batch norm over a few pixels makes much of rounding: float32 gradients of the same network
    differ by 1%, float64 ones by 1e-13.
    """
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def feed_doubles(trainer):
    """Let a trainer of float64 weights see float64 pictures."""
    batches = trainer._batches

    def doubled():
        for parts in batches():
            yield [replace(part, images=part.images.double()) for part in parts]

    trainer._batches = doubled
    return trainer
