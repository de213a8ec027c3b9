"""How many instructions each kernel may execute for its work: ``instruction_budget.json``.

Of a copy to shared memory, for 32 lanes' 16 bytes, or for a box; of products, for a warp's step of
channels; of the epilogue, for 32 lanes' eight channels of a pixel; of the rest, for a warp. By
kernel, and by what its epilogue does. ``python -m ptx.count --budget`` writes it anew; whoever runs
it answers for the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from conformance import cases
from conformance.harness import Call
from ptx.calibration import COPIES, FUSION, VARIABLE, Pair, pairs_of_call

PATH = Path(__file__).with_suffix(".json")
SLACK = 1.03  # of other releases of nvcc, and of what does not matter
# Of what each part is counted.
UNITS = {
    "copy": ("pixel_vectors", "weight_vectors", "boxes"),
    "product": ("steps", "sliding_steps"),
    "epilogue": tuple(
        f"{ending}_vectors" for ending in ("plain", "copied", "residual", "resized", "addend")
    ),
    "other": (
        "warps",
        "box_warps",
        "stem_warps",
        "argmax_warps",
        "enlarged_vectors",
        "confident_vectors",
        "streamed_vectors",
        "depthwise_vectors",
        "grouped_vectors",
        "compared_vectors",
    ),
}
HALF, FLOAT32 = 0, 2

Budget = dict[str, dict[str, float]]


def calls() -> Iterator[tuple[dict[str, str], torch.dtype, Call]]:
    """Calls that launch every kernel with every epilogue, and the environment that asks for it."""
    for arithmetic, dtype in ((HALF, torch.float16), (FLOAT32, torch.float32)):
        variants = torch.ops.fassd_kernels_plan.variants
        for copies in ("", "threads"):
            for row in variants(arithmetic).tolist():
                call = cases.conv_act(1, (32, 16), 8 * row[2], (32, 64), activation="relu")
                yield {VARIABLE: ",".join(map(str, row)), COPIES: copies}, dtype, call
            for row in variants(arithmetic, "pair_kernel").tolist():
                pair = cases.asymmetric_conv(1, 24, 8 * row[2], 8 * row[2], (32, 64), 2)
                chosen = {VARIABLE: ",".join(map(str, row)), FUSION: "always", COPIES: copies}
                yield chosen, dtype, pair
    for call in (
        cases.conv_act(1, (24,), 16, (32, 64), activation="prelu", residual=True),
        cases.conv_act(1, (24,), 16, (32, 64), activation="relu", pool=2),
        cases.conv_act(1, (3,), 16, (64, 128), stride=(2, 2), activation="relu"),
        cases.normalize_conv_act(1, 24, (64, 128), stride=(2, 2), activation="relu"),
        cases.upsample_conv1x1(1, (24,), (16,), 32, (16, 32), (32, 64), "prelu"),
        cases.mda(1, 48, 24, (32, 64), 2),
        cases.hardblock(1, 24, (10, 18, 10, 28), (32, 64)),
        cases.upsample_argmax(1, 19, (16, 32), (64, 128)),
        cases.upsample(1, 19, (16, 32), (64, 128)),
        cases.upsample_confidence(1, 19, (16, 32), (64, 128)),
        *(cases.grouped_conv_act(1, 64, 64, 1, (16, 32), side) for side in (3, 5, 7)),
        cases.grouped_conv_act(1, 64, 8, 1, (16, 32)),
        cases.max_pool(1, 64, (32, 64)),
    ):
        # One kernel serves for what all of them are followed by.
        yield {VARIABLE: "8,2,4,0", FUSION: "never"}, torch.float16, call
        if call.operator == "mda":
            yield {VARIABLE: "8,2,4,0", FUSION: "always"}, torch.float16, call


def launches_of(environment: dict[str, str], dtype: torch.dtype, call: Call) -> list[Pair]:
    """What a call launches."""
    with mock.patch.dict(os.environ, environment):
        return pairs_of_call(call, dtype)


def rates_of(pair: Pair) -> tuple[str, dict[str, float]]:
    """A launch's kernel with what its epilogue does, and its instructions for each unit of work."""
    work, counted = pair.answer["work"], pair.counted
    rates = {}
    for part, units in UNITS.items():
        amount = sum(work.get(unit, 0.0) for unit in units)
        if amount and counted.parts[part]:
            rates[part] = round(counted.parts[part] / amount, 1)
    endings = [unit.removesuffix("_vectors") for unit in UNITS["epilogue"] if unit in work]
    extras = [name for name in ("pooled", "transformed") if f"{name}_vectors" in work]
    extras += [name for name in ("boxes",) if name in work]
    return " ".join([counted.kernel, *endings, *extras]), rates


def measure() -> Budget:
    """What each kernel executes now; of several launches, the most."""
    found: Budget = {}
    for environment, dtype, call in calls():
        for pair in launches_of(environment, dtype, call):
            name, rates = rates_of(pair)
            kept = found.setdefault(name, {})
            for part, rate in rates.items():
                kept[part] = max(rate, kept.get(part, 0.0))
    return found


def read() -> Budget:
    return json.loads(PATH.read_text())


def write(budget: Budget) -> None:
    """One line a kernel, so that a difference can be read."""
    lines = [f"  {json.dumps(name)}: {json.dumps(rates)}" for name, rates in sorted(budget.items())]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def excesses(measured: Budget, budget: Budget) -> list[str]:
    """How kernels execute more than the budget allows, or so much less that it is loose."""
    found = [f"{name} is not in the budget" for name in measured.keys() - budget.keys()]
    found += [f"{name} was not launched" for name in budget.keys() - measured.keys()]
    for name in measured.keys() & budget.keys():
        for part in UNITS:
            now, limit = measured[name].get(part, 0.0), budget[name].get(part, 0.0)
            if not limit / SLACK <= now <= limit * SLACK:
                found.append(f"{name}: {part} takes {now} instructions, the budget is {limit}")
    return [f"{each}; if it is meant, python -m ptx.count --budget" for each in sorted(found)]
