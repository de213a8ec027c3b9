"""Checking and timing the candidates of a case."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fassd.bench.candidates import (
    CARVEOUT,
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    EAGER,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    THREADS,
    TITLES,
    TRITON,
    TRITON_GRAPH,
    Candidate,
    UnavailableError,
)
from fassd.bench.stopwatch import (
    PLAIN_SETS,
    Inputs,
    Run,
    graph_run,
    interleaved,
    plain_run,
    warm_up,
)
from fassd.bench.subjects import BuiltCandidate, Case, Subject, subject_of
from fassd.evaluation.agreement import compare
from fassd.models.clock import Sampling, rotation
from fassd_kernels.triton.availability import first_line

GROUPS = {
    "native": (EAGER, NATIVE),
    "library": (EAGER, FOLDED, CUDNN_RELU),
    "ours": (EAGER, TRITON, TRITON_GRAPH, NATIVE),
    "dependent": (EAGER, DEPENDENT),
    "carve-out": (EAGER, CARVEOUT),
    "threads": (EAGER, THREADS),
    "choice": (EAGER, TRITON, NATIVE, CHOSEN),
    "compile": (EAGER, COMPILE),
    "max-autotune": (EAGER, MAX_AUTOTUNE),
}
"""Candidates that are timed together, interleaved; eager is in each group, for the ratio."""


@dataclass(frozen=True)
class Bench:
    """Device and settings for measuring cases."""

    device: torch.device
    sampling: Sampling
    compiler: str = "inductor"

    @property
    def cache_bytes(self) -> int:
        """L2 bytes of the GPU; 0 for the CPU, where a report is only rehearsed."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.get_device_properties(self.device).L2_cache_size


Records = dict[str, dict[str, Any]]


def measure_case(case: Case, group: str, bench: Bench) -> dict[str, Any]:
    """Check and time the candidates of `group` (a key of `GROUPS`) on `case`.

    Returns:
        A record: the case, bytes and operations of the floor, and one record per candidate, whose
        ``status`` is ``done``, ``unavailable`` or ``failed``, with the ``reason``. Without a
        candidate to compare with eager, nothing is timed.
    """
    subject = subject_of(case, bench.device, bench.compiler)
    candidates, records = build_candidates(GROUPS[group], subject)
    measured: dict[str, Any] = {}
    if set(candidates) - {EAGER}:  # the group `library` only measures eager
        measured = measure_candidates(candidates, records, subject, bench)
    return {
        **vars(case),
        "group": group,
        "input_shapes": [list(shape) for shape in subject.shapes],
        "arithmetic": subject.arithmetic,
        **measured,
        "candidates": list(records.values()),
    }


def build_candidates(
    names: Sequence[str], subject: Subject
) -> tuple[dict[str, BuiltCandidate], Records]:
    """The available candidates, and a record for each name."""
    candidates: dict[str, BuiltCandidate] = {}
    records: Records = {}
    for name in names:
        records[name] = {"name": name, "title": TITLES[name], "status": "done"}
        try:
            candidates[name] = subject.candidate(name)
        except UnavailableError as reason:
            records[name].update(status="unavailable", reason=str(reason))
        except Exception as error:  # the other candidates are still worth measuring
            records[name].update(status="failed", reason=first_line(error))
    return candidates, records


def measure_candidates(
    candidates: dict[str, BuiltCandidate], records: Records, subject: Subject, bench: Bench
) -> dict[str, Any]:
    """Fill `records`; all candidates in turns if memory allows, otherwise one after another."""
    try:
        return {**measure_together(candidates, records, subject, bench), "interleaved": True}
    except torch.OutOfMemoryError:
        pass  # the traceback's objects are only free after this block
    work: dict[str, int] = {}
    for name, candidate in candidates.items():
        gc.collect()
        torch.cuda.empty_cache()
        try:
            work = measure_together({name: candidate}, records, subject, bench)
        except torch.OutOfMemoryError as error:
            records[name].update(status="failed", reason=first_line(error))
    return {**work, "interleaved": False}


def measure_together(
    candidates: dict[str, BuiltCandidate], records: Records, subject: Subject, bench: Bench
) -> dict[str, int]:
    """Check and time candidates, all in memory at the same time; returns `Trial.work`."""
    trial = trial_of(subject, bench.cache_bytes)
    limit = subject.tolerance(trial.expected[0])
    prepared: dict[str, tuple[Run, Run]] = {}
    for name, candidate in candidates.items():
        try:
            prepared[name] = check(candidate, trial, limit, records[name])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the other candidates are still worth measuring
            prepared.pop(name, None)
            records[name].update(status="failed", reason=first_line(error))
    for index, kind in enumerate(("timing", "plain")):
        runs = {name: each[index] for name, each in prepared.items()}
        for name, timing in interleaved(runs, bench.device, bench.sampling).items():
            records[name][kind] = timing.record()
    return trial.work


# --- one candidate --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A subject prepared for its candidates.

    Attributes:
        sets: input sets that candidates are called on in turns.
        expected: outputs of the reference for the first and the last set.
        work: ``activation_bytes`` and ``weight_bytes`` that a call moves at least, and its
            ``operations``, two per multiply-accumulate.
    """

    subject: Subject
    sets: tuple[Inputs, ...]
    expected: tuple[Tensor, Tensor]
    work: dict[str, int]


def trial_of(subject: Subject, cache_bytes: int | None) -> Trial:
    """Input sets, and the reference's outputs.

    Args:
        cache_bytes: size of the cache that the sets together exceed; None for a single set.
    """
    item = subject.case.torch_dtype.itemsize
    inputs = subject.inputs(0)
    with FlopCounterMode(display=False) as counter:
        first = subject.reference(*inputs)
    if subject.labels:
        out_bytes = first[:, 0].numel()
    else:
        out_bytes = first.numel() * (item if first.is_floating_point() else 1)  # a label is a byte
    work = {
        "activation_bytes": sum(x.nbytes for x in inputs) + out_bytes,
        "weight_bytes": item * sum(weight.numel() for weight in subject.module.parameters()),
        "operations": counter.get_total_flops(),
    }
    count = 1 if cache_bytes is None else rotation(work["activation_bytes"], cache_bytes)
    every = tuple(map(subject.inputs, range(count)))
    return Trial(subject, every, (first, subject.reference(*every[-1])), work)


def check(
    candidate: BuiltCandidate, trial: Trial, limit: float, record: dict[str, Any]
) -> tuple[Run, Run]:
    """The candidate as a graph (if it can be captured) and as plain calls, warmed up.

    It adds the results of `fassd.evaluation.agreement.compare`, and ``first_call_s``, to `record`.
    """
    form = candidate.form
    sets = [form.laid_out(inputs) for inputs in trial.sets]
    with form.settings(), warnings.catch_warnings():
        # A candidate that runs without the graph to be measured has failed.
        warnings.filterwarnings("error", "GraphRunner: ", RuntimeWarning)
        record["first_call_s"] = round(warm_up(candidate.call, sets), 3)
        if form.own_graph:
            graph = plain_run(candidate.call, sets, "runner")
        else:
            graph = graph_run(candidate.call, sets)
        compare(graph.outputs(), trial.expected, limit, record)
    if graph.note:
        record["note"] = graph.note
    method = "events" if sets[0][0].is_cuda else "clock"
    plain = plain_run(candidate.call, sets[:PLAIN_SETS], method)
    return within(form, graph), within(form, plain)


def within(form: Candidate, run: Run) -> Run:
    """`run`, timed under the candidate's settings."""

    def once() -> None:
        with form.settings():
            run.once()

    return replace(run, once=once)


def free_memory() -> None:
    """Free compiled code and cached device memory of the previous case."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
