"""FASSD-Net on few pictures: trained on 20 of electron microscopy, scored on 10 others.

    python -m benchmarks.membrane --root DIR

trains by the preset `membrane` on the card's `train` split, once for each seed, and scores the last
weights on its `test` split, at which nothing else looks. A finished seed is not trained again.
``--table`` writes the tables of `docs/own-data.md` from the committed results; ``--check`` tells
whether they differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import RESULTS, ROOT, refreshed, write_json
from benchmarks.ablation import fassd
from fassd.bench.machine import environment
from fassd.bench.markdown import markdown_table
from fassd.training.recipe import load_recipe

FILE = RESULTS / "membrane" / "membrane.json"
DOCUMENT = ROOT / "docs" / "own-data.md"
BEGIN, END = "<!-- membrane: python -m benchmarks.membrane --table -->\n", "<!-- /membrane -->\n"
NAME = "membrane"  # of the card and of the preset
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "pictures", "classes")


class Published(NamedTuple):
    """A score on pictures of the same challenge."""

    network: str
    score: str
    pictures: str
    source: str


MULTIRES = "Ibtehaz and Rahman, Neural Networks 121, 2020 (arXiv:1902.04049), table 3"
FOLDS = "the 30, five-fold cross validation"
PUBLISHED = (
    Published(
        "U-Net",
        "warping error 0.000353, Rand error 0.0382, pixel error 0.0611",
        "30 others, whose masks are not public; trained on all of the 30",
        "Ronneberger et al., MICCAI 2015 (arXiv:1505.04597), table 1",
    ),
    Published("U-Net", "IoU 87.4 ±0.7, of one class", FOLDS, MULTIRES),
    Published("MultiResUNet", "IoU 87.9 ±0.8, of one class", FOLDS, MULTIRES),
)


def train(seed: int, work: Path, root: Path) -> Path:
    """The folder of a finished run, trained where it is not there yet."""
    done, partial = work / str(seed), work / f"{seed}.partial"
    if not done.exists():
        shutil.rmtree(partial, ignore_errors=True)
        before, began = _cpu_seconds(), time.perf_counter()
        data = ("-d", NAME, "--root", root, "-o", partial)
        fassd("train", "-p", NAME, *data, "--seed", seed, "--threads", 1)
        spent = {"cpu_seconds": _cpu_seconds() - before, "seconds": time.perf_counter() - began}
        write_json(partial / "spent.json", {name: round(value) for name, value in spent.items()})
        partial.rename(done)
    return done


def _cpu_seconds() -> float:
    """Processor time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def row(seed: int, work: Path, root: Path) -> dict[str, Any]:
    """A seed's row, trained and scored where that is still to be done."""
    run = train(seed, work, root)
    file = run / "test.json"
    if not file.exists():
        data = ("--data", NAME, "--root", root, "--split", "test")
        fassd("val", *data, "-w", run / "last.safetensors", "--threads", 1, "--json", file)
    found = json.loads(file.read_text())
    spent = json.loads((run / "spent.json").read_text())
    scores = {key: found[key] for key in KEPT}
    return {"seed": seed, **spent, "test": scores, "environment": environment("cpu")}


def tables(content: Mapping[str, Any]) -> str:
    """The measured rows and, below them, the published ones, as Markdown."""
    recipe, rows = content["recipe"], content["rows"]
    names = [found["name"] for found in rows[0]["test"]["classes"]]
    kinds = [f"{name}, {score}" for name in names for score in ("IoU", "Dice")]
    measured = [
        (
            f"`{recipe['model']}`",
            str(each["seed"]),
            f"{each['cpu_seconds'] / 60:.0f}",
            *(
                f"{100 * found[score]:.1f}"
                for found in each["test"]["classes"]
                for score in ("iou", "dice")
            ),
            f"{100 * each['test']['miou']:.1f}",
            f"{100 * each['test']['pixel_accuracy']:.1f}",
        )
        for each in rows
    ]
    where = rows[0]["environment"]
    lines = [
        f"*Per cent, on the {rows[0]['test']['pictures']} pictures of `test`, after "
        f"{recipe['steps']} steps from the weights `{recipe['weights']}`. {where['cpu']}, one "
        f"thread, {where['instruction_set']}, torch {where['torch']}, {where['date'][:10]}; "
        "minutes are of processor time.*",
        "",
        *markdown_table(("network", "seed", "minutes", *kinds, "mIoU", "pixels"), measured),
        "",
        *markdown_table(("published", "score", "on", "source"), PUBLISHED),
    ]
    return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.membrane", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, help="folder with images/ and masks/, 0.png to 29.png")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / NAME)
    parser.add_argument("--output", "-o", type=Path, default=FILE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    if options.table or options.check:
        text = tables(json.loads(FILE.read_text()))
        return int(refreshed(DOCUMENT, BEGIN, END, text, options.check) and options.check)
    if options.root is None:
        parser.error("--root is needed: the folder of the pictures and masks")
    rows = [row(seed, options.work, options.root) for seed in options.seeds]
    recipe = load_recipe(NAME)
    content = {
        "recipe": {
            "command": f"python -m benchmarks.membrane --seeds {' '.join(map(str, options.seeds))}",
            "preset": NAME,
            "model": recipe.model,
            "weights": recipe.weights,
            "steps": recipe.steps,
        },
        "rows": rows,
    }
    write_json(options.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
