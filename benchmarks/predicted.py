"""Write what the time model predicts for a GPU: ``python -m benchmarks.predicted --gpu H200``.

Every network of the family at 1024x2048 in float16, labels out, through the CUDA backend; FASSD-Net
also in batches. No GPU is needed, and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT, slug
from benchmarks.targets import CROWD, PLACE, goals_of
from fassd.bench.costs.cuda import Prediction, find_device, predict_network
from fassd.models import list_models
from fassd_kernels.triton.device import Device

FOLDER = ROOT / "benchmarks" / "results" / "predicted"
SIZE = PLACE["height"], PLACE["width"]
DETAILED = "fassd_net"  # the network that is predicted in a batch too, and by launches
UNKNOWN = "not known"  # of what no GPU has measured


def predictions_for(device: Device) -> list[Prediction]:
    """All networks one frame at a time, then one in a batch."""
    singles = [predict_network(name, *SIZE, device) for name in list_models()]
    return [*singles, predict_network(DETAILED, *SIZE, device, batch=CROWD["batch"])]


def to_json(predictions: Sequence[Prediction], goals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "goals": [{**goal, "measured": None} for goal in goals],
        "predictions": [prediction.to_json() for prediction in predictions],
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> Iterator[str]:
    """A Markdown table: so many columns of words, then figures."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * words}{'---:|' * (len(columns) - words)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def goal_rows(goals: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for goal in goals:
        met = "yes" if goal["is_met"] else "no"
        yield goal["network"], goal["text"], goal["described"], met, UNKNOWN


def network_rows(predictions: Sequence[Prediction]) -> Iterator[tuple[str, ...]]:
    for p in predictions:
        yield (
            p.network, str(p.batch), str(len(p.launches)), f"{1e-6 * p.total('bytes'):.0f}",
            f"{1e-9 * p.total('operations'):.1f}", f"{1e-9 * p.total('issued'):.1f}",
            f"{1e3 * p.floor:.3f}", f"{1e3 * p.predicted:.3f}", f"{p.frames_per_second:.0f}",
            UNKNOWN,
        )  # fmt: skip


def launch_rows(prediction: Prediction) -> Iterator[tuple[str, ...]]:
    for group in prediction.groups():
        one = group.first
        yield (
            group.label, one.channels, f"{one.height}x{one.width}", one.tile, one.bound,
            str(group.count), str(one.blocks or ""), f"{one.waves:.2f}" if one.blocks else "",
            f"{1e-6 * group.total('bytes'):.1f}", f"{1e-9 * group.total('operations'):.2f}",
            f"{1e-9 * group.total('issued'):.2f}", f"{1e6 * group.total('floor'):.1f}",
            f"{1e6 * group.total('predicted'):.1f}",
        )  # fmt: skip


def render(predictions: Sequence[Prediction], goals: Sequence[dict[str, Any]], gpu: str) -> str:
    """All of it as Markdown."""
    height, width = SIZE
    lines = [
        f"# The CUDA backend on {gpu}, predicted",
        "",
        f"By the time model; **nothing here was measured**. 1x3x{height}x{width} pictures but for "
        "the batch, float16, labels out, as one CUDA graph. Floor: bytes at the memory's "
        "bandwidth or operations at the full rate, launch by launch. Written by "
        "`python -m benchmarks.predicted`.",
    ]
    if goals:
        lines += ["", "## Goals", ""]
        lines += table(
            ("network", "goal", "predicted", "met by the prediction", "measured"),
            list(goal_rows(goals)),
            2,
        )
    lines += ["", "## Networks", ""]
    lines += table(
        ("network", "batch", "launches", "MB", "GFLOP", "padded GFLOP", "floor ms", "predicted ms",
         "predicted frames/s", "measured"),
        list(network_rows(predictions)),
        1,
    )  # fmt: skip
    detailed = next(p for p in predictions if p.network == DETAILED)
    lines += ["", f"## Launches of {DETAILED}, batch {detailed.batch}", ""]
    lines += table(
        ("launch", "channels", "size", "tile", "bound by", "x", "blocks", "waves", "MB", "GFLOP",
         "padded GFLOP", "floor us", "predicted us"),
        list(launch_rows(detailed)),
        5,
    )  # fmt: skip
    lines += ["", "Those of the other networks are in the JSON file beside this one.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Predict every network of the family on a GPU.")
    parser.add_argument("--gpu", default="H200", help="name of a GPU, or a part of it")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args(arguments)
    device = find_device(options.gpu)
    predictions = predictions_for(device)
    goals = goals_of(predictions)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"cuda-{slug(options.gpu)}"
    path.with_suffix(".md").write_text(render(predictions, goals, device.name))
    content = json.dumps(to_json(predictions, goals), indent=1)
    path.with_suffix(".json").write_text(content + "\n")
    print(f"written: {path}.md, {path}.json")


if __name__ == "__main__":
    main()
