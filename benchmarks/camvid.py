"""Networks trained on generated streets and CamVid, scored on CamVid's test split.

    python -m benchmarks.camvid --root DIR

trains every row with the preset `streets`, on generated streets and CamVid's `train`, with the same
steps and crops, from random weights or, with ``--start synthetic``, from the shipped ones that have
only seen generated streets. The last weights are scored: nothing is selected by a score, and `test`
is used once for each row. 480x360, 11 classes, void ignored, single scale, no flip. A row takes
hours; Ctrl-C saves, and the same command continues where it was stopped. Finished rows are kept in
the results file, whatever is requested later.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import RESULTS, ROOT, write_json
from benchmarks.ablation import prepare, rows_of, scored, trained
from fassd.bench.machine import environment
from fassd.bench.markdown import markdown_table
from fassd.models import VARIANTS
from fassd.synth import VERSION

FILE = RESULTS / "camvid" / "camvid.json"
PRESET = "streets"
NETWORKS = (
    "fassd_net",
    "fassd_net_l1",
    "fassd_net_l2",
    "fc_hardnet_70",
    "baseline",
    "baseline_dapf",
    "baseline_mda",
)
SPLITS = ("val", "test")

HARDNET = "Chao et al., ICCV 2019, table 2"
ESPNET = "README of github.com/sacmehta/ESPNet"
NOTHING, MORE = "nothing else", "ImageNet or Cityscapes"


class CamvidScore(NamedTuple):
    """A score on CamVid's test split: mIoU in per cent, the size, and additional training data."""

    network: str
    miou: float
    size: str
    trained: str
    source: str


PUBLISHED = (
    CamvidScore("SegNet", 46.4, "480x360", "ImageNet (encoder)", HARDNET),
    CamvidScore("ENet", 51.3, "480x360", NOTHING, ESPNET),
    CamvidScore("ESPNet", 55.6, "480x360", NOTHING, ESPNET),
    CamvidScore("FCN8", 57.0, "480x360", "ImageNet (encoder)", HARDNET),
    CamvidScore("FC-DenseNet56", 58.9, "480x360", NOTHING, HARDNET),
    CamvidScore("FC-HarDNet68", 62.9, "480x360", NOTHING, HARDNET),
    CamvidScore("FC-DenseNet67", 65.8, "480x360", NOTHING, HARDNET),
    CamvidScore("FC-HarDNet76", 65.8, "480x360", NOTHING, HARDNET),
    CamvidScore("FC-DenseNet103", 66.9, "480x360", NOTHING, HARDNET),
    CamvidScore("FC-HarDNet84", 67.7, "480x360", NOTHING, HARDNET),
    CamvidScore("FASSD-Net", 69.3, "not said", MORE, "abstract, IEEE T-ITS 2021"),
    CamvidScore("DDRNet-23-slim", 74.7, "960x720", MORE, "abstract, arXiv:2101.06085"),
    CamvidScore("PIDNet-S", 80.1, "960x720", MORE, "README of github.com/XuJiacong/PIDNet"),
)


class TrainingRun(NamedTuple):
    """One training: a row of the table."""

    model: str
    steps: int
    seed: int
    start: str

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


def row(run: TrainingRun, work: Path, streets: Path, root: Path) -> dict[str, Any]:
    """A finished row, trained and scored if necessary."""
    length = ("--steps", str(run.steps), "--seed", str(run.seed), "-s", "val_every=0")
    data = ("-d", streets, "-d", "camvid", "--root", root)
    start = () if run.start == "random" else ("-w", run.start)
    weights, spent = trained(work / run.name, "-p", PRESET, "-m", run.model, *start, *data, *length)
    own = ("--data", "camvid", "--root", root, "--weights", weights)
    scores = {s: scored(work / f"{run.name}.{s}.json", *own, "--split", s) for s in SPLITS}
    hours = round(spent["seconds"] / 3600, 2)
    return {**run._asdict(), "hours": hours, **scores, "environment": environment()}


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    order = list(VARIANTS)

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return order.index(row["model"]), -row["steps"], row["start"], row["seed"]

    content = {
        "recipe": {
            "command": "python -m benchmarks.camvid --root DIR",
            "preset": PRESET,
            "generator": VERSION,
        },
        "note": "CamVid at 480x360, 11 classes, void ignored, single scale; the last weights of "
        "each run, trained on generated streets and CamVid's train split alone.",
        "rows": sorted(rows, key=place),
    }
    write_json(file, content)


def tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measured rows and, below them, the published ones: lines of Markdown."""
    per_cent = "{:.1f}".format
    measured = [
        (
            f"`{r['model']}`",
            r["start"],
            f"{r['steps']:,}",
            str(r["seed"]),
            f"{r['hours']:.1f}",
            *(per_cent(100 * r[split]["miou"]) for split in SPLITS),
            per_cent(100 * r["test"]["pixel_accuracy"]),
            *(per_cent(100 * c["iou"]) for c in r["test"]["classes"]),
        )
        for r in rows
    ]
    names = [c["name"] for c in rows[0]["test"]["classes"]] if rows else []
    header = ("network", "start", "steps", "seed", "hours", "val", "**test**", "pixels", *names)
    published = [(p.network, per_cent(p.miou), p.size, p.trained, p.source) for p in PUBLISHED]
    head = ("published", "test", "size", "trained on beside CamVid", "source")
    return [*markdown_table(header, measured), "", *markdown_table(head, published)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, required=True, help="CamVid in SegNet's layout")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "camvid")
    parser.add_argument("--output", "-o", type=Path, default=FILE)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=sorted(VARIANTS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--start", choices=("random", "synthetic"), default="random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    streets = prepare(options.work)
    runs = [
        TrainingRun(name, options.steps, seed, options.start)
        for seed in options.seeds
        for name in options.networks
    ]
    for number, run in enumerate(runs, 1):
        print(f"{number} of {len(runs)}: {run.name}", flush=True)
        found = row(run, options.work, streets, options.root)
        others = [
            r
            for r in rows_of(options.output)
            if TrainingRun(*(r[f] for f in TrainingRun._fields)) != run
        ]
        write(options.output, [*others, found])
        miou = found["test"]["miou"]
        print(f"{run.name}: test mIoU {100 * miou:.1f}%, {found['hours']:.1f} hours", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
