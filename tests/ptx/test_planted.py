"""Mistakes planted in kernels are noticed, and nothing is without them: README.md has a table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ptx import build, executor

if build.nvcc() is None:
    pytest.skip("there is no nvcc to make PTX of planted.cu", allow_module_level=True)

BEYOND = "shared address 512 [+] 4 beyond 512"
UNWRITTEN = "holds what nothing wrote"
WRONG = "wrong"  # the result, and nothing else is noticed
# What is said of each mistake.
NOTICED = {
    "write_behind_an_array": "race: shared byte 256",
    "read_before_an_array": f"shared address 252 .*{UNWRITTEN}",
    "write_past_shared_memory": BEYOND,
    "read_past_shared_memory": BEYOND,
    "read_past_static_shared_memory": UNWRITTEN,
    "matrix_row_past_shared_memory": "shared address 512 .*lane 9",
    "read_past_global_memory": "in no allocation",
    "copy_past_global_memory": "in no allocation",
    "copy_from_misaligned": "the source is not aligned to 16 bytes",
    "copy_to_misaligned": "8 is not aligned to 16 bytes",
    "misaligned_vector": "not aligned to 16 bytes",
    "missing_barrier": UNWRITTEN,
    "missing_warp_barrier": "race: shared byte",
    "missing_wait": WRONG,
    "wait_behind_the_barrier": "race: shared byte",
    "early_copy": "race: shared byte",
    "divergent_barrier": "lanes wait for others of their warp",
    "blocks_add": "race: global byte",
    "blocks_read_neighbours": "race: global byte",
    "blocks_read_all": "race: global byte",
    "overflow": "in no allocation",
    "shift": WRONG,
}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    executor.load("planted.ptx", build.ptx_of(build.HERE / "planted.cu", 80))


def run(name: str, broken: bool, **settings: object) -> None:
    values, out = np.arange(1, 65, dtype=np.int32), np.zeros(256, np.int32)
    with executor.settings(races=True, **settings):
        blocks = 6 if name.startswith("blocks") else 1
        executor.launch(
            f"{name}_kernel", broken, values, out, grid=(blocks,), block=(64,), shared=512
        )
    if out[:64].tolist() != values.tolist():
        raise executor.Fault(WRONG)


@pytest.mark.parametrize("name", NOTICED)
def test_mistakes_are_noticed(name: str) -> None:
    with pytest.raises(executor.Fault, match=NOTICED[name]):
        run(name, True)
    for arrival, seed in itertools.product(executor.ARRIVALS, range(3)):
        run(name, False, arrival=arrival, seed=seed)
