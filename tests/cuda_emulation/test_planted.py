"""Mistakes planted in kernels are noticed, by those who should, and nothing is without them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_emulation import build

SOURCE = build.HERE / "kernels" / "planted.cu"
STOPPED = r"stopped: CUDA emulation: "
RACE = r"WARNING: ThreadSanitizer: data race"
HEAP = r"ERROR: AddressSanitizer: heap-buffer-overflow"
WRONG = r"wrong$"
# What is said of each mistake by the variants that notice it.
NOTICED = {
    "guard_write": {
        "plain": STOPPED + r".*the guard zone at byte 256 of 576 bytes",
        "address": r"ERROR: AddressSanitizer: use-after-poison",
    },
    "guard_read": {"address": r"ERROR: AddressSanitizer: use-after-poison"},
    "shared_write": {
        "plain": STOPPED + r".*the guard zone at byte 576 of 576 bytes",
        "address": HEAP,
    },
    "shared_read": {"address": HEAP},
    "static_shared": {"address": r"runtime error: index 64 out of bounds"},
    "matrix_row": {
        "plain": STOPPED + r".*thread \(9, 0, 0\): load_matrices at .*address 576 is beyond",
        "address": HEAP,
    },
    "global_read": {"address": HEAP},
    "copy_source": {"address": HEAP},
    "misaligned_source": {"plain": STOPPED + r".*copy_async at .*is not aligned to 16 bytes"},
    "misaligned_target": {"plain": STOPPED + r".*copy_async at .*8 is not a multiple of 16"},
    "misaligned_vector": {"address": r"runtime error: .*misaligned address"},
    "missing_barrier": {"thread": RACE},
    "missing_warp_barrier": {"thread": RACE},
    "missing_wait": {"plain": WRONG, "thread": RACE},
    "wait_without_barrier": {"thread": RACE},
    "early_copy": {"thread": RACE},
    "divergent_barrier": {
        "plain": STOPPED
        + r"deadlock: no thread can go on\n  block \(0, 0, 0\): threads 0 to 39 at "
        r"__syncthreads of 64 \(.*planted.cu:\d+\); threads 40 to 63 have ended$",
    },
    "block_race": {"thread": RACE},
    "neighbour_race": {"thread": RACE},
    "missing_fence": {"thread": RACE},
    "missing_grid_barrier": {"thread": RACE},
    "overflow": {"address": r"runtime error: signed integer overflow"},
    "shift": {"address": r"runtime error: shift exponent 32 is too large"},
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@functools.cache
def fixed_addresses() -> list[str]:
    """ThreadSanitizer cannot place its memory where the kernel randomises addresses too much."""
    command = ["setarch", "-R"]
    works = shutil.which("setarch") and not subprocess.run([*command, "true"]).returncode
    return command if works else []


@functools.cache
def program(variant: str) -> Path:
    if variant != "plain":
        runtime = {"address": "libasan.so", "thread": "libtsan.so"}[variant]
        found = subprocess.run(
            [*build.compiler(), f"-print-file-name={runtime}"], capture_output=True, text=True
        )
        if not found.stdout.startswith("/"):
            pytest.skip(f"{build.compiler()[0]} has no {runtime}")
    return build.build([SOURCE], "planted", variant, shared=False)


def run(variant: str, name: str, how: str) -> tuple[int, str]:
    prefix = fixed_addresses() if variant == "thread" else []
    done = subprocess.run(
        [*prefix, str(program(variant)), name, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("variant", "name"), [(variant, name) for name, says in NOTICED.items() for variant in says]
)
def test_mistakes_are_noticed(variant: str, name: str) -> None:
    status, output = run(variant, name, "broken")
    assert status != 0
    assert re.search(NOTICED[name][variant], output, re.M), output


@pytest.mark.parametrize("variant", build.VARIANTS)
@pytest.mark.parametrize("name", NOTICED)
def test_nothing_is_noticed_without_them(variant: str, name: str) -> None:
    assert run(variant, name, "sound") == (0, "right\n")
