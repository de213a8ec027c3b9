"""Checking and timing the candidates of a case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fassd.bench.candidates import (
    CHOSEN,
    COMPILE,
    EAGER,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    SWITCHED,
    TITLES,
    TRITON,
    Candidate,
    UnavailableError,
)
from fassd.bench.stopwatch import Inputs, Run, graph_run, interleaved, warm_up
from fassd.bench.subjects import BuiltCandidate, Case, Subject, subject_of
from fassd.evaluation.agreement import compare
from fassd.models.clock import Sampling, rotation
from fassd_kernels.triton.availability import first_line

GROUPS = {
    "native": (EAGER, NATIVE),
    "library": (EAGER, FOLDED),
    "ours": (EAGER, TRITON, NATIVE),
    **{group: (EAGER, f"{NATIVE}-{group}") for group in SWITCHED},
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


def measure_case(case: Case, group: str, bench: Bench) -> dict[str, Any]:
    """Check and time the candidates of `group` (a key of `GROUPS`) on `case`, in turns.

    Returns:
        A record: the case, bytes and operations of the floor, and one record per candidate, whose
        ``status`` is ``done``, ``unavailable`` or ``failed``, with the ``reason``. Without a
        candidate to compare with eager, nothing is timed.
    """
    subject = subject_of(case, bench.device, bench.compiler)
    records: dict[str, dict[str, Any]] = {}
    candidates: dict[str, BuiltCandidate] = {}
    runs: dict[str, Run] = {}
    for name in GROUPS[group]:
        records[name] = {"name": name, "title": TITLES[name], "status": "done"}
        with recorded(records[name]):
            candidates[name] = subject.candidate(name)
    work: dict[str, int] = {}
    if set(candidates) - {EAGER}:
        trial = trial_of(subject, bench.cache_bytes)
        work, limit = trial.work, subject.tolerance(trial.expected[0])
        for name, candidate in candidates.items():
            with recorded(records[name]):
                runs[name] = check(candidate, trial, limit, records[name])
    for name, timing in interleaved(runs, bench.device, bench.sampling).items():
        how = {"method": timing.method, "calls_per_sample": timing.calls, "sets": timing.sets}
        records[name]["timing"] = {**timing.to_json(), **how}
    return {
        **vars(case),
        "group": group,
        "input_shapes": [list(shape) for shape in subject.shapes],
        "arithmetic": subject.arithmetic,
        **work,
        "candidates": list(records.values()),
    }


@contextmanager
def recorded(record: dict[str, Any]) -> Iterator[None]:
    """Note an error in a record: the other candidates are still worth measuring."""
    try:
        yield
    except UnavailableError as reason:
        record.update(status="unavailable", reason=str(reason))
    except Exception as error:
        record.update(status="failed", reason=first_line(error))


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


def check(candidate: BuiltCandidate, trial: Trial, limit: float, record: dict[str, Any]) -> Run:
    """The candidate, warmed up: as a graph if it can be captured.

    It adds the results of `fassd.evaluation.agreement.compare`, and ``first_call_s``, to `record`.
    """
    form = candidate.form
    sets = [form.laid_out(inputs) for inputs in trial.sets]
    with form.settings():
        record["first_call_s"] = round(warm_up(candidate.call, sets), 3)
        run = graph_run(candidate.call, sets)
        compare(run.outputs(), trial.expected, limit, record)
    if run.note:
        record["note"] = run.note
    return within(form, run)


def within(form: Candidate, run: Run) -> Run:
    """`run`, timed under the candidate's settings."""

    def once() -> None:
        with form.settings():
            run.once()

    return replace(run, once=once)
