"""Which of the compiled kernels the plans take: ``python -m benchmarks.chosen``.

Of every network of the family, batches of 1 and 8, 256x512 to 1024x2048, on GPUs of five sizes: how
many launches take each variant of a convolution or pair. What none takes need not be
compiled: the lists stand in ``csrc/plan/plan.h``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.rows import table
from fassd.bench.costs.cuda import FLOAT32, HALF, TF32, Model
from fassd.bench.costs.triton import record_network
from fassd.models import list_models
from fassd_kernels.triton.device import SHARED, Device, device_named

ARITHMETIC = {HALF: "half", TF32: "tf32", FLOAT32: "float32"}
SIZES = ((256, 512), (512, 1024), (1024, 2048))
BATCHES = (1, 8)
KERNELS = ("convolution_kernel", "pair_kernel")

Kernel = tuple[str, str, tuple[int, ...]]
"""Its template, arithmetic and variant, as ``torch.ops.fassd_kernels_plan.variants`` has them."""


def devices() -> list[Device]:
    named = [device_named(name) for name in ("H200", "A100", "RTX 4090", "Tesla T4")]
    orin = replace(
        named[1], name="Jetson AGX Orin", arch=87, multiprocessors=16, shared=SHARED[87] * 1024
    )
    return [*named, orin]


def compiled(arithmetic: int) -> list[Kernel]:
    """The kernels that there are of an arithmetic."""
    return [
        (kernel, ARITHMETIC[arithmetic], tuple(row))
        for kernel in KERNELS
        for row in torch.ops.fassd_kernels_plan.variants(arithmetic, kernel).tolist()
    ]


def kernel_of(answer: dict[str, Any]) -> Kernel | None:
    """That of a launch; None where it has a kernel of its own."""
    if answer["kernel"] not in KERNELS:
        return None
    blocks = answer["blocks"][0]
    names = ("warps", "m_tiles", "n_tiles", "sliding", "splits")
    return answer["kernel"], answer["arithmetic"], tuple(int(blocks[name]) for name in names)


def answers(networks: Sequence[str], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """All launches of the networks, planned for each GPU, of float32 with and without TF32."""
    for name, size, batch in itertools.product(networks, SIZES, BATCHES):
        calls, _ = record_network(name, *size, device_named("H200"), batch, dtype)
        for device, tf32 in itertools.product(devices(), {False, dtype == torch.float32}):
            model = Model(device, dtype, tf32)
            for call in calls:
                yield from model.answer(call)
        print(name, size, batch, dtype, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=list_models())
    options = parser.parse_args(arguments)
    taken = Counter(
        kernel_of(answer)
        for dtype in (torch.float16, torch.float32)
        for answer in answers(options.networks, dtype)
    )
    rows = [
        [*kernel[:2], ", ".join(map(str, kernel[2])), str(taken[kernel])]
        for arithmetic in ARITHMETIC
        for kernel in compiled(arithmetic)
    ]
    print(table(("kernel", "arithmetic", "variant", "launches"), rows))


if __name__ == "__main__":
    main()
