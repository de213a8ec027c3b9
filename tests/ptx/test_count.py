"""Instructions that kernels execute: what the time model says of them, and what they may be.

These tests run where ``PTX_SETTINGS`` says that the GPU of `calibration.SETTINGS` is executed, as
``make ptx`` does.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from conformance import cases
from conformance.harness import EXECUTED
from ptx import calibration, executor, instruction_budget
from ptx.count import machine_instructions, part_of
from ptx.host import library

pytestmark = pytest.mark.skipif(
    EXECUTED != "cuda" or not calibration.is_set(),
    reason=f"PTX_SETTINGS are not {calibration.SETTINGS}",
)

TOLERANCE = 0.20
TOTAL = 0.05  # of a network


def test_the_model_says_what_is_executed() -> None:
    """Every launch of a network; kinds differ in kernel, in how it multiplies, and in ending."""
    pairs = calibration.pairs_of("fassd_net", (96, 256))
    telling = re.compile(r"\w+_vectors|sliding_steps")
    kinds = {
        (pair.answer["kernel"], *sorted(filter(telling.fullmatch, pair.answer["work"])))
        for pair in pairs
    }
    assert len(kinds) >= 10, kinds
    off = [
        f"{pair.answer['label']} {pair.answer['channels']}: {pair.ratio:.2f}"
        for pair in pairs
        if abs(pair.ratio - 1) > TOLERANCE
    ]
    assert not off, off
    executed = sum(pair.counted.instructions for pair in pairs)
    planned = sum(sum(pair.answer["instructions"].values()) for pair in pairs)
    assert abs(executed / planned - 1) <= TOTAL


def test_products_are_counted_exactly() -> None:
    """Of tensor cores, and the loads of matrices: their number needs no figure."""
    call = cases.conv_act(1, (48, 16), 40, (32, 64), activation="relu")
    (pair,) = instruction_budget.launches_of({}, torch.float16, call)
    kinds, work = pair.counted.kinds, pair.answer["work"]
    matrices = sum(count for kind, count in kinds.items() if kind == "tensor cores")
    (blocks,) = pair.answer["blocks"]
    assert matrices * 16 * 8 * 16 == blocks["products"] * blocks["blocks"]
    assert matrices < work["products"] < pair.counted.parts["product"]


def test_bank_passes_are_those_of_the_plan() -> None:
    """Tiles that the plan takes have no conflicts among the pixels that it reads for products."""
    call = cases.conv_act(1, (32,), 32, (64, 64), activation="relu")
    (pair,) = instruction_budget.launches_of({}, torch.float16, call)
    assert pair.counted.passes <= 1.6 * pair.counted.least_passes


def test_kernels_stay_within_the_budget() -> None:
    found = instruction_budget.excesses(instruction_budget.measure(), instruction_budget.read())
    assert not found, "\n".join(found)


def test_an_epilogue_that_grows_is_told() -> None:
    """Sixteen instructions more before each vector that is stored, planted in the stem's PTX."""
    call = cases.conv_act(1, (3,), 16, (64, 128), stride=(2, 2), activation="relu")
    environment = {instruction_budget.FUSION: "never"}
    modules = {path: path.read_text() for path in library().parent.glob("*.ptx")}
    planted = {
        path: text.replace("st.global.v4", "xor.b32 %r1, %r1, 0;\n\t" * 16 + "st.global.v4")
        for path, text in modules.items()
        if "stem_kernel" in text
    }
    assert planted
    try:
        for path, text in planted.items():
            executor.load(path.name, text)
        (pair,) = instruction_budget.launches_of(environment, torch.float16, call)
    finally:
        for path in planted:
            executor.load(path.name, modules[path])
    kernel, rates = instruction_budget.rates_of(pair)
    budget = instruction_budget.read()
    (found,) = instruction_budget.excesses({kernel: rates}, {kernel: budget[kernel]})
    assert found.startswith(f"{kernel}: epilogue takes ")


def test_a_budget_that_is_loose_or_lacks_a_kernel_is_told() -> None:
    budget = instruction_budget.read()
    loose = copy.deepcopy(budget)
    kernel = next(iter(loose))
    part = next(iter(loose[kernel]))
    loose[kernel][part] *= 1.1
    assert len(instruction_budget.excesses(budget, loose)) == 1
    del loose[kernel]
    (found,) = instruction_budget.excesses(budget, loose)
    assert found.startswith(f"{kernel} is not in the budget")
    (found,) = instruction_budget.excesses(loose, budget)
    assert found.startswith(f"{kernel} was not launched")
    assert instruction_budget.excesses(budget, budget) == []


def test_the_part_of_a_kernel() -> None:
    inlined = ["to_float", "load_lanes<__half>", "write_tile<__half, 2>"]
    assert part_of(inlined) == "epilogue"
    assert part_of(["copy_async", "copy_pixels<__half>", "convolution_kernel<int>"]) == "copy"
    assert part_of(["multiply<__half>", "multiply_taps<int>"]) == "product"
    assert part_of(["locate_slots"]) == part_of([]) == "other"


@pytest.mark.parametrize(
    ("opcode", "count"),
    [("add.s32", 1), ("add.s64", 2), ("setp.lt.u64", 2), ("mov.b32", 0), ("div.u32", 19)],
)
def test_machine_instructions(opcode: str, count: int) -> None:
    assert machine_instructions(opcode) == count
