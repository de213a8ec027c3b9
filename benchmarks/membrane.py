"""FASSD-Net on few pictures: trained on 20 of electron microscopy, scored on 10 others.

    python -m benchmarks.membrane --root DIR

trains by the preset `membrane` on the card's `train` split, once for each seed, and scores the last
weights on its `test` split, at which nothing else looks. A stopped run goes on, and a finished seed
is not trained again.
``--table`` writes the tables of `docs/own-data.md` from the committed results; ``--check`` tells
whether they differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
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
CLOCKS = ("cpu_seconds", "seconds")
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "pictures", "classes")


class Published(NamedTuple):
    """A score on pictures of the same challenge."""

    network: str
    score: str
    pictures: str
    source: str


MULTIRES = "Ibtehaz and Rahman, Neural Networks 121, 2020 (arXiv:1902.04049)"
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
    """The folder of a finished run, trained, or trained on, where it is not there yet."""
    done, partial = work / str(seed), work / f"{seed}.partial"
    clock = work / f"{seed}.spent.json"
    if done.exists():
        return done
    if (partial / "checkpoint.safetensors").exists():
        spent = json.loads(clock.read_text()) if clock.is_file() else dict.fromkeys(CLOCKS, 0.0)
        arguments = ["-o", partial, "--resume", "--threads", 1]
    else:
        shutil.rmtree(partial, ignore_errors=True)
        spent = dict.fromkeys(CLOCKS, 0.0)
        data = ("-d", NAME, "--root", root, "--seed", seed, "--threads", 1)
        arguments = ["-p", NAME, "-o", partial, *data]
    before = _clocks()
    try:
        fassd("train", *arguments)
    finally:
        after = _clocks()
        write_json(clock, {name: spent[name] + after[name] - before[name] for name in CLOCKS})
    partial.rename(done)
    return done


def _clocks() -> dict[str, float]:
    """Processor time of all commands that have ended, and the time of day."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "seconds": time.perf_counter()}


def row(seed: int, work: Path, root: Path) -> dict[str, Any]:
    """A seed's row, trained and scored where that is still to be done."""
    run = train(seed, work, root)
    file = run / "test.json"
    if not file.exists():
        data = ("--data", NAME, "--root", root, "--split", "test")
        fassd("val", *data, "-w", run / "last.safetensors", "--threads", 1, "--json", file)
    found = json.loads(file.read_text())
    clocks = json.loads((work / f"{seed}.spent.json").read_text())
    spent = {name: round(clocks[name]) for name in CLOCKS}
    scores = {key: found[key] for key in KEPT}
    return {"seed": seed, **spent, "test": scores, "environment": environment("cpu")}


def kept(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    recipe = load_recipe(NAME)
    content = {
        "recipe": {
            "command": "python -m benchmarks.membrane --root DIR",
            "preset": NAME,
            "model": recipe.model,
            "weights": recipe.weights,
            "steps": recipe.steps,
        },
        "rows": sorted(rows, key=lambda row: row["seed"]),
    }
    write_json(file, content)


def tables(content: Mapping[str, Any] | None) -> str:
    """The measured rows, if there are any, and the published ones, as Markdown."""
    lines = ["*Not measured here yet.*"]
    if content is not None:
        lines = _measured(content["recipe"], content["rows"])
    lines += ["", *markdown_table(("published", "score", "on", "source"), PUBLISHED)]
    return "".join(f"{line}\n" for line in lines)


def _measured(recipe: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    per_cent = "{:.1f}".format
    where, first = rows[0]["environment"], rows[0]["test"]
    kinds = [f"{found['name']}, {score}" for found in first["classes"] for score in ("IoU", "Dice")]
    cells = []
    for each in rows:
        test, minutes = each["test"], f"{each['cpu_seconds'] / 60:.0f}"
        scores = [100 * found[name] for found in test["classes"] for name in ("iou", "dice")]
        scores += [100 * test["miou"], 100 * test["pixel_accuracy"]]
        cells.append((f"`{recipe['model']}`", str(each["seed"]), minutes, *map(per_cent, scores)))
    return [
        f"*Per cent, on the {first['pictures']} pictures of `test`, after {recipe['steps']} steps "
        f"from the weights `{recipe['weights']}`. {where['cpu']}, one thread, "
        f"{where['instruction_set']}, torch {where['torch']}, {where['date'][:10]}; minutes are of "
        "processor time.*",
        "",
        *markdown_table(("network", "seed", "minutes", *kinds, "mIoU", "pixels"), cells),
    ]


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
        text = tables(json.loads(FILE.read_text()) if FILE.is_file() else None)
        return int(refreshed(DOCUMENT, BEGIN, END, text, options.check) and options.check)
    if options.root is None:
        parser.error("--root is needed: the folder of the pictures and masks")
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        found = row(seed, options.work, options.root)
        write(options.output, [*(r for r in kept(options.output) if r["seed"] != seed), found])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
