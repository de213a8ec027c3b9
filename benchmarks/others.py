"""Networks of other projects, by all ways to run them: ``python -m benchmarks.others``.

Each is measured like in `fassd bench run --module`, with its peak memory, at two sizes. A network
is written to the results file as soon as it is measured; results of the same machine are kept, so
that a run continues where it was stopped. ``--only`` names networks to measure, or to measure
again. Networks whose package is missing are named and left out.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
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

KNOWN = f"of {', '.join(NETWORKS)}; measured again if it was before"


def read(path: Path, where: Mapping[str, object]) -> dict[tuple[str, tuple[int, int]], JobResults]:
    """The results in a file, by network and size.

    Raises:
        ValueError: it is from another machine or version of PyTorch.
    """
    if not path.exists():
        return {}
    found = Results.read(path)
    for fact in MACHINE:
        then, now = found.environment.get(fact), where[fact]
        if then != now:
            raise ValueError(f"{path} has {fact} {then}, here is {now}: move it away")
    return {(each.job.model, each.job.size): each for each in found.comparisons}


def add(path: Path, where: dict[str, object], measured: JobResults) -> None:
    """Add the results of a job, in place of those of the same network and size."""
    kept = read(path, where) | {(measured.job.model, measured.job.size): measured}
    order = list(NETWORKS.values())
    rows = sorted(kept.values(), key=lambda each: (order.index(each.job.model), each.job.size))
    results = Results(environment=where, comparisons=tuple(rows), peers=True)
    write_json(path, results.to_json())


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
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NAME", help=KNOWN)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    parser.add_argument("--repeats", type=int, default=11, help="interleaved rounds")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="default: the folder of this processor")
    options = parser.parse_args(arguments)
    where = environment()
    folder = f"{slug(where['cpu'])}-{where['cores']}-cores"
    path = options.output or RESULTS / folder / NAME
    known = read(path, where)
    chosen = [way for way in candidates(only=options.ways) if not way.labels]
    missing = {network.model: network for network in OTHERS if network.missing}
    failed = 0
    for name, size in itertools.product(options.only or NETWORKS, options.sizes):
        model = NETWORKS[name]
        if model in missing:
            print(f"{missing[model].title} is left out: {missing[model].install}", flush=True)
        elif options.only or (model, size) not in known:
            memory, start = not options.no_memory, time.perf_counter()
            job = Job(model, size=size, repeats=options.repeats, warmup=1, memory=memory)
            try:
                report = run([job], chosen)
            except Exception as error:  # the other networks continue
                failed += 1
                print(f"{model} failed: {error}", flush=True)
                continue
            (measured,) = report.results.comparisons
            add(path, where, measured)
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
