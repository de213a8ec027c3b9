"""Every exported format, verified and timed on this machine: ``python -m benchmarks.exported``.

Each file takes a picture (uint8 RGB) and returns labels, at one size. Its labels are compared with
those of plain PyTorch in float32, its mIoU is that on generated streets that the weights never saw,
and all files are timed in interleaved rounds together with plain PyTorch and the accelerated
network.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fassd_kernels
from benchmarks import RESULTS, write_json
from fassd.bench import stopwatch
from fassd.bench.machine import environment
from fassd.bench.markdown import markdown_table
from fassd.data import normalize
from fassd.export import SUFFIX_OF, ExportedNetwork, Exporter, Request, staged
from fassd.models import create_model
from fassd.models.clock import timed
from fassd.models.preprocess import MEAN, STD
from fassd.models.sizes import parse_size
from fassd.synth import render_street
from fassd.training import ConfusionMatrix

RESULT = RESULTS / "amd-epyc-2-cores" / "exported.json"
STREETS, CALIBRATING = 12, 32
WEIGHTS = "streets"

Picture = npt.NDArray[np.uint8]
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportForm:
    """A row: a format, what computes it, and the runtime that runs it."""

    format: str
    dtype: str
    backend: str = "reference"
    runtime: str = "auto"

    @property
    def name(self) -> str:
        by = {"onnx": self.runtime, "openvino": "openvino"}.get(self.format, self.backend)
        return f"{self.format} {self.dtype}, {by}"


FORMS = (
    *(ExportForm("onnx", dtype, runtime="onnxruntime") for dtype in ("float32", "float16", "int8")),
    *(ExportForm("onnx", dtype, runtime="openvino") for dtype in ("float32", "int8")),
    *(ExportForm("openvino", dtype) for dtype in ("float32", "float16", "int8")),
    ExportForm("torch", "float32", "cpu"),
    ExportForm("aoti", "float32", "reference"),
    ExportForm("aoti", "float32", "cpu"),
    ExportForm("aoti", "float16", "cpu"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exported", description=__doc__)
    parser.add_argument("--model", default="fassd_net")
    parser.add_argument("--size", type=parse_size, default="1024x2048", metavar="HxW")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    write_json(options.json, measure(options.model, options.size, options.repeats))


# ------------------------------------------------------------------------------------- measuring


def measure(model: str, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Export, verify and time everything."""
    scenes = [render_street(*size, seed=seed, split="val") for seed in range(STREETS)]
    pictures = [scene for scene, _ in scenes]
    calibrating = [render_street(*size, seed=s, split="train")[0] for s in range(CALIBRATING)]
    source = create_model(model, weights=WEIGHTS).eval()
    calls = dict(in_pytorch(source))
    facts: dict[str, dict[str, Any]] = {name: {} for name in calls}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            network, facts[form.name] = exported(form, model, size, calibrating, Path(folder))
            calls[form.name] = network.predict_labels
        with torch.inference_mode():
            for name, call in calls.items():
                labels = [call(torch.from_numpy(p)[None])[0].numpy() for p in pictures]
                if name == next(iter(calls)):
                    expected = labels
                facts[name] |= judged(labels, expected, [truth for _, truth in scenes])
            batch = torch.from_numpy(pictures[0])[None]
            timings = stopwatch.compare(
                {name: lambda call=call: call(batch) for name, call in calls.items()},
                repeats=repeats,
                warmup=1,
                settle=stopwatch.SETTLE,
            )
    rows = [{"name": n, **facts[n], **timings[n].to_json()} for n in calls]
    job = {"model": model, "size": list(size), "batch": 1, "weights": WEIGHTS}
    return {"environment": environment("cpu"), "job": job, "exported": rows}


def in_pytorch(source: torch.nn.Module) -> Iterator[tuple[str, Call]]:
    """The references for the files: the network, plain and accelerated."""

    def plain(picture: Tensor) -> Tensor:
        return source(torch.from_numpy(normalize(picture[0].numpy()))[None]).argmax(1).byte()

    yield "PyTorch float32", plain
    mean, std = ([255 * value for value in values] for values in (MEAN, STD))
    for dtype in ("float32", "float16"):
        fast: Any = fassd_kernels.accelerate(source, dtype=getattr(torch, dtype))
        yield (
            f"accelerate() {dtype}",
            lambda picture, fast=fast: fast.label_pictures(picture, mean, std),
        )


def exported(
    form: ExportForm, model: str, size: tuple[int, int], calibrating: list[Picture], folder: Path
) -> tuple[ExportedNetwork, dict[str, Any]]:
    """The file of a row, opened, with its size and the time that it took to write."""
    request = Request(
        model,
        form.format,
        weights=WEIGHTS,
        size=size,
        dtype=form.dtype,
        output="labels",
        preprocess=True,
        backend=form.backend,
    )
    path = folder / form.name.replace(" ", "_") / f"net{SUFFIX_OF[form.format][0]}"
    with staged(path) as unnamed:
        _, seconds = timed(lambda: Exporter(request).write(unnamed, calibrating))
    size_of_all = sum(part.stat().st_size for part in path.parent.iterdir())
    facts = {**asdict(form), "bytes": size_of_all, "export_seconds": seconds}
    return ExportedNetwork(path, form.runtime), facts


def judged(
    labels: list[Picture], expected: list[Picture], truths: list[Picture]
) -> dict[str, float]:
    """Share of labels equal to plain PyTorch's, and the mIoU."""
    matrix = ConfusionMatrix(19)
    for found, truth in zip(labels, truths, strict=True):
        matrix.update(truth, torch.from_numpy(found))
    equal = np.mean([(f == e).mean() for f, e in zip(labels, expected, strict=True)])
    return {"labels_equal_percent": 100 * float(equal), "miou": matrix.scores().miou}


# ---------------------------------------------------------------------------------------- the table


def table(content: dict[str, Any] | None) -> list[str]:
    """The results, if there are any: lines of Markdown."""
    if content is None:
        return ["*Not measured yet.*"]
    job, where = content["job"], content["environment"]
    first = content["exported"][0]
    lines = [
        f"*`{job['model']}`, weights `{job['weights']}`, picture in, labels out, "
        f"{job['size'][0]}x{job['size'][1]}; {where['cpu']}, {where['threads']} threads, "
        f"{where['instruction_set']}, torch {where['torch']}, {where['date'][:10]}. Milliseconds: "
        f"medians of {first['n']} interleaved rounds ± half the interquartile range. Labels equal "
        f"to plain PyTorch's, and mIoU: on {STREETS} generated streets that the weights never "
        "saw.*",
        "",
    ]
    headings = ("file, runtime", "ms", "labels equal", "mIoU", "MiB", "export, s")
    rows = []
    for row in content["exported"]:
        time_ = f"{1e3 * row['median_s']:.0f} ±{1e3 * row['spread_s']:.0f}"
        mebibytes = f"{row['bytes'] / 2**20:.1f}" if "bytes" in row else ""
        seconds = f"{row['export_seconds']:.0f}" if "bytes" in row else ""
        equal, miou = f"{row['labels_equal_percent']:.3f}%", f"{100 * row['miou']:.2f}%"
        rows.append((row["name"], time_, equal, miou, mebibytes, seconds))
    return [*lines, *markdown_table(headings, rows, names=1)]


if __name__ == "__main__":
    main()
