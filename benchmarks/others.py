"""Networks of other projects, by all ways to run them: ``python -m benchmarks.others``.

Each is measured like in `fassd bench run --module`, with its peak memory, at two sizes. A network
is written to the results file as soon as it is measured; results of the same machine are kept, so
that a run continues where it was stopped. ``--only`` names networks to measure, or to measure
again. Networks whose package is missing are named and left out.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import RESULTS, slug, write_json
from fassd.bench.candidates import candidates
from fassd.bench.jobs import Job
from fassd.bench.machine import environment
from fassd.bench.others import CLASSES, OTHERS
from fassd.bench.report.networks import others_table
from fassd.bench.report.results import collect
from fassd.bench.results import JobResults, Results
from fassd.bench.run import run
from fassd.models.device import torch_threads
from fassd.models.sizes import parse_size

COMMAND = "python -m benchmarks.others"
NAME = "others.json"
WAYS = ("eager", "channels_last", "inductor", "onnxruntime", "openvino", "ours")
SIZES = ((512, 1024), (1024, 2048))
MACHINE = ("cpu", "threads", "instruction_set", "torch")
"""Facts of a machine that results must share to stand in one file."""

# ------------------------------------------------------------------- a network in ERFNet's manner


class FactorisedResidual(nn.Module):
    """Two 3x3 convolutions as pairs of 3x1 and 1x3, the second one dilated, added to their input.

    Romera et al., ERFNet, IEEE T-ITS 2018, figure 2c.

    Shape: (N, channels, H, W) to the same.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for d in (1, dilation):
            layers += [
                nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1)),
                nn.ReLU(),
                nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d)),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + x)


class Halved(nn.Module):
    """A convolution of stride 2 and a pooling, side by side.

    Shape: (N, fewer, H, W) to (N, more, H / 2, W / 2).
    """

    def __init__(self, fewer: int, more: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fewer, more - fewer, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(more)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat([self.conv(x), self.pool(x)], 1)))


def doubled(more: int, fewer: int) -> Iterator[nn.Module]:
    """Layers to twice the height and width."""
    yield nn.ConvTranspose2d(more, fewer, 3, stride=2, padding=1, output_padding=1)
    yield nn.BatchNorm2d(fewer)
    yield nn.ReLU()


def erfnet_like() -> nn.Module:
    """A network of ERFNet's parts: (N, 3, H, W), multiples of 8, to (N, 19, H, W)."""
    return nn.Sequential(
        Halved(3, 16),
        Halved(16, 64),
        *(FactorisedResidual(64, 1) for _ in range(5)),
        Halved(64, 128),
        *(FactorisedResidual(128, dilation) for dilation in (2, 4, 8, 16) * 2),
        *doubled(128, 64),
        *(FactorisedResidual(64, 1) for _ in range(2)),
        *doubled(64, 16),
        *(FactorisedResidual(16, 1) for _ in range(2)),
        nn.ConvTranspose2d(16, CLASSES, 2, stride=2),
    )


# --------------------------------------------------------------------------------- what is measured

NETWORKS = {
    "resnet18d": "fassd_net@resnet18d",
    "mobilenetv4": "fassd_net@mobilenetv4_conv_small",
    **{re.split("[:/]", network.model)[1].lower(): network.model for network in OTHERS},
    "erfnet_like": "benchmarks.others:erfnet_like",
}
"""Name of a network for ``--only``, and its name in a job."""


@dataclass(frozen=True)
class Record:
    """The results file, which is rewritten after each network."""

    path: Path
    where: dict[str, object]

    def read(self) -> list[JobResults]:
        """The results in the file.

        Raises:
            ValueError: it is from another machine or version of PyTorch.
        """
        if not self.path.exists():
            return []
        found = Results.read(self.path)
        for fact in MACHINE:
            then, now = found.environment.get(fact), self.where[fact]
            if then != now:
                raise ValueError(f"{self.path} has {fact} {then}, here is {now}: move it away")
        return list(found.comparisons)

    def add(self, measured: JobResults) -> None:
        """Add the results of a job, in place of those of the same network and size."""
        kept = {place(each.job): each for each in self.read()}
        kept[place(measured.job)] = measured
        order = list(NETWORKS.values())
        rows = sorted(kept.values(), key=lambda each: (order.index(each.job.model), each.job.size))
        results = Results(environment=self.where, comparisons=tuple(rows), peers=True)
        write_json(self.path, results.to_json())


def place(job: Job) -> tuple[str, tuple[int, int]]:
    return job.model, tuple(job.size)


def left_to_do(jobs: Sequence[Job], record: Record, again: bool) -> Iterator[Job]:
    """Jobs that are not in the file, or all of them `again`, if their packages are installed."""
    missing = {network.model: network for network in OTHERS if network.missing}
    for model in dict.fromkeys(job.model for job in jobs if job.model in missing):
        print(f"{missing[model].title} is left out: {missing[model].install}", flush=True)
    known = {place(measured.job) for measured in record.read()}
    for job in jobs:
        if job.model not in missing and (again or place(job) not in known):
            yield job


def tables(folder: Path = RESULTS) -> list[str]:
    """A table of each machine that has results there: lines of Markdown."""
    files = sorted(folder.glob(f"*/{NAME}"))
    found = [others_table(collect([path.parent])) for path in files]
    lines = [line for table in found if table is not None for line in table.markdown()]
    return lines or [f"Not measured yet: `{COMMAND}` does."]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--sizes", metavar="HxW,...", help="default: 512x1024,1024x2048")
    parser.add_argument("--ways", metavar="KEY,...", help=f"default: {','.join(WAYS)}")
    parser.add_argument("--repeats", type=int, default=11, help="interleaved rounds")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="default: the folder of this processor")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(NETWORKS)
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"--only: unknown {', '.join(unknown)}; known are {', '.join(NETWORKS)}")
    sizes = [parse_size(text) for text in options.sizes.split(",")] if options.sizes else SIZES
    with torch_threads(options.threads):
        where = environment()
    folder = f"{slug(where['cpu'])}-{where['cores']}-cores"
    record = Record(options.output or RESULTS / folder / NAME, where)
    job = Job(
        repeats=options.repeats, threads=options.threads, memory=not options.no_memory, warmup=1
    )
    jobs = [replace(job, model=NETWORKS[name], size=size) for name in names for size in sizes]
    chosen = candidates(only=options.ways.split(",") if options.ways else WAYS)
    failed = 0
    for each in left_to_do(jobs, record, again=options.only is not None):
        start = time.perf_counter()
        try:
            report = run([each], [way for way in chosen if not way.labels])
        except Exception as error:  # the other networks continue
            failed += 1
            print(f"{each.model} failed: {error}", flush=True)
            continue
        (measured,) = report.results.comparisons
        record.add(measured)
        print(summary(measured), f"({time.perf_counter() - start:.0f} s)", flush=True)
    return int(failed > 0)


def summary(measured: JobResults) -> str:
    """One line with our time."""
    ours, fastest = measured.by_name.get("ours"), measured.fastest_peer
    size = "x".join(map(str, measured.job.size))
    if ours is None or fastest is None:
        return f"{measured.job.model} {size}: {'; '.join(measured.notes)}"
    return (
        f"{measured.job.model} {size}: ours {1e3 * ours.timing.median:.1f} ms, "
        f"{measured.speedup(ours, fastest) or 0:.2f} times as fast as {fastest.name}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
