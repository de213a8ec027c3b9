"""Files of a run: weights for users, and checkpoints to resume from.

Everything is safetensors: reading it executes nothing. A file gets its name when it is complete and
on disk, and the checkpoint before it is kept until then, so that neither a full disk nor an
interruption while writing loses what was saved before. Checksums in the metadata reveal damage.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fassd.data.dataset import SegmentationDataset
from fassd.data.groups import LabelSpace
from fassd.io.files import LOCK, check_folder, locked, replacing
from fassd.io.untrusted import read_json
from fassd.models.tensor_files import check_weights, read_safetensors, safetensors_of
from fassd.training.recipe import Recipe, RecipeError

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
NEXT = "checkpoint.next.safetensors"
RECIPE = "recipe.yaml"
DATA = "data.yaml"
ABOUT_DATA = "# The data for --resume. Paths are absolute; --data and --root override them."
BEFORE_CHECKPOINT = {RECIPE, DATA, "log.csv", "tensorboard", LOCK}
OPTIMIZER = "optimizer."
"""Prefix of the names of an optimizer's tensors."""
STATISTICS = ("running_mean", "running_var")
UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, RecursionError)


class StateError(ValueError):
    """A run cannot be resumed from its folder."""


def data_of(space: LabelSpace, datasets: Sequence[SegmentationDataset]) -> dict[str, Any]:
    """The data that a resumed run must find unchanged: they determine the order of the samples."""
    counts = [len(dataset) for dataset in datasets]
    names = space.class_names
    if len(counts) == 1:
        return {"classes": names, "pictures": counts[0]}
    labels = [[[names[i] for i in group] for group in of] for of in space.members]
    return {"classes": names, "pictures": counts, "labels": labels}


def check_data(
    folder: Path,
    before: Mapping[str, Any],
    space: LabelSpace,
    datasets: Sequence[SegmentationDataset],
) -> None:
    """Check that the data are the same as before in the run of a folder.

    Raises:
        RecipeError: the data differ; the message says in what.
    """
    for what, value in data_of(space, datasets).items():
        if value != before.get(what):
            had = before.get(what)
            raise RecipeError(f"the data of the run in {folder} had {what} {had}, now {value}")


def check_new(folder: Path) -> None:
    """Check that `folder` is free for a run: new, or left by a run before its first checkpoint.

    Raises:
        FileExistsError: the folder contains something else.
        OSError: the folder is not writable.
    """
    check_folder(folder)
    scores = {path.name for path in folder.glob("val*.csv")}
    if folder.exists() and {p.name for p in folder.iterdir()} - BEFORE_CHECKPOINT - scores:
        raise FileExistsError(
            f"{folder} is not empty: --resume continues the run in it, another --output starts "
            "a new one"
        )


def check_unused(folder: Path, step: int) -> None:
    """Check that no other run has started or continued in `folder` since `step` of this run.

    Raises:
        FileExistsError: this run is new, and the folder is not empty.
        StateError: the folder has a checkpoint of a later step.
    """
    if step == 0:
        check_new(folder)
    elif latest_step(folder) > step:
        raise StateError(f"another run has continued in {folder} since step {step}: resume again")


def failure(what: str, write: Callable[..., object], *arguments: Any) -> str | None:
    """Call `write`; return the reason why `what` could not be written, or None."""
    try:
        write(*arguments)
    except OSError as error:
        return f"could not write {what}: {error}"
    return None


def describe_run(
    folder: Path, recipe: Recipe, changes: Sequence[str], addresses: Sequence[tuple[str, str]]
) -> None:
    """Write recipe.yaml and data.yaml, which record the settings and the data of the run.

    Changes of settings during the run become comments; `addresses` are those of the cards, the
    values of `--data` and `--root` (`fassd.data.card.Card.address`).
    """
    entries = [{"data": data, "root": root} for data, root in addresses]
    comments = [f"# {change}\n" for change in changes]
    texts = {
        RECIPE: "".join(comments) + recipe.to_yaml(),
        DATA: f"{ABOUT_DATA}\n{yaml.safe_dump(entries[0] if len(entries) == 1 else entries)}",
    }
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())


def reclaim(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The latest state of a folder that no run is using; damaged checkpoints are set aside.

    Raises:
        InUseError: another run is using the folder.
        StateError: no state in it can be read.
    """
    # A folder without a checkpoint is not a run's, and no file is created in it.
    with locked(folder) if latest_step(folder) else contextlib.nullcontext():
        found = latest_state(folder)
        for path, _ in _states(folder)[1]:  # they would replace a good one
            os.replace(path, path.with_name(f"{path.name}.damaged"))
        for part in folder.glob(".*.part"):  # of a process that was killed
            part.unlink()
    return found


def latest_step(folder: Path) -> int:
    """The largest step of a checkpoint that can be read; 0 if there is none."""
    steps = [0]
    for name in (NEXT, CHECKPOINT, PREVIOUS):
        with contextlib.suppress(*UNREADABLE), safe_open(folder / name, framework="pt") as file:
            steps.append(int(_facts(file.metadata() or {})["step"]))
    return max(steps)


def save_weights(path: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write a model's state dict, with `facts` (JSON) in the metadata, completely or not at all."""
    _write(path, {key: value for key, value in model.state_dict().items()}, facts)


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Make a checkpoint the latest one of `folder`; the one before is kept as the previous.

    Raises:
        OSError: it could not be written; the earlier ones are unchanged.
    """
    _write(folder / NEXT, tensors, facts)
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    os.replace(folder / NEXT, folder / CHECKPOINT)
    with contextlib.suppress(OSError):  # not every system can sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    content = safetensors_of(tensors, {"fassd": json.dumps(facts)})
    with replacing(path, durable=True) as file:
        file.write(content)


def latest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The checkpoint with the largest step that can be read.

    Returns:
        Its tensors, its facts, and the reasons why newer ones were skipped.

    Raises:
        StateError: no checkpoint can be read.
    """
    found, damaged = _states(folder)
    troubles = [f"{path} is damaged and was skipped ({error})" for path, error in damaged]
    if not found:
        reason = "; ".join(troubles) or "there is no checkpoint in it"
        raise StateError(f"cannot resume from {folder}: {reason}")
    tensors, facts = max(found, key=lambda state: int(state[1]["step"]))
    return tensors, facts, troubles


def _states(
    folder: Path,
) -> tuple[list[tuple[dict[str, Tensor], dict[str, Any]]], list[tuple[Path, Exception]]]:
    """The checkpoints that can be read, and the paths of the others with the reasons."""
    found: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
    damaged: list[tuple[Path, Exception]] = []
    for path in (folder / name for name in (NEXT, CHECKPOINT, PREVIOUS)):
        if path.exists():
            try:
                tensors, facts = _read(path)
                int(facts["step"])
                found.append((tensors, facts))
            except UNREADABLE as error:
                damaged.append((path, error))
    return found, damaged


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_safetensors(path)
    # The second moments of an optimizer and a layer's statistics may overflow in a healthy run.
    weights = {
        key: value
        for key, value in tensors.items()
        if not key.startswith(OPTIMIZER) and not key.endswith(STATISTICS)
    }
    check_weights(path, weights, {key: value.dtype for key, value in weights.items()})
    return tensors, _facts(metadata)


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(metadata["fassd"])
    return facts
