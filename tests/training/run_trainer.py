"""What one process of test_loop does: ``run_trainer.py DATA FOLDER kill STEP | settings JSON``

With settings, in float64.."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from training.streets import double_precision, feed_doubles, small_recipe

from fassd.data import load_card
from fassd.training.distributed import process_group
from fassd.training.loop import Trainer

if __name__ == "__main__":
    data, folder, what, value = sys.argv[1:]
    changes = json.loads(value) if what == "settings" else {}
    double = double_precision() if what == "settings" else contextlib.nullcontext()
    with process_group("cpu") as device, double:
        trainer = Trainer(small_recipe(**changes), load_card(data), Path(folder), device=device)
        if what == "settings":
            feed_doubles(trainer)
        backward = trainer._backward

        def dying(*arguments):
            if what == "kill" and trainer.step == int(value) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return backward(*arguments)

        trainer._backward = dying
        trainer.run()
