"""The CPU kernels on an emulated aarch64: which there are, whether right, what they execute."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from aarch64 import build, cases, host, instructions
from conformance.cases import SAMPLES, conv_act
from conformance.harness import DTYPES, Call, check_result
from torch import Tensor

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=f"not here: {build.missing()}")

# What is emulated, the instruction set that is asked for, and the one that is taken.
SETS = [
    ("max", "", "NEON + BF16"),
    ("max", "neon", "NEON"),
    ("cortex-a53", "", "NEON"),
    ("cortex-a53", "portable", "portable vectors"),
]
Run = Callable[[Call], Tensor]


@pytest.fixture
def running() -> Iterator[Callable[..., Run]]:
    """Makes a function that computes calls on an emulated CPU."""
    drivers: list[host.Driver] = []

    def start(cpu: str, asked: str = "", program: Path | None = None) -> Run:
        driver = host.Driver(program or build.driver(), cpu, asked)
        drivers.append(driver)

        def run(call: Call) -> Tensor:
            return driver(host.schema_of(call.operator), call.positional, call.keywords)

        return run

    yield start
    for driver in drivers:
        driver.close()


@pytest.mark.parametrize(("cpu", "asked", "taken"), SETS)
def test_every_operator(running, cpu, asked, taken):
    driver = host.Driver(build.driver(), cpu, asked)
    assert driver(host.schema_of("cpu_capability")) == taken
    driver.close()
    run = running(cpu, asked)
    for calls in SAMPLES.values():
        for call in calls:
            for dtype in DTYPES:
                given = call.to(dtype)
                check_result(given, run(given))


@pytest.mark.parametrize(
    ("cpu", "asked", "why"),
    [
        ("cortex-a72", "neon_bf16", "which this CPU does not offer"),
        ("max", "avx2", "which this CPU does not offer"),
        ("max", "sve", "on aarch64 portable, neon or neon_bf16"),
    ],
)
def test_instruction_sets_that_are_refused(cpu, asked, why):
    driver = host.Driver(build.driver(), cpu, asked)
    with pytest.raises(RuntimeError, match=why):
        driver(host.schema_of("cpu_capability"))
    driver.close()


def test_an_error_comes_back(running):
    run = running("max")
    call = conv_act().to(torch.float32)
    with pytest.raises(RuntimeError, match="stride"):
        run(call.with_(stride=(0, 1)))
    check_result(call, run(call))


# Mistakes, each in what one type is computed by.
PLANTED = (
    ("multiply_impl.h", "add_product<T, o - first>", "add_product<T, (o - first) ^ 1>"),
    ("tile_products_impl.h", "weights + 4 * o + 32", "weights + 4 * o"),
)


def test_a_mistake_is_caught(running):
    run = running("max", program=build.driver(PLANTED))
    call = conv_act(channels=(9,), out_channels=9, size=(8, 9))
    for dtype in (torch.float32, torch.bfloat16):
        given = call.to(dtype)
        with pytest.raises(AssertionError, match=r"\|\|out - ref\|\|"):
            check_result(given, run(given))


def test_the_library_links():
    """It offers what Python calls, and asks for no more than C interfaces and C++'s own library."""
    command = [build.OBJDUMP, "--dynamic-syms", str(build.library())]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines() if " g " in line or "*UND*" in line]
    offered = {row[-1] for row in rows if "*UND*" not in row}
    asked = {row[-1] for row in rows if "*UND*" in row}
    assert offered == {"PyInit__C", "fassd_kernels_checksum"}
    assert any(name.startswith("aoti_torch_") for name in asked)
    assert not [name for name in asked if "torch" in name and name.startswith("_Z")]


@pytest.fixture(scope="module")
def case_file(tmp_path_factory) -> Path:
    """A few drawn calls of a few operators."""
    path = tmp_path_factory.mktemp("cases") / "few.calls"
    with open(path, "wb") as file:
        for operator in ("conv_act", "upsample_argmax", "upsample_confidence", "normalize"):
            recorder = cases.Recorder(operator, file)
            for call in SAMPLES[operator]:
                for dtype in DTYPES:
                    recorder(call.to(dtype))
    return path


def checked(file: Path, cpu: str = "max") -> subprocess.CompletedProcess[str]:
    command = [build.EMULATOR, "-cpu", cpu, str(build.driver()), str(file)]
    return subprocess.run(command, env=host.environment(), capture_output=True, text=True)


def test_files_of_calls(case_file, tmp_path):
    """A program without Python judges as the suite does; another number, and it does not pass."""
    done = checked(case_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls of 4 operators, 0 wrong" in done.stdout
    wrong = tmp_path / "wrong.calls"
    with open(wrong, "wb") as file:
        recorder = cases.Recorder("conv_act", file)
        recorder(conv_act().to(torch.float32))
    data = bytearray(wrong.read_bytes())
    data[-9] ^= 0x40  # the last number that is expected, before the tolerance
    wrong.write_bytes(data)
    done = checked(wrong)
    assert done.returncode == 1 and "1 wrong" in done.stdout
    wrong.write_bytes(data[: len(data) // 2])
    done = checked(wrong)
    assert done.returncode == 2 and "in the middle of one" in done.stderr


def test_inner_loops_are_products():
    """What the compiler makes of them; of float32, three instructions in four are products."""
    found = instructions.loops()
    least = {"float32, 12 channels": 0.7, "bfloat16, products of matrices": 0.4}
    for name, share in least.items():
        assert found[name].share >= share, f"{name}: {found[name]}"
    assert found["float32, 12 channels"].products == 24
    assert found["bfloat16, products of matrices"].multiply_adds % (16 * 16) == 0


@pytest.mark.skipif(not os.environ.get("AARCH64_CALLS"), reason="make aarch64 writes them")
@pytest.mark.parametrize("cpu", ["max", "cortex-a53", "cortex-a72"])
def test_calls_that_were_written(cpu):
    done = checked(Path(os.environ["AARCH64_CALLS"]), cpu)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
