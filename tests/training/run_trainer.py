"""What one process of test_loop does: ``run_trainer.py DATA FOLDER kill STEP | settings JSON | slow
JSON``

With settings, in float64; slow takes its time before each step.."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from training.streets import double_precision, feed_doubles, small_recipe

from fassd.data import load_card
from fassd.training.distributed import process_group
from fassd.training.loop import Trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, what, value = sys.argv[1:]
    changes = {} if what == "kill" else json.loads(value)
    double = double_precision() if what == "settings" else contextlib.nullcontext()
    with process_group("cpu") as device, double:
        trainer = Trainer(small_recipe(**changes), load_card(data), Path(folder), device=device)
        if what == "settings":
            feed_doubles(trainer)
        backward = trainer._backward

        def dying(*arguments):
            if what == "kill" and trainer.step == int(value) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "slow":
                time.sleep(0.5)
            return backward(*arguments)

        trainer._backward = dying
        trainer.run()
