"""Every network trained alike on generated streets, and scored: ``python -m benchmarks.ablation``.

A short training, the same for all: a fixed number of steps on the same crops from random weights.
It shows that every row trains and how the rows compare afterwards; not what they can reach, and
nothing about Cityscapes. A run that was stopped continues: trained networks are kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import RESULTS, ROOT, write_json
from fassd.bench.machine import environment
from fassd.io.files import replacing
from fassd.models import VARIANTS, list_models
from fassd.synth import VERSION

FOLDER = RESULTS / "synthetic"
TRAINING, HELD_OUT = 1600, 100
SIZE = "512x1024"
CROP = (256, 512)
CROP_TEXT = "x".join(map(str, CROP))
BATCH = 4
PANEL = ("fc_hardnet_70", "fassd_net", "fassd_net_l1", "fassd_net_l2")
SCENES = "3,41,77"
CLOCKS = ("cpu_seconds", "seconds")
"""Costs of a training: processor time, and wall-clock time."""


def fassd(*arguments: str | Path) -> None:
    """Run a command of ours; its errors are shown as they come.

    Raises:
        CalledProcessError: it failed.
    """
    to_its_end([sys.executable, "-m", "fassd", *map(str, arguments)])


def to_its_end(command: Sequence[str]) -> None:
    """Run a command. Ctrl-C, which it gets as well, leaves it the time that it takes to save.

    Raises:
        CalledProcessError: it failed.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def prepare(work: Path) -> Path:
    """The generated streets, which are drawn if they do not exist yet."""
    streets = work / "streets"
    for split, count in (("train", TRAINING), ("val", HELD_OUT)):
        if not (streets / f"{split}.done").exists():
            fassd("synth", streets, "--split", split, "--count", str(count), "--size", SIZE)
            (streets / f"{split}.done").touch()
    return streets


def trained(
    run: Path, *arguments: str | Path, threads: int | None = None
) -> tuple[Path, dict[str, float]]:
    """The last weights of a training, and its clocks; it is started or continued if necessary.

    Args:
        run: folder to train into.
        arguments: arguments of `fassd train`, besides the folder.
        threads: number of PyTorch's threads; None for its own choice.

    Raises:
        CalledProcessError: it was stopped, or failed.
    """
    partial, clock = run.with_name(f"{run.name}.partial"), run.with_name(f"{run.name}.spent.json")
    spent = json.loads(clock.read_text()) if clock.is_file() else dict.fromkeys(CLOCKS, 0.0)
    if not run.exists():
        if (partial / "checkpoint.safetensors").exists():
            arguments = ("--resume",)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            spent = dict.fromkeys(CLOCKS, 0.0)
        own = ("--threads", str(threads)) if threads else ()
        before = clocks()
        try:
            fassd("train", "-o", partial, *arguments, *own)
        finally:
            spent = {name: spent[name] + now - before[name] for name, now in clocks().items()}
            write_json(clock, spent)
        partial.rename(run)
    return run / "last.safetensors", spent


def clocks() -> dict[str, float]:
    """Processor time of all commands that have ended, and the time of day."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = (usage.ru_utime + usage.ru_stime, time.perf_counter())
    return dict(zip(CLOCKS, times, strict=True))


def scored(file: Path, *arguments: str | Path) -> dict[str, Any]:
    """The result of `fassd val`, without the confusion matrix; from `file` if it exists."""
    if not file.exists():
        fassd("val", *arguments, "--json", file)
    found = json.loads(file.read_text())
    kept = ("miou", "pixel_accuracy", "mean_accuracy", "pictures", "classes")
    return {key: found[key] for key in kept}


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none if it does not exist."""
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def draw_panel(work: Path, streets: Path, weights: Mapping[str, Path], folder: Path) -> str:
    """Draw the trained networks' predictions for held-out scenes; return the picture's name."""
    networks: list[str] = []
    for name in PANEL:
        networks += ["--model", f"{name}={weights[name]}"]
    drawn = work / "panel.png"
    fassd("compare", "--data", streets, "--index", SCENES, *networks, "--width", "320", "-o", drawn)
    picture = folder / "panel.jpg"
    with Image.open(drawn) as image, replacing(picture) as file:
        image.convert("RGB").save(file, format="JPEG", quality=88)
    return picture.name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "ablation")
    parser.add_argument("--output", "-o", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args(arguments)
    streets = prepare(options.work)
    length = ("--steps", str(options.steps), "--batch", str(BATCH))
    crop = ("-s", f"crop={list(CROP)}", "-s", "val_every=0", "-s", "val_pictures=4")
    rows, weights = [], {}
    for name in (name for name in list_models() if not VARIANTS[name].by_analogy):
        run = f"{name}-{options.steps}"
        own = ("-p", "demo", "-d", streets, "-m", name, *length, *crop)
        weights[name], _ = trained(options.work / "runs" / run, *own)
        file = options.work / f"{run}.val.json"
        scores = scored(file, "--data", streets, "-m", name, "--weights", weights[name])
        rows.append({"model": name, **scores})
        print(f"{name}: mIoU {100 * scores['miou']:.1f}%", flush=True)
    content = {
        "environment": environment(),
        "recipe": {
            "command": f"python -m benchmarks.ablation --steps {options.steps}",
            "preset": "demo",
            "steps": options.steps,
            "batch": BATCH,
            "crop": CROP,
            "start": "random",
            "seeds": 1,
            "frames": TRAINING,
            "generator": VERSION,
        },
        "note": (
            f"Synthetic scores: all networks trained alike from random weights, {options.steps} "
            f"steps of {BATCH} crops of {CROP_TEXT} out of {TRAINING} generated frames, one seed, "
            f"scored on {HELD_OUT} held-out frames of {SIZE}. That is far from converged, most "
            "dilations of DAPF are inert at that crop, and nothing about Cityscapes follows."
        ),
        "accuracy": rows,
        "panel": draw_panel(options.work, streets, weights, options.output),
    }
    write_json(options.output / "ablation.json", content)


if __name__ == "__main__":
    main()
