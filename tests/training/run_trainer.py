"""What one process of the tests does: ``run_trainer.py DATA FOLDER kill STEP | all JSON``

all runs every recipe of {name: settings} in float64, then into a signal at every moment, into a
full disk after one, and into NaN in the validation of one process: starting processes takes longer
than the runs."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.nn.functional
from torch import nn
from training.streets import (
    MOMENTS,
    double_precision,
    feed_doubles,
    interrupt,
    no_space,
    small_recipe,
)

from fassd.data import load_card
from fassd.distributed import process_group, rank, world_size
from fassd.training import state as files
from fassd.training.loop import StoppedError, Trainer


class SyncedOnCPU(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm`, which runs on GPUs only, for processes with equal shares."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        pixels = world_size() * x.numel() / x.shape[1]
        mean = torch.distributed.nn.functional.all_reduce(x.sum((0, 2, 3))) / pixels
        centered = x - mean[:, None, None]
        squares = torch.distributed.nn.functional.all_reduce(centered.square().sum((0, 2, 3)))
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (pixels - 1), self.momentum)
        scale = self.weight / (squares / pixels + self.eps).sqrt()
        return centered * scale[:, None, None] + self.bias[:, None, None]


def synchronized(model):
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedOnCPU
    return model


def run_into_nan(card, folder):
    """The validation of the last process alone fails; all have to go on."""
    trainer = Trainer(small_recipe(steps=3, val_every=2), card, folder)

    def spoil(module, inputs, output):
        return output if module.training or trainer.step == 3 else output * float("nan")

    if rank() == world_size() - 1:
        trainer.learner.evaluated.register_forward_hook(spoil)
    assert trainer.run() is not None
    assert trainer.unscored == 1


def run_into_signals(card, folder):
    """One of the processes alone gets the signal; all have to stop, once it is saved."""
    recipe = small_recipe(val_every=2, val_pictures=2, save_every=100, accelerate=False)
    for number, moment in enumerate((*MOMENTS, "full disk")):
        trainer = Trainer(recipe, card, folder / moment)
        with pytest.MonkeyPatch.context() as patch:
            if rank() == (0 if moment == "writing" else number % 2):
                interrupt(trainer, "forward" if moment == "full disk" else moment, 2, patch)
            if moment == "full disk":
                patch.setattr(files, "_write", no_space)
                with pytest.raises((OSError, RuntimeError), match="could not write the checkpoint"):
                    trainer.run()
                continue
            with pytest.raises(StoppedError, match="stopped after step 2; saved in"):
                trainer.run()
        assert files.latest_state(folder / moment)[1]["step"] == 2


def run_all(card, folder, recipes, device):
    for name, settings in recipes.items():
        with double_precision(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("fassd.training.learner.synchronized", synchronized)
            feed_doubles(
                Trainer(small_recipe(**settings), card, folder / name, device=device)
            ).run()
    run_into_nan(card, folder / "nan")
    run_into_signals(card, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, what, value = sys.argv[1:]
    with process_group("cpu") as device:
        if what == "all":
            run_all(load_card(data), Path(folder), json.loads(value), device)
            sys.exit()
        trainer = Trainer(small_recipe(), load_card(data), Path(folder), device=device)
        backward = trainer.learner._backward

        def dying(*arguments):
            if trainer.step == int(value) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return backward(*arguments)

        trainer.learner._backward = dying
        trainer.run()
