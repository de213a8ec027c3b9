"""Targets on an H200, and the time model's predictions: ``python -m benchmarks.predicted``.

The command writes the prediction for every network of the family at 1024x2048 in float16, labels
out, through the CUDA backend; for FASSD-Net also in batches; ``--gpu`` names another GPU. No GPU is
needed, and nothing is measured.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, slug, write_json, write_text
from benchmarks.probes import LAUNCH_COLUMNS, scaled
from benchmarks.rows import NONE, Record, matches, rows_by_subject, table, table_of
from fassd.bench.candidates import COMPILE, FOLDED, MAX_AUTOTUNE, NATIVE, TITLES, TRITON
from fassd.bench.costs.cuda import ISSUE_EFFICIENCY, Prediction, find_device, predict_network
from fassd.models import list_models
from fassd.models.device import DTYPES
from fassd_kernels.triton.device import Device

# --- targets --------------------------------------------------------------------------------------

GPU = "NVIDIA H200"
SIZE, DTYPE, BATCHED = (1024, 2048), "float16", 8
"""Size of the targets, one picture at a time except for those of a batch."""

BATCH = "batch 1"
"""A reference for targets besides forms: frames/s of single pictures."""


@dataclass(frozen=True)
class Target:
    """A target for one of our forms.

    Attributes:
        subject: name of a network or a module.
        limit: minimum speed-up, or maximum milliseconds.
        against: name of the form to be faster than, or `BATCH`; empty if the target is a time.
        form: name of the form.
    """

    subject: str
    limit: float
    against: str = ""
    form: str = NATIVE

    @property
    def text(self) -> str:
        if not self.against:
            return f"at most {self.limit:g} ms"
        if self.against == BATCH:
            return f"at batch {BATCHED} at least {self.limit:g}x the frames/s of {BATCH}"
        return f"at least {self.limit:g}x over {TITLES[self.against]}"

    def figure(
        self, ms: Mapping[tuple[str, int], float], speedups: Mapping[str, float | None]
    ) -> float | None:
        """The achieved figure; None if something is missing.

        Two forms are compared by their speed-ups over eager, because eager was measured in turns
        with both, and they were not with each other.

        Args:
            ms: milliseconds of a form at a batch.
            speedups: speed-ups of forms over eager, at batch 1.
        """
        one, many = ms.get((self.form, 1)), ms.get((self.form, BATCHED))
        if self.against == BATCH:
            return BATCHED * one / many if one and many else None
        mine, its = speedups.get(self.form), speedups.get(self.against)
        if self.against:
            return mine / its if mine and its else None
        return one

    def is_met(self, figure: float) -> bool:
        return figure >= self.limit if self.against else figure <= self.limit

    def describe(self, figure: float) -> str:
        """The figure with its unit."""
        return f"{figure:.2f}x" if self.against else f"{figure:.3f} ms"


MDAS = ("MDA(192, 8)", "MDA(119, 4)", "MDA(63, 2)")
TARGETS = (
    Target("fassd_net", 0.5),
    Target("fassd_net_l2", 0.2),
    Target("fassd_net", 2.0, MAX_AUTOTUNE),
    Target("fassd_net", 1.3, BATCH),
    Target("DAPF(224)", 5.0, FOLDED),
    Target("DAPF(224)", 2.5, COMPILE),
    *(Target(name, 3.0, FOLDED) for name in MDAS),
    *(Target(name, 2.0, COMPILE) for name in MDAS),
    Target("DAPF(224)", 4.0, FOLDED, TRITON),
    Target("DAPF(224)", 2.0, COMPILE, TRITON),
    *(Target(name, 2.0, COMPILE, TRITON) for name in MDAS),
    Target("fassd_net", 1.3, MAX_AUTOTUNE, TRITON),
    Target("fassd_net", 1.0, "", TRITON),
)


def measured_figure(target: Target, report: Record) -> float | None:
    """A target's figure in a report; a form that does not match the reference counts as missing."""
    part = "modules" if "(" in target.subject else "networks"
    ms: dict[tuple[str, int], float] = {}
    speedups: dict[str, float | None] = {}
    for row in rows_by_subject(report, part).get(target.subject, []):
        case, form = row.case, row.form["name"]
        here = (case["height"], case["width"]) == SIZE and case["dtype"] == DTYPE
        if here and row.form.get("match") and "timing" in row.form:
            ms[form, case["batch"]] = row.ms
            if case["batch"] == 1:
                speedups[form] = row.speedup
    return target.figure(ms, speedups)


def predicted_figure(target: Target, predictions: Sequence[Record]) -> float | None:
    """The same from predictions for the CUDA kernels: records of `Prediction.to_json`."""
    ms = {
        (NATIVE, one["batch"]): 1e3 * one["predicted_s"]
        for one in predictions
        if (one["gpu"], one["network"], one["dtype"], one["output"], tuple(one["size"]))
        == (GPU, target.subject, DTYPE, "labels", SIZE)
    }
    return target.figure(ms, {})


@functools.cache
def load_predictions() -> list[dict[str, Any]]:
    """Predictions for all targets, without launches; none if predicting is impossible here."""
    try:
        device = find_device(GPU)
    except ImportError:
        return []
    wanted = [("fassd_net", 1), ("fassd_net", BATCHED), ("fassd_net_l2", 1)]
    found = [predict(name, device, batch).to_json() for name, batch in wanted]
    return [{name: one[name] for name in one if name != "rows"} for one in found]


def predict(network: str, device: Device, batch: int = 1) -> Prediction:
    return predict_network(network, *SIZE, device, batch=batch, dtype=DTYPES[DTYPE])


def targets_section(report: Record) -> str:
    """The targets, how far they are reached, and the predictions."""
    rows = []
    for target in TARGETS:
        figure = measured_figure(target, report)
        expected = predicted_figure(target, report.get("predicted", ()))
        cells = [NONE, NONE]
        if figure is not None:
            met = "yes" if target.is_met(figure) else "**no**"
            cells = [target.describe(figure), met]
        cells.append("not known" if expected is None else target.describe(expected))
        rows.append([target.subject, TITLES[target.form], target.text, *cells])
    place = f"At 1x{SIZE[0]}x{SIZE[1]}, {DTYPE}, labels out, set and predicted for an H200."
    header = ["subject", "form", "target", "measured", "met", "predicted"]
    return f"{place}\n\n{table(header, rows)}"


# --- the command ----------------------------------------------------------------------------------

DETAILED = "fassd_net"
"""The network that is also predicted in a batch, and shown launch by launch."""


TARGET_HEADER = ("network", "target", "predicted", "met by the prediction")
NETWORK_COLUMNS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("network", lambda one: one["network"]),
    ("batch", lambda one: str(one["batch"])),
    ("launches", lambda one: str(one["launches"])),
    ("MB", scaled("bytes", 1e-6, 0)),
    ("GFLOP", scaled("operations", 1e-9, 1)),
    ("padded GFLOP", scaled("issued", 1e-9, 1)),
    ("M instructions", scaled("instructions", 1e-6, 0)),
    ("floor ms", scaled("floor_s", 1e3, 3)),
    ("issue ms", scaled("issue_s", 1e3, 3)),
    ("predicted ms", scaled("predicted_s", 1e3, 3)),
    ("predicted frames/s", scaled("predicted_frames_per_second", 1, 0)),
)


def render(predictions: Sequence[Record]) -> str:
    """The whole page as Markdown; `predictions` are records of `Prediction.to_json`."""
    goals = [
        [target.subject, target.text, target.describe(figure), matches(target.is_met(figure))]
        for target in TARGETS
        if (figure := predicted_figure(target, predictions)) is not None
    ]
    detailed = next(one for one in predictions if one["network"] == DETAILED)
    targets = f"## Targets\n\n{table(TARGET_HEADER, goals)}\n" if goals else ""
    return f"""\
# The CUDA backend on {detailed["gpu"]}, predicted

By the time model; **nothing here was measured**. 1x3x{SIZE[0]}x{SIZE[1]} pictures but for the
batch, {DTYPE}, labels out, as one CUDA graph. Floor: bytes at the memory's bandwidth or operations
at the full rate, launch by launch. Instructions are those of warps, and of a launch's the copies to
shared memory, the products and the epilogue stand for themselves; issue: their time at one a clock
from each scheduler. The prediction reckons with {ISSUE_EFFICIENCY} of that rate, less where a
scheduler has few warps. Written by `python -m benchmarks.predicted`.

{targets}## Networks

{table_of(NETWORK_COLUMNS, predictions)}
## Launches of {DETAILED}, batch {detailed["batch"]}

{table_of(LAUNCH_COLUMNS[:-1], detailed["rows"])}
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
