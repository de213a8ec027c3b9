"""Networks trained on generated streets and CamVid, scored on CamVid's test split.

    python -m benchmarks.camvid --root DIR

trains every row by the preset `streets`, on generated streets and CamVid's `train`, with the same
steps and crops, from random weights or, with ``--start synthetic``, from those that ship and have
seen generated streets alone. The last weights are scored: nothing is chosen by a score,
and `test` is looked at once for each row. 480x360, 11 classes, void ignored, single scale, no flip.
A row takes hours; Ctrl-C saves, and the same command goes on where it was stopped. Finished rows
are kept in the results file, whatever else is asked for later. ``--table`` writes the tables of
`docs/camvid.md` from the committed results; ``--check`` tells whether they differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import RESULTS, ROOT, refreshed, write_json, write_text
from benchmarks.ablation import fassd, prepare
from fassd.bench.machine import environment
from fassd.bench.markdown import markdown_table
from fassd.cli import app
from fassd.models import VARIANTS
from fassd.synth import VERSION

FILE = RESULTS / "camvid" / "camvid.json"
DOCUMENT = ROOT / "docs" / "camvid.md"
BEGIN, END = "<!-- camvid: python -m benchmarks.camvid --table -->\n", "<!-- /camvid -->\n"
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
KEPT = ("miou", "pixel_accuracy", "mean_accuracy", "pictures", "classes")

HARDNET = "Chao et al., ICCV 2019, table 2"
ESPNET = "README of github.com/sacmehta/ESPNet"
NOTHING, MORE = "nothing else", "ImageNet or Cityscapes"


class Published(NamedTuple):
    """A score on CamVid's test split: mIoU in per cent, the size, and what else was trained on."""

    network: str
    miou: float
    size: str
    trained: str
    source: str


PUBLISHED = (
    Published("SegNet", 46.4, "480x360", "ImageNet (encoder)", HARDNET),
    Published("ENet", 51.3, "480x360", NOTHING, ESPNET),
    Published("ESPNet", 55.6, "480x360", NOTHING, ESPNET),
    Published("FCN8", 57.0, "480x360", "ImageNet (encoder)", HARDNET),
    Published("FC-DenseNet56", 58.9, "480x360", NOTHING, HARDNET),
    Published("FC-HarDNet68", 62.9, "480x360", NOTHING, HARDNET),
    Published("FC-DenseNet67", 65.8, "480x360", NOTHING, HARDNET),
    Published("FC-HarDNet76", 65.8, "480x360", NOTHING, HARDNET),
    Published("FC-DenseNet103", 66.9, "480x360", NOTHING, HARDNET),
    Published("FC-HarDNet84", 67.7, "480x360", NOTHING, HARDNET),
    Published("FASSD-Net", 69.3, "not said", MORE, "abstract, IEEE T-ITS 2021"),
    Published("DDRNet-23-slim", 74.7, "960x720", MORE, "abstract, arXiv:2101.06085"),
    Published("PIDNet-S", 80.1, "960x720", MORE, "README of github.com/XuJiacong/PIDNet"),
)


class Run(NamedTuple):
    """One training: a row of the table."""

    model: str
    steps: int
    seed: int
    start: str

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


def train(run: Run, work: Path, streets: Path, root: Path) -> tuple[Path, float]:
    """The weights of a run and the hours that it took, trained where they are not there yet."""
    done, partial = work / run.name, work / f"{run.name}.partial"
    clock = work / f"{run.name}.seconds"
    spent = float(clock.read_text()) if clock.is_file() else 0.0
    if not done.exists():
        began = time.perf_counter()
        if (partial / "checkpoint.safetensors").exists():
            arguments = ["train", "-o", str(partial), "--resume"]
        else:
            shutil.rmtree(partial, ignore_errors=True)
            spent = 0.0
            length = ["--steps", str(run.steps), "--seed", str(run.seed), "-s", "val_every=0"]
            data = ["-d", str(streets), "-d", "camvid", "--root", str(root)]
            start = [] if run.start == "random" else ["-w", run.start]
            own = ["-m", run.model, *start, *data, *length]
            arguments = ["train", "-p", PRESET, "-o", str(partial), *own]
        try:
            code = app(arguments, standalone_mode=False)
        finally:
            spent += time.perf_counter() - began
            write_text(clock, f"{spent:.1f}\n")
        if code:
            raise SystemExit(code)
        partial.rename(done)
    return done / "last.safetensors", spent / 3600


def score(weights: Path | str, root: Path, split: str, file: Path) -> dict[str, Any]:
    """Scores on a split of CamVid, without the confusion matrix; from `file` if that is there."""
    if not file.exists():
        data = ("--data", "camvid", "--root", root, "--split", split)
        fassd("val", *data, "--weights", weights, "--json", file)
    found = json.loads(file.read_text())
    return {key: found[key] for key in KEPT}


def row(run: Run, work: Path, streets: Path, root: Path) -> dict[str, Any]:
    """A finished row, trained and scored where that is still to be done."""
    weights, hours = train(run, work, streets, root)
    scores = {s: score(weights, root, s, work / f"{run.name}.{s}.json") for s in SPLITS}
    return {**run._asdict(), "hours": round(hours, 2), **scores, "environment": environment()}


def kept(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return json.loads(file.read_text())["rows"] if file.is_file() else []


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


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The measured rows and, below them, the published ones, as Markdown."""
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
    lines = [*markdown_table(header, measured), "", *markdown_table(head, published)]
    return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, help="CamVid in SegNet's layout")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "camvid")
    parser.add_argument("--output", "-o", type=Path, default=FILE)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=sorted(VARIANTS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--start", choices=("random", "synthetic"), default="random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    if options.table or options.check:
        text = tables(kept(FILE))
        return int(refreshed(DOCUMENT, BEGIN, END, text, options.check) and options.check)
    if options.root is None:
        parser.error("--root is needed: the folder of CamVid")
    options.work.mkdir(parents=True, exist_ok=True)
    streets = prepare(options.work)
    runs = [
        Run(name, options.steps, seed, options.start)
        for seed in options.seeds
        for name in options.networks
    ]
    for number, run in enumerate(runs, 1):
        print(f"{number} of {len(runs)}: {run.name}", flush=True)
        found = row(run, options.work, streets, options.root)
        others = [r for r in kept(options.output) if Run(*(r[f] for f in Run._fields)) != run]
        write(options.output, [*others, found])
        miou = found["test"]["miou"]
        print(f"{run.name}: test mIoU {100 * miou:.1f}%, {found['hours']:.1f} hours", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
