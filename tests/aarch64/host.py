"""The C++ operators of the CPU, computed by an emulated aarch64: a plugin of pytest.

``pytest -p aarch64.host tests/conformance --backend cpu``. The driver runs beside the tests, one
process for all of them, and is started anew where a kernel has crashed it. Environment:

* ``AARCH64_CPU``: what is emulated, of those that ``qemu-aarch64 -cpu help`` lists; ``max``.
* ``FASSD_KERNELS_CPU``: the instruction set, as on any CPU.
"""

from __future__ import annotations

import functools
import os
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from aarch64 import build, calls

from fassd_kernels import ops
from fassd_kernels.operators import OPERATORS

NAMES = (*OPERATORS, *ops.TRAINING, *ops.STRIPS)


def environment(instruction_set: str = "") -> dict[str, str]:
    """A driver's: what a kernel does not write is NaN."""
    asked = {"FASSD_KERNELS_CPU": instruction_set, "FASSD_KERNELS_POISON": "1"}
    return {**os.environ, **asked}


class Driver:
    """A running driver.

    Args:
        program: the driver.
        cpu: what is emulated.
        instruction_set: the value of ``FASSD_KERNELS_CPU``, if any.
    """

    def __init__(self, program: Path, cpu: str = "max", instruction_set: str = "") -> None:
        self.command = [build.EMULATOR, "-cpu", cpu, str(program)]
        self.environment = environment(instruction_set)
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()  # one call at a time, whatever thread it comes from

    def __call__(
        self, schema: torch._C.FunctionSchema, given: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        """The result of a call.

        Raises:
            RuntimeError: what the operator threw, or that it crashed.
        """
        with self.lock:
            return self.ask(schema, calls.call(schema, given, named or {}))

    def ask(self, schema: torch._C.FunctionSchema, question: bytes) -> Any:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
            )
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(question)
            self.process.stdin.flush()
            return calls.answer(self.process.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = self.process.wait()
            self.process = None
            raise RuntimeError(f"{schema.name}: the driver ended with {code}: {error}") from error

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def schema_of(name: str) -> torch._C.FunctionSchema:
    return getattr(torch.ops.fassd_kernels, name).default._schema


@functools.cache
def library() -> torch.library.Library:
    return torch.library.Library("fassd_kernels", "IMPL")


def install(driver: Driver) -> None:
    """Let `driver` compute what the extension's operators do with CPU tensors, in this process."""
    for name in NAMES:
        schema = schema_of(name)

        def kernel(*given: Any, schema: Any = schema, **named: Any) -> Any:
            return driver(schema, given, named)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there was a kernel
            library().impl(name, kernel, "CPU", allow_override=True)


def pytest_configure(config: Any) -> None:
    cpu, asked = (os.environ.get(name, "") for name in ("AARCH64_CPU", "FASSD_KERNELS_CPU"))
    driver = Driver(build.driver(), cpu or "max", asked)
    install(driver)
    config.add_cleanup(driver.close)
