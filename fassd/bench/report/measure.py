"""`fassd report --measure`: measurements on this machine, and the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fassd.bench.candidates import OURS, REFERENCE, candidates
from fassd.bench.jobs import Job
from fassd.bench.layers import run_layers
from fassd.bench.report.factorisation import run_factorisation
from fassd.bench.run import run
from fassd.io.files import replacing
from fassd.models import list_models
from fassd.models.zoo import default_weights

QUICK_PEERS = (REFERENCE, "channels_last", OURS)
SIZES = ((256, 512), (512, 1024), (1024, 2048))
MIDDLE_SIZE = (512, 1024)
BATCHES = (2, 4, 8)
DETAILED = "fassd_net"

Step = Callable[[str], object]
ResultsPart = tuple[str, str, Callable[[Step], Any]]
"""A results file: its name without ending; its content in a few words; function to measure it."""


def parts(
    full: bool,
    threads: int | None = None,
    size: tuple[int, int] = (1024, 2048),
    repeats: int = 7,
) -> Iterator[ResultsPart]:
    """List the measurements, the most important first.

    Args:
        full: True measures every peer, with peak memory, and not only plain PyTorch and ours.
        threads: number of PyTorch's threads; None leaves its own choice.
        size: size of the largest pictures, multiples of 32.
        repeats: number of rounds.
    """
    keys = None if full else QUICK_PEERS
    base = partial(Job, threads=threads, repeats=repeats, warmup=1, memory=False)
    jobs = [base(n, weights=default_weights(n), size=size, memory=full) for n in list_models()]
    dtypes = ["float32", "float16", "bfloat16"] if full else ["float32", "float16"]
    text = "every network" + (", every peer" if full else "")
    peers = candidates(dtypes, keys)
    yield "networks", text, lambda step: run(jobs, peers, step=step).to_json()
    detailed = partial(base, DETAILED, weights=default_weights(DETAILED))
    sizes = [side for side in SIZES if side[0] < size[0]] or [size]
    middle = MIDDLE_SIZE if MIDDLE_SIZE in sizes else sizes[-1]
    fewer = fewer_threads(threads or torch.get_num_threads())
    # The environment of a report states the threads of its first job.
    scaled = [
        *(detailed(size=side) for side in sizes),
        *(detailed(size=middle, batch=batch) for batch in BATCHES),
        *(detailed(size=middle, threads=count) for count in fewer),
    ]
    ours = candidates(["float32", "float16"], QUICK_PEERS)
    yield (
        "scaling",
        "sizes, batches and threads",
        lambda step: run(scaled, ours, step=step).to_json(),
    )
    yield (
        "modules",
        "DAPF against ASPP, MDA against 3x3s",
        lambda step: run_factorisation(size, repeats=repeats + 2, threads=threads, step=step),
    )
    largest = detailed(size=size, memory=full)
    yield "layers", "every fused call", lambda step: run_layers(largest, step=step).to_json()


def fewer_threads(count: int) -> list[int]:
    """Numbers of threads below `count`: halves of it."""
    return [count >> halvings for halvings in range(1, count.bit_length())]


def measure(
    folder: Path, wanted: Iterator[ResultsPart], step: Step = lambda _: None
) -> Iterator[Path]:
    """Measure what `folder` does not contain yet; a file appears when its part is complete.

    Yields the path of each file when it has been written.
    """
    for name, text, measured in wanted:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        step(text)
        results = measured(step)
        with replacing(path) as file:
            file.write(json.dumps(results, indent=1).encode())
        yield path
