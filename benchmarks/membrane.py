"""FASSD-Net on few pictures: trained on 20 of electron microscopy, scored on 10 others.

    python -m benchmarks.membrane --root DIR

trains with the preset `membrane` on the card's `train` split, once for each seed, and scores the
last weights on its `test` split, which is used for nothing else. A stopped run continues, and a
finished seed is not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import RESULTS, ROOT, write_json
from benchmarks.ablation import rows_of, scored, trained
from fassd.bench.machine import environment
from fassd.bench.markdown import markdown_table
from fassd.training.recipe import load_recipe

FILE = RESULTS / "membrane" / "membrane.json"
NAME = "membrane"  # name of the card and of the preset


class MembraneScore(NamedTuple):
    """A score on pictures of the same challenge."""

    network: str
    score: str
    pictures: str
    source: str


MULTIRES = "Ibtehaz and Rahman, Neural Networks 121, 2020 (arXiv:1902.04049)"
FOLDS = "the 30, five-fold cross validation"
PUBLISHED = (
    MembraneScore(
        "U-Net",
        "warping error 0.000353, Rand error 0.0382, pixel error 0.0611",
        "30 others, whose masks are not public; trained on all of the 30",
        "Ronneberger et al., MICCAI 2015 (arXiv:1505.04597), table 1",
    ),
    MembraneScore("U-Net", "IoU 87.4 ±0.7, of one class", FOLDS, MULTIRES),
    MembraneScore("MultiResUNet", "IoU 87.9 ±0.8, of one class", FOLDS, MULTIRES),
)


def row(seed: int, work: Path, root: Path) -> dict[str, Any]:
    """The row of a seed, trained and scored if necessary."""
    own = ("-p", NAME, "-d", NAME, "--root", root, "--seed", str(seed))
    weights, spent = trained(work / str(seed), *own, threads=1)
    data = ("--data", NAME, "--root", root, "--split", "test", "--threads", "1")
    test = scored(work / f"{seed}.test.json", *data, "-w", weights)
    clocks = {name: round(seconds) for name, seconds in spent.items()}
    return {"seed": seed, **clocks, "test": test, "environment": environment("cpu")}


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


def tables(content: Mapping[str, Any] | None) -> list[str]:
    """The measured rows, if there are any, and the published ones: lines of Markdown."""
    lines = ["*Not measured here yet.*"]
    if content is not None:
        lines = _measured(content["recipe"], content["rows"])
    return [*lines, "", *markdown_table(("published", "score", "on", "source"), PUBLISHED)]


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
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with images/ and masks/, 0.png to 29.png"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / NAME)
    parser.add_argument("--output", "-o", type=Path, default=FILE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        found = row(seed, options.work, options.root)
        write(options.output, [*(r for r in rows_of(options.output) if r["seed"] != seed), found])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
