"""Weights for shipping: convolutions in float16, everything else unchanged.

    python -m fassd.training.halve runs/mine/last.safetensors small.safetensors

Batch norm, PReLU and biases are a hundredth of the values, and a running variance may be too small
for float16, so they stay float32. `fassd.load_checkpoint` reads the file like any other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from fassd.io.files import replacing
from fassd.io.untrusted import read_json
from fassd.models.tensor_files import read_safetensors, safetensors_of


def halve(source: Path, target: Path) -> None:
    """Write the weights in `source` to `target`, both .safetensors.

    Training's notes stay with them, except for the folder of the weights that it started from.

    Raises:
        OSError: the source cannot be read, or the target cannot be written.
        ValueError: the source is damaged, or a weight lies outside float16's range.
    """
    weights, metadata = read_safetensors(source)
    tensors = {key: _half(key, value) for key, value in weights.items()}
    with replacing(target) as output:
        output.write(safetensors_of(tensors, portable(metadata)))


def portable(metadata: dict[str, str]) -> dict[str, str]:
    """The notes without paths, which mean nothing on another machine."""
    facts = read_json(metadata.get("fassd", "{}"))
    recipe = facts.get("recipe", {})
    files = [name for name in ("weights", "teacher") if recipe.get(name) is not None]
    if not files:
        return metadata
    for name in files:
        recipe[name] = "/".join(Path(recipe[name]).parts[-2:])
    return {**metadata, "fassd": json.dumps(facts)}


def _half(key: str, tensor: Tensor) -> Tensor:
    if tensor.dim() < 4:
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        raise ValueError(f"{key} holds {tensor.abs().max().item()}, float16 ends at 65504")
    return half.contiguous()


if __name__ == "__main__":
    torch.set_num_threads(1)
    halve(*(Path(argument) for argument in sys.argv[1:3]))
