"""The fastest tile sizes on this GPU, for each launch of a network.

A network is planned, and every launch that has a choice is timed with each configuration that can
run it. *Each* configuration's output is compared with the reference first: there has been a
compiler bug that made a kernel wrong only with certain tiles. The table is written to the user's
cache folder (or ``$FASSD_KERNELS_CONFIGS``), where :mod:`fassd_kernels.triton` finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fassd_kernels.triton import availability
from fassd_kernels.triton.aot import Resources, source_of, try_examine
from fassd_kernels.triton.configurations import (
    Config,
    Problem,
    candidates,
    file_name,
    overriding,
    predict,
    read_table,
    user_folder,
    write_table,
)
from fassd_kernels.triton.device import Device
from fassd_kernels.triton.program import Program, forget_programs
from fassd_kernels.tuning import trials
from fassd_kernels.tuning.calls import OperatorCall, programs_of
from fassd_kernels.tuning.trials import Repeats, TuningCase, TuningTrial

NO_CONFIGS: Mapping[str, Config] = MappingProxyType({})


@dataclass
class TileCase(TuningCase[Config]):
    """A problem of a network, and the configurations for it, the model's choice first.

    Attributes:
        problem: problem to choose a configuration for.
        index: index of its launch in the call's program.
    """

    subject = "problem"
    verdict = "best"

    problem: Problem
    index: int

    def predicted(self, config: Config) -> float:
        """Seconds predicted by the model that chooses without measurements."""
        return predict(config, self.problem, self.device)

    def compute(self, candidate: Config) -> Tensor:
        with overriding({self.key: candidate}):
            return self.call.through("triton")

    def repeats(self, candidate: Config, calls: Sequence[OperatorCall]) -> Repeats:
        return [launcher(call, self.index, {self.key: candidate}) for call in calls]

    def describe(self, candidate: Config) -> dict[str, str]:
        names = ("block_m", "block_n", "block_middle", "block_k")
        sides = [str(getattr(candidate, name)) for name in names if getattr(candidate, name)]
        return {
            "tile": "x".join(sides) + (" recompute" if candidate.recompute else ""),
            "warps": str(candidate.num_warps),
            "stages": str(candidate.num_stages),
            "predicted us": f"{self.predicted(candidate) * 1e6:.1f}",
        }

    def save(self) -> None:
        path = table_path(self.device)
        known = read_table(path) if path.exists() else {}
        known.pop(self.key, None)
        if self.best:
            known[self.key] = self.best
        facts = {"torch": torch.__version__, "triton": availability.describe()}
        write_table(path, self.device.name, known, facts)


def table_path(device: Device) -> Path:
    """Path of the user's table."""
    return user_folder() / file_name(device.name)


def recorder(place: torch.device, dtype: torch.dtype) -> str:
    """The backend on which a network's calls are recorded.

    Raises:
        ValueError: Triton cannot be used on this machine.
    """
    why = availability.reason() or ("TRITON_INTERPRET is set" if availability.INTERPRETED else "")
    if why:
        raise ValueError(f"{why}; --dry-run needs no GPU")
    return "triton"


def plan(call: OperatorCall, configs: Mapping[str, Config] = NO_CONFIGS) -> Program:
    """The launches of a call through Triton with some configurations; nothing is compiled."""
    with overriding(configs):
        return programs_of(partial(call.through, "triton"))[0]


def launcher(
    call: OperatorCall, index: int, configs: Mapping[str, Config] = NO_CONFIGS
) -> Callable[[], object]:
    """A single launch of a call, on tensors that are kept."""
    program = plan(call, configs)
    filled = program.fill(program.inputs)
    launch, interpreted = program.launches[index], program.device.interpreted
    return lambda: launch(filled, interpreted)


def cases_of(calls: Sequence[OperatorCall], device: Device) -> list[TileCase]:
    """The distinct problems of some calls, and the configurations to try."""
    cases: dict[str, TileCase] = {}
    for call in calls:
        for index, launch in enumerate(plan(call).launches):
            problem = launch.problem
            if problem is not None and problem.key not in cases:
                tried = [TuningTrial(config) for config in variations(problem, device)]
                cases[problem.key] = TileCase(problem.key, call, tried, device, problem, index)
    return list(cases.values())


def variations(problem: Problem, device: Device) -> list[Config]:
    """The model's candidates, and its first two with other numbers of warps and of stages."""
    first = candidates(problem, device)
    more = []
    for config in first[:2]:
        warps = (config.num_warps // 2, config.num_warps * 2)
        more += [replace(config, num_warps=w) for w in warps if 2 <= w <= 8]
        more.append(replace(config, num_stages=config.num_stages + 1))
    return list(dict.fromkeys([*first, *more]))


# --- compiling ------------------------------------------------------------------------------------


def compiled(cases: Sequence[TileCase], processes: int, deadline: float) -> Iterator[TileCase]:
    """Yield each case when its candidates are compiled, while time is left and others compile.

    Other processes compile into Triton's cache.
    """
    # Not forked: this process has threads, and a GPU.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    binaries: dict[str, Future[Resources | str]] = {}

    def binary(case: TileCase, config: Config) -> Future[Resources | str]:
        program = plan(case.call, {case.key: config})
        source = source_of(program, program.launches[case.index])
        if source.identity not in binaries:
            binaries[source.identity] = pool.submit(try_examine, source, case.device)
        return binaries[source.identity]

    try:
        waiting = [[binary(case, trial.candidate) for trial in case.trials] for case in cases]
        for case, futures in zip(cases, waiting, strict=True):
            for trial, future in zip(case.trials, futures, strict=True):
                if time.monotonic() <= deadline:
                    trial.reason = unusable(future, case.device)
            yield case
    finally:
        pool.shutdown(cancel_futures=True)


def unusable(future: Future[Resources | str], device: Device) -> str:
    """The reason why a binary cannot run, or should not because it spills; empty if it can."""
    try:
        found = future.result()
    except BrokenExecutor as error:  # the compiler crashed its process
        return availability.first_line(error)
    if isinstance(found, str):
        return found
    if found.spills:
        return f"spills {found.spills} bytes"
    return f"takes {found.shared} bytes of shared memory" if found.shared > device.shared else ""


# --- tuning ---------------------------------------------------------------------------------------


def tune(
    cases: Sequence[TileCase],
    device: Device,
    budget: float,
    timer: trials.Timer = trials.time_in_turns,
    processes: int = os.cpu_count() or 1,
) -> list[TileCase]:
    """Compile in processes, measure meanwhile until the time is up; write the table.

    Problems with the longest predicted time come first. Results of an earlier run for other
    problems stay in the table.

    Args:
        cases: cases to measure.
        device: GPU to measure on.
        budget: time to measure, in seconds.
        timer: function that times candidates.
        processes: number of compiling processes; 0 leaves compiling to the first call.

    Returns:
        The measured cases.
    """
    deadline = time.monotonic() + budget
    # Cases with the largest possible gain come first.
    cases = sorted(cases, key=lambda case: -case.predicted(case.trials[0].candidate))
    ready = compiled(cases, processes, deadline) if processes else iter(cases)
    done = trials.measure_until(deadline, ready, timer)
    forget_programs()
    return done
