"""Files of a run: weights for users, and checkpoints to resume from.

Everything is safetensors: reading it executes nothing. A file gets its name when it is complete and
on the disk, and the checkpoint before it is kept until then, so that neither a full disk nor a cut
in the middle of writing loses what was there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fassd.images import replacing
from fassd.untrusted import read_json

__all__ = ["latest_state", "save_state", "save_weights"]

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
NEXT = "checkpoint.next.safetensors"
UNREADABLE = (SafetensorError, OSError, ValueError, KeyError)


class StateError(ValueError):
    """A run folder that cannot be resumed from."""


def save_weights(path: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write a model's state dict, with `facts` (JSON) among the metadata, whole or not at all."""
    _write(path, {key: value for key, value in model.state_dict().items()}, facts)


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Make a checkpoint the latest of `folder`; the one before stays as the previous.

    Raises:
        OSError: it could not be written; the earlier ones are as they were.
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


def set_damaged_aside(folder: Path) -> None:
    """Rename checkpoints that cannot be read, so that they do not push a good one out.

    What a killed process left half written is removed.
    """
    for name in (NEXT, CHECKPOINT, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                _read(path)
            except UNREADABLE:
                os.replace(path, path.with_name(f"{name}.damaged"))
    for part in folder.glob(".*.part"):
        part.unlink()


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    content = safetensors.torch.save(plain, {"fassd": json.dumps(facts)})
    with replacing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the name without the content


def latest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The checkpoint of the largest step that can be read.

    Returns:
        Its tensors, its facts, and why newer ones were passed over.

    Raises:
        StateError: there is none that can be read.
    """
    found: list[tuple[int, dict[str, Tensor], dict[str, Any]]] = []
    troubles: list[str] = []
    for name in (NEXT, CHECKPOINT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            tensors, facts = _read(path)
            found.append((int(facts["step"]), tensors, facts))
        except UNREADABLE as error:
            troubles.append(f"{path} is damaged and was passed over ({error})")
    if not found:
        reason = "; ".join(troubles) or "there is no checkpoint in it"
        raise StateError(f"cannot resume from {folder}: {reason}")
    _, tensors, facts = max(found, key=lambda entry: entry[0])
    return tensors, facts, troubles


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        facts = read_json((file.metadata() or {})["fassd"])
        return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state as "<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state.items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `flatten_optimizer` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number_, entries in state.items():
        for name, value in entries.items():
            if value.shape == parameters[number_].shape:  # in the parameter's memory layout
                entries[name] = torch.empty_like(parameters[number_], dtype=value.dtype).copy_(
                    value
                )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
