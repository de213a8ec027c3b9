"""The time model's predictions: ``python -m benchmarks.predicted``.

The command writes the prediction for every network of the family at 1024x2048 in float16, labels
out, through the CUDA backend; for FASSD-Net also in batches; ``--gpu`` names another GPU. No GPU is
needed, and nothing is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch

from benchmarks import RESULTS, Columns, Record, scaled, slug, table, write_json, write_text
from benchmarks.probes import LAUNCH_COLUMNS
from fassd.bench.costs.cuda import ISSUE_EFFICIENCY, Prediction, find_device, predict_network
from fassd.models import list_models
from fassd_kernels.triton.device import Device

SIZE, DTYPE, BATCHED = (1024, 2048), "float16", 8

DETAILED = "fassd_net"
"""The network that is also predicted in a batch, and shown launch by launch."""


NETWORK_COLUMNS: Columns = {
    "network": itemgetter("network"),
    "batch": scaled("batch"),
    "launches": scaled("launches"),
    "MB": scaled("bytes", 1e-6),
    "GFLOP": scaled("operations", 1e-9, 1),
    "padded GFLOP": scaled("issued", 1e-9, 1),
    "M instructions": scaled("instructions", 1e-6),
    "floor ms": scaled("floor_s", 1e3, 3),
    "issue ms": scaled("issue_s", 1e3, 3),
    "predicted ms": scaled("predicted_s", 1e3, 3),
    "predicted frames/s": scaled("predicted_frames_per_second"),
}


def predict(network: str, device: Device, batch: int = 1) -> Prediction:
    return predict_network(network, *SIZE, device, batch=batch, dtype=getattr(torch, DTYPE))


def render(predictions: Sequence[Record]) -> str:
    """The whole page as Markdown; `predictions` are records of `Prediction.to_json`."""
    detailed = next(one for one in predictions if one["network"] == DETAILED)
    launches = {title: c for title, c in LAUNCH_COLUMNS.items() if "measured" not in title}
    return f"""\
# The CUDA backend on {detailed["gpu"]}, predicted

By the time model; **nothing here was measured**. 1x3x{SIZE[0]}x{SIZE[1]} pictures but for the
batch, {DTYPE}, labels out, as one CUDA graph. Floor: bytes at the memory's bandwidth or operations
at the full rate, launch by launch. Instructions are those of warps, and of a launch's the copies to
shared memory, the products and the epilogue stand for themselves; issue: their time at one a clock
from each scheduler. The prediction reckons with {ISSUE_EFFICIENCY} of that rate, less where a
scheduler has few warps. Written by `python -m benchmarks.predicted`.

## Networks

{table(NETWORK_COLUMNS, predictions)}
## Launches of {DETAILED}, batch {detailed["batch"]}

{table(launches, detailed["rows"])}
Those of the other networks are in the JSON file beside this one.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Predict every network of the family on a GPU.")
    parser.add_argument("--gpu", default="H200", help="name of a GPU, or a part of it")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "predicted", help="folder to write to"
    )
    options = parser.parse_args(arguments)
    device = find_device(options.gpu)
    wanted = [*((name, 1) for name in list_models()), (DETAILED, BATCHED)]
    predictions = [predict(name, device, batch).to_json() for name, batch in wanted]
    path = options.output / f"cuda-{slug(options.gpu)}"
    write_text(path.with_suffix(".md"), render(predictions))
    write_json(path.with_suffix(".json"), {"predictions": predictions})
    print(f"written: {path}.md, {path}.json")


if __name__ == "__main__":
    main()
