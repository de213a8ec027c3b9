"""The model card of a network that `fassd train` has left, from what the run wrote."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fassd.data.cardfile import load_card
from fassd.io.packages import need
from fassd.io.untrusted import read_json, read_text, read_yaml
from fassd.models.tensor_files import CheckpointError, read_safetensors
from fassd.models.zoo import load
from fassd.training.halve import portable
from fassd.training.state import DATA

hub: Any = need("fassd.models.hub", "a model card needs", "hub")

MOST_LOG = 1 << 26
"""Bytes of a val.csv."""


def model_card(
    path: str | os.PathLike[str], name: str = "OWNER/NAME", license: str | None = None
) -> str:
    """The model card of a run's weights, for `FASSDNet.push_to_hub`.

    >>> card = model_card("runs/a/best.safetensors", "owner/name", "cc-by-4.0")
    >>> fassd.load("runs/a/best.safetensors").push_to_hub("owner/name", card)

    Beside the network itself it has the data sets, the recipe and its changes on the way, and the
    scores of the validation at the weights' step, class by class, where the run's folder has them
    (``val.csv``). Paths of the training's machine are cut to their last two names.

    Args:
        path: ``best.safetensors`` or ``last.safetensors`` of a run, in its folder.
        name: name of the repository.
        license: licence of the weights, by the hub's name for it.

    Raises:
        CheckpointError: no file of `fassd train`, or a damaged one.
        FileNotFoundError: no such file.
        ImportError: huggingface_hub is missing.
    """
    path = Path(path)
    network = load(path)
    facts = _facts(path)
    names = _data(path.parent)
    tables, scores = [], []
    logs = sorted(path.parent.glob("val*.csv"))  # val.2.csv, of the second, before val.csv
    logs = logs[-1:] + logs[:-1]
    for number, log in enumerate(logs, start=1):
        known = names[number - 1] if len(names) == len(logs) else f"validation data {number}"
        found = _scores(log, facts["step"])
        if found is not None:
            scores += [hub.Score(known, what, found[what]) for what in ("miou", "pixel_accuracy")]
            tables.append(_table(known, found))
    return hub.model_card(
        network,
        name,
        license=license,
        data=names,
        scores=scores,
        training="\n".join([*_training(facts, names), *tables, LIMITS]),
    )


LIMITS = """## Limits

Expect less of pictures unlike those above. What an error costs where the labels are used, and of
whom the pictures were, these figures do not tell.
"""


def _facts(path: Path) -> Mapping[str, Any]:
    """What training noted in a file of weights."""
    metadata = portable(read_safetensors(path)[1])
    facts = read_json(metadata["fassd"])
    missing = {"step", "recipe", "data"} - facts.keys()
    if missing:
        raise CheckpointError(
            f"{path} was not written by fassd train: it does not tell {', '.join(sorted(missing))}"
        )
    known: Mapping[str, Any] = facts
    return known


def _data(folder: Path) -> list[str]:
    """Names of a run's data sets: of their cards, or of the files of these."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        entries = read_yaml(read_text(folder / DATA))
        for entry in entries if isinstance(entries, list) else [entries]:
            card = None
            with contextlib.suppress(OSError, ValueError):
                card = load_card(entry["data"], entry["root"])
            names.append(Path(entry["data"]).stem if card is None else card.name)
    return names


def _scores(log: Path, step: int) -> dict[str, float] | None:
    """The scores of a step in a run's val.csv, by its headings; None if it has none."""
    rows = csv.DictReader(read_text(log, MOST_LOG).splitlines())
    row = next((row for row in rows if row["step"] == str(step)), None)
    return None if row is None else {k: float(v) for k, v in row.items() if k != "step"}


def _training(facts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    recipe = facts["recipe"]
    counts = facts["data"]["pictures"]
    counts = counts if isinstance(counts, list) else [counts]
    known = (
        names if len(names) == len(counts) else [f"data set {i + 1}" for i in range(len(counts))]
    )
    lines = ["## Data", ""]
    lines += [
        f"* {hub.cell(name)}: {count:,} pictures for training"
        for name, count in zip(known, counts, strict=True)
    ]
    lines += ["", "## Training", ""]
    lines += [f"`fassd train`, the weights after step {facts['step']:,} of {recipe['steps']:,}."]
    lines += [f"* {hub.cell(change)}" for change in facts.get("changes", ())]
    lines += ["", "```yaml", yaml.safe_dump(recipe, sort_keys=False).rstrip(), "```", ""]
    return lines


def _table(name: str, scores: Mapping[str, float]) -> str:
    lines = [
        f"## Scores on {hub.cell(name)}, validation",
        "",
        "| | IoU, % |",
        "|---|---:|",
        *(
            f"| {hub.cell(what.removeprefix('iou/'))} | {_percent(value)} |"
            for what, value in scores.items()
            if what.startswith("iou/")
        ),
        f"| **mean** | **{_percent(scores['miou'])}** |",
        "",
        f"Pixel accuracy {_percent(scores['pixel_accuracy'])}%. Classes without a score do not "
        "occur in that data.",
        "",
    ]
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
