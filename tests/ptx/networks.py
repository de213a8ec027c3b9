"""Whole networks in 16 bits and TF32 against float64, computed by executed PTX.

``python -m ptx.networks``, with the environment of ``make ptx-networks``, writes the table
``executed-ptx.md`` and its figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from conformance import harness  # which makes the executed backends available
from ptx import executor

import fassd_kernels
from benchmarks import RESULTS, write_json, write_text
from fassd.bench.jobs import Job, build_model, render_batch
from fassd.bench.markdown import markdown_table
from fassd.evaluation.agreement import agreement_of
from fassd.models.sizes import parse_size

NETWORKS = ("fassd_net", "fassd_net_l2")
WEIGHTS = "streets"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "TF32": torch.float32}
TITLE = "Networks computed by executed PTX"
ABOUT = """\
Logits and labels of the networks, with the weights `{weights}`, against plain PyTorch in float64,
on a street of {height}x{width} pixels that they never saw. Computed by executing, on a CPU, the PTX
that {compilers} made of the kernels: no GPU was there. What that cannot show: time, what ptxas
makes of the PTX, how tensor cores round the sums of a product. `make ptx-networks` makes this.
"""


@dataclass(frozen=True)
class Row:
    """How far a network's output is from float64's.

    Attributes:
        relative_error: ||out - ref|| / ||ref|| of the logits.
        largest_difference: of a logit, over the largest.
        labels_equal_percent: pixels whose largest logit is the same class.
    """

    network: str
    backend: str
    capability: int
    dtype: str
    relative_error: float
    largest_difference: float
    labels_equal_percent: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.network, self.backend, self.capability, list(DTYPES).index(self.dtype)


def rows(backend: str, networks: Sequence[str], size: tuple[int, int]) -> Iterator[Row]:
    for network in networks:
        job = Job(network, weights=WEIGHTS, size=size)
        _, batch = render_batch(job)
        batch = batch.clone()  # from numpy's memory, which is not watched
        model = build_model(job, batch)
        with torch.inference_mode():
            right = model.double()(batch.double())
            model.float()
            for name, dtype in DTYPES.items():
                start = time.perf_counter()
                torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "TF32" else "ieee"
                fast = fassd_kernels.accelerate(model, dtype=dtype, backend=backend)
                out = fast(batch.to(dtype)).double()
                found = agreement_of(right, out)
                error = ((out - right).norm() / right.norm()).item()
                capability = executor.DEFAULTS["capability"]
                assert isinstance(capability, int) and found.relative is not None
                yield Row(network, backend, capability, name, error, found.relative, found.labels)
                print(
                    f"{network} {backend} {name}: {time.perf_counter() - start:.0f} s", flush=True
                )


def rendered(setup: dict[str, Any], found: list[Row]) -> str:
    backends = {row.backend for row in found}
    compilers = " and ".join(
        {"cuda": "nvcc", "triton": "Triton"}[name] for name in sorted(backends)
    )
    headings = ["network", "backend", "as on", "type", "relative error", "largest difference"]
    lines = [
        [
            *(row.network, row.backend, f"sm_{row.capability}", row.dtype),
            *(f"{row.relative_error:.1e}", f"{row.largest_difference:.1e}"),
            f"{row.labels_equal_percent:.3f} %",
        ]
        for row in found
    ]
    height, width = setup["size"]
    about = ABOUT.format(height=height, width=width, weights=setup["weights"], compilers=compilers)
    table = "\n".join(markdown_table([*headings, "equal labels"], lines, names=4))
    return f"# {TITLE}\n\n{about}\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("cuda", "triton"), required=True)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all")
    parser.add_argument("--size", type=parse_size, default=(256, 512), metavar="HxW")
    parser.add_argument("--output", type=Path, default=RESULTS / "executed-ptx")
    chosen = parser.parse_args()
    assert "cpu" in harness.DEVICES[chosen.backend], "no executor: see the Makefile"
    record = chosen.output.with_suffix(".json")
    setup = {"size": list(chosen.size), "weights": WEIGHTS}
    known = json.loads(record.read_text()) if record.exists() else {}
    found = {row.key: row for row in (Row(**row) for row in known.get("rows", ()))}
    if {name: known.get(name) for name in setup} != setup:
        found = {}
    for row in rows(chosen.backend, chosen.network or NETWORKS, chosen.size):
        found[row.key] = row  # kept at once: each takes a minute
        every = sorted(found.values(), key=lambda row: row.key)
        write_json(record, {**setup, "rows": [asdict(row) for row in every]})
        write_text(chosen.output.with_suffix(".md"), rendered(setup, every))


if __name__ == "__main__":
    main()
