"""Which tile sizes are fastest on this GPU, launch by launch of a network.

A network is planned, and every launch that has a choice is timed with each configuration that can
run it. *Each* configuration's output is compared with the reference before it may win: a kernel
that is wrong only with some tile is a bug of the compiler that has been seen. The table goes to the
user's cache folder (or ``$FASSD_KERNELS_CONFIGS``), where :mod:`fassd_kernels.triton` finds it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fassd.models import create_model
from fassd_kernels.accelerate import accelerate
from fassd_kernels.operators import OPERATORS
from fassd_kernels.ops import TRITON_NAMESPACE, operator
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
from fassd_kernels.triton.program import Program, forget_programs, recording
from fassd_kernels.tuning.accuracy import TOLERANCES, exactly, relative_error


@dataclass
class Trial:
    """One configuration for one problem.

    Attributes:
        config: the configuration.
        predicted_s: by the model that picks where nothing was measured.
        seconds: measured; NaN if it was not.
        error: relative, against the reference; NaN if it was not computed.
        reason: why it is out; empty if it is not.
    """

    config: Config
    predicted_s: float
    seconds: float = math.nan
    error: float = math.nan
    reason: str = ""


@dataclass
class Case:
    """A problem of a network and what is tried for it, the model's choice first.

    Attributes:
        problem: what there is to choose for.
        call: the operator's call in which it comes up.
        index: of its launch in the call's program.
        trials: one for each configuration.
    """

    problem: Problem
    call: RecordedCall
    index: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The fastest one that is right."""
        right = [t for t in self.trials if not t.reason and not math.isnan(t.seconds)]
        return min(right, key=lambda trial: trial.seconds, default=None)


class Calls(TorchDispatchMode):
    """Writes down every call of a Triton operator while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[RecordedCall] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function.namespace == TRITON_NAMESPACE:
            name = function._schema.name.partition("::")[2]
            self.seen.append(RecordedCall(name, arguments, keywords or {}))
        return function(*arguments, **(keywords or {}))


@dataclass(frozen=True)
class RecordedCall:
    """A call of an operator, to be repeated."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def plan(self, configs: Mapping[str, Config] = MappingProxyType({})) -> Program:
        """What the call launches with some configurations, compiled by nobody yet."""
        with overriding(configs), recording() as programs:
            self()
        return programs[0]

    def __call__(self) -> Tensor:
        return operator(self.name, "triton")(*self.arguments, **self.keywords)

    def run_with(self, configs: Mapping[str, Config]) -> Tensor:
        """The call's result with some configurations."""
        with overriding(configs):
            return self()

    def launcher(self, configs: Mapping[str, Config], index: int) -> Callable[[], object]:
        """One launch of the call alone, over tensors that stay."""
        program = self.plan(configs)
        filled = program.fill(program.inputs)
        launch, interpreted = program.launches[index], program.device.interpreted
        return lambda: launch(filled, interpreted)

    def exact(self) -> Tensor:
        """The reference's result in float64, on the call's device."""
        return OPERATORS[self.name].reference(
            *(exactly(x) for x in self.arguments),
            **{name: exactly(x) for name, x in self.keywords.items()},
        )


def record_network(
    name: str, height: int, width: int, batch: int, dtype: torch.dtype, place: torch.device
) -> list[RecordedCall]:
    """The calls of a variant of the family on a random picture."""
    torch.manual_seed(0)
    model = create_model(name).eval().to(place)
    # By name, where another might be faster.
    fast = accelerate(model, dtype=dtype, output="labels", inplace=True, backend="triton")
    picture = torch.randn(batch, 3, height, width, dtype=dtype, device=place)
    with torch.no_grad(), Calls() as calls:
        fast(picture)
    return [call for call in calls.seen if call.name != "pack_weight"]


Timer = Callable[[Callable[[], object]], float]


def time_on_gpu(function: Callable[[], object]) -> float:
    """Seconds of one call, the median, the cache flushed before each.

    Launches follow the flush, which keeps the stream busy: what is timed is the GPU, not the host.
    """
    from triton.testing import do_bench

    return do_bench(function, warmup=5, rep=30, quantiles=[0.5]) / 1e3


def cases_of(calls: Sequence[RecordedCall], device: Device) -> list[Case]:
    """The distinct problems of some calls, and the configurations to try."""
    cases: dict[str, Case] = {}
    for call in calls:
        for index, launch in enumerate(call.plan().launches):
            problem = launch.problem
            if problem is None or problem.key in cases:
                continue
            trials = [
                Trial(config, predict(config, problem, device))
                for config in variations(problem, device)
            ]
            cases[problem.key] = Case(problem, call, index, trials)
    return list(cases.values())


def variations(problem: Problem, device: Device) -> list[Config]:
    """The model's candidates, and its first two with other numbers of warps and of loads ahead."""
    first = candidates(problem, device)
    more = []
    for config in first[:2]:
        warps = (config.num_warps // 2, config.num_warps * 2)
        more += [replace(config, num_warps=w) for w in warps if 2 <= w <= 8]
        more.append(replace(config, num_stages=config.num_stages + 1))
    return list(dict.fromkeys([*first, *more]))


def submit(
    pool: Executor, cases: Sequence[Case], device: Device
) -> dict[int, Future[Resources | str]]:
    """Let other processes compile all trials, in order, into Triton's cache; by the trial's id."""
    binaries: dict[str, Future[Resources | str]] = {}
    futures = {}
    for case in cases:
        for trial in case.trials:
            program = case.call.plan({case.problem.key: trial.config})
            source = source_of(program, program.launches[case.index])
            if source.identity not in binaries:
                binaries[source.identity] = pool.submit(try_examine, source, device)
            futures[id(trial)] = binaries[source.identity]
    return futures


def put_out(trial: Trial, future: Future[Resources | str], device: Device) -> None:
    """Put a trial out whose binary cannot run, or spills."""
    try:
        found = future.result()
    except BrokenExecutor as error:  # the compiler took its process with it
        found = availability.first_line(error)
    if isinstance(found, str):
        trial.reason = found
    elif found.spills:
        trial.reason = f"spills {found.spills} bytes"
    elif found.shared > device.shared:
        trial.reason = f"takes {found.shared} bytes of shared memory"


def measure(case: Case, timer: Timer) -> None:
    """Verify and time every trial of a case; what fails gives its reason."""
    exact = case.call.exact()
    for trial in case.trials:
        if trial.reason:
            continue
        try:
            configs = {case.problem.key: trial.config}
            trial.error = relative_error(case.call.run_with(configs), exact)
            if not trial.error <= TOLERANCES[case.problem.dtype]:
                trial.reason = f"wrong: off by {trial.error:.2g}"
                continue
            trial.seconds = timer(case.call.launcher(configs, case.index))
        except Exception as error:  # Triton's own have no class in common
            trial.reason = availability.first_line(error)


def table_from(cases: Sequence[Case]) -> dict[str, Config]:
    return {case.problem.key: case.best.config for case in cases if case.best}


def render(cases: Sequence[Case], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("problem", "tile", "warps", "stages"):
        table.add_column(name, overflow="fold")
    for name in ("predicted us", "us", "error"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for case in cases:
        best = case.best
        for i, trial in enumerate(case.trials):
            config = trial.config
            sides = (config.block_m, config.block_n, config.block_middle, config.block_k)
            verdict = trial.reason or ("best" if trial is best else "")
            table.add_row(
                case.problem.key if i == 0 else "",
                "x".join(str(side) for side in sides if side)
                + (" recompute" if config.recompute else ""),
                str(config.num_warps),
                str(config.num_stages),
                f"{trial.predicted_s * 1e6:.1f}",
                "" if math.isnan(trial.seconds) else f"{trial.seconds * 1e6:.1f}",
                "" if math.isnan(trial.error) else f"{trial.error:.1e}",
                verdict,
            )
        table.add_section()
    return table


def tune(
    calls: Sequence[RecordedCall],
    device: Device,
    budget: float,
    console: Console,
    title: str,
    timer: Timer = time_on_gpu,
    processes: int = os.cpu_count() or 1,
) -> Path:
    """Compile in so many processes, measure meanwhile until the time is up; write the table.

    What takes longest by the model comes first. What an earlier run found for other problems
    stays in the table.
    """
    started = time.monotonic()
    # Where most is to be won comes first.
    cases = sorted(cases_of(calls, device), key=lambda case: -case.trials[0].predicted_s)
    done: list[Case] = []
    path = user_folder() / file_name(device.name)
    # Not forked: this process has threads, and a GPU.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn) if processes else None
    try:
        binaries = submit(pool, cases, device) if pool else {}
        for case in cases:
            for trial in case.trials:
                if pool and time.monotonic() - started <= budget:
                    put_out(trial, binaries[id(trial)], device)
            if time.monotonic() - started > budget:
                print(f"out of time: {len(cases) - len(done)} problems are left to the model")
                break
            measure(case, timer)
            done.append(case)
            # After each, so that nothing is lost if the machine goes.
            known = read_table(path) if path.exists() else {}
            known.pop(case.problem.key, None)
            facts = {"torch": torch.__version__, "triton": availability.describe()}
            write_table(path, device.name, {**known, **table_from([case])}, facts)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    forget_programs()
    console.print(render(done, f"{title}, on {device.name}"))
    wrong = [trial for case in done for trial in case.trials if trial.reason.startswith("wrong")]
    if wrong:
        print(f"{len(wrong)} configurations gave wrong numbers and are out", file=sys.stderr)
    return path
