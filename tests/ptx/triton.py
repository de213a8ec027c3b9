"""Triton's kernels on the executor: the JIT compiles to PTX, and no GPU is needed to launch it.

Inside `executing`, the backend `triton` takes tensors of the CPU. All that lies between an operator
and the launch is the product's and Triton's own, the JIT's choice of what to compile in included;
what stands in for a GPU is Triton's driver, and in place of ptxas nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import triton
from ptx import build, executor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import fassd_kernels
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import KNOWN, Assumption, Device
from fassd_kernels.triton.program import Program

_numbers = itertools.count()
DEVICES: dict[int, Device] = {d.arch: d for d in reversed(KNOWN) if isinstance(d.arch, int)}


class Driver:
    """What Triton asks of a GPU's driver, answered for one that is executed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(self.device.backend, self.device.arch, 32)

    def get_current_device(self) -> int | str:
        return self.device.arch  # the JIT keeps what it compiled by the number of a device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.device.shared}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spills, and the most threads of a block."""
        kernel = f"{name}_{next(_numbers)}"
        executor.load(f"{kernel}.ptx", binary.decode().replace(name, kernel))
        return kernel, kernel, 0, 0, 1024

    def unload_module(self, module: str) -> None:
        """What is loaded stays loaded."""

    @staticmethod
    def launcher_cls(source: Any, metadata: Any) -> Launcher:
        return Launcher(tuple(source.signature.values()), metadata)


class Launcher:
    """A compiled kernel, to be called as Triton calls its launchers."""

    def __init__(self, types: tuple[Any, ...], metadata: Any) -> None:
        assert metadata.num_ctas == 1 and not metadata.global_scratch_size
        self.types = types
        self.block = (32 * metadata.num_warps,)
        self.shared = metadata.shared

    def __call__(self, x: int, y: int, z: int, stream: int, kernel: str, *rest: Any) -> None:
        arguments = list(passed(rest[4:], self.types))
        # Two pointers to scratch follow, which are not used.
        assert executor.parameter(kernel, len(arguments) + 2) is None
        executor.launch(kernel, *arguments, grid=(x, y, z), block=self.block, shared=self.shared)


def passed(values: Sequence[Any], types: Sequence[Any]) -> Iterator[Any]:
    """The arguments that are not compiled in, those of tuples one by one."""
    for value, kind in zip(values, types, strict=True):
        if isinstance(kind, tuple):
            yield from passed(value, kind)
        elif kind != "constexpr":
            yield value


def stop_at_ptx(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str] | None:
    """Triton's hook into its stages: its binary is the PTX. Without arguments, a key for caches."""
    if stages is None:
        return "ptx", "ptx"
    # LLVM writes PTX of version 9.0 at most; Triton puts the newest that its ptxas takes on it.
    stages["cubin"] = lambda text, _: re.sub(r"(?m)^\.version 9.*", ".version 9.0", text).encode()
    return None


@contextlib.contextmanager
def executing(arch: int, **settings: Any) -> Iterator[None]:
    """Let the backend `triton` run on the executor, as on a GPU of this compute capability.

    `settings` are the executor's.
    """
    device, backends = DEVICES[arch], sys.modules["fassd_kernels.backends"]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(triton.knobs.cache, "dir", str(build.BUILD / "triton"))
        patch.setattr(triton.knobs.runtime, "add_stages_inspection_hook", stop_at_ptx)
        patch.setattr(driver, "_active", Driver(device))
        patch.setattr(Assumption, "device", device)  # of all threads
        # Like the interpreter, it takes tensors of the CPU.
        patch.setattr(availability, "INTERPRETED", True)
        patch.setattr(backends, "INTERPRETED", True)
        patch.setattr(Program, "place", lambda self, device: contextlib.nullcontext())
        stack.enter_context(executor.settings(capability=arch, **settings))
        for asked in (fassd_kernels.backends, availability.reason):
            asked.cache_clear()
            stack.callback(asked.cache_clear)
        yield


installed = contextlib.ExitStack()


def install() -> None:
    """Make ``triton`` a backend of CPU tensors, in this process, as PTX_SETTINGS say."""
    executor.configure()
    installed.enter_context(executing(executor.DEFAULTS["capability"]))
