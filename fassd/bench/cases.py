"""Checking and timing the candidates of a case."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fassd.bench.forms import (
    EAGER,
    TITLES,
    TRITON,
    TRITON_GRAPH,
    Candidate,
    UnavailableError,
)
from fassd.bench.stopwatch import (
    PLAIN_SETS,
    Call,
    Inputs,
    Run,
    Sampling,
    first_line,
    graph_run,
    interleaved,
    plain_run,
    rotation,
    warm_up,
)
from fassd.bench.subjects import GROUPS, Case, Subject, input_set, subject_of

TOLERANCES = {
    "modules": {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2},
    # Some fifty convolutions in a row: the rounding of each adds up, as its square root. Of labels,
    # it shows where two scores are nearly equal, hence less.
    "networks": {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 8e-2},
    # PyTorch computes in float32 where to interpolate: 1.3e-5 at 2048 columns.
    "operators": {"float32": 5e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2},
}
"""Largest ||out - reference|| / ||reference|| that counts as a match; a wrong result is near 1."""

LABEL_TOLERANCES = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2}
"""Largest share of labels that differ. PyTorch rounds upsampled logits to their type, and of random
ones two are then often equal: 5e-4 of eager's labels differ in float16, 4e-3 in bfloat16."""


@dataclass(frozen=True)
class Bench:
    """Where and how cases are measured."""

    device: torch.device
    sampling: Sampling
    compiler: str = "inductor"

    @property
    def cache_bytes(self) -> int:
        """L2 of the GPU; nothing for the CPU, where a report is only rehearsed."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.get_device_properties(self.device).L2_cache_size


def measure_case(case: Case, group: str, bench: Bench) -> dict[str, Any]:
    """Check and time the candidates of `group` (a key of `GROUPS`) on `case`.

    Returns:
        A record: the case, bytes and operations of the floor, and one record per candidate, in
        which ``status`` is ``done``, ``unavailable`` or ``failed``; ``reason`` says why. Where
        there is nothing to compare with eager, nothing is timed.
    """
    subject = subject_of(case, bench.device, bench.compiler)
    candidates, records = build_candidates(names_of(case, group), subject)
    measured: dict[str, Any] = {}
    if set(candidates) - {EAGER}:  # eager alone is what the group `library` measures
        measured = measure_candidates(candidates, records, subject, case, bench)
    return {
        **vars(case),
        "group": group,
        "input_shapes": [list(shape) for shape in subject.shapes],
        "arithmetic": arithmetic(case, subject, bench.device),
        **measured,
        "candidates": list(records.values()),
    }


def names_of(case: Case, group: str) -> list[str]:
    """The candidates of a group; a `GraphRunner` takes modules, not operators."""
    names = GROUPS[group]
    return [name for name in names if not (case.part == "operators" and name == TRITON_GRAPH)]


Records = dict[str, dict[str, Any]]


def build_candidates(
    names: Sequence[str], subject: Subject
) -> tuple[dict[str, Candidate], Records]:
    """The candidates that there are, and a record for each name."""
    candidates: dict[str, Candidate] = {}
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
    candidates: dict[str, Candidate],
    records: Records,
    subject: Subject,
    case: Case,
    bench: Bench,
) -> dict[str, Any]:
    """Fill `records`; all candidates in turns if memory allows, else one after another."""
    ends, work = reference_ends(subject, case, bench)
    try:
        measure_together(candidates, records, subject, case, ends, work, bench)
        return {**work, "interleaved": True}
    except torch.OutOfMemoryError:
        pass  # what the traceback holds is free only after this block
    for name, candidate in candidates.items():
        gc.collect()
        torch.cuda.empty_cache()
        try:
            measure_together({name: candidate}, records, subject, case, ends, work, bench)
        except torch.OutOfMemoryError as error:
            records[name].update(status="failed", reason=first_line(error))
    return {**work, "interleaved": False}


def arithmetic(case: Case, subject: Subject, device: torch.device) -> str:
    """What the units may compute in: ``tf32`` where cuDNN may use it for float32."""
    convolves = subject.convolves and case.dtype == "float32"
    tf32 = convolves and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if tf32 else case.dtype


def reference_ends(
    subject: Subject, case: Case, bench: Bench
) -> tuple[Callable[[int], list[Tensor]], dict[str, int]]:
    """The reference's outputs on the first and last of n sets, and what the floor is made of."""
    inputs = input_set(0, subject, case.torch_dtype, bench.device)
    with FlopCounterMode(display=False) as counter:
        first = subject.reference(*inputs)
    item = case.torch_dtype.itemsize
    if subject.labels:
        out_bytes = first[:, 0].numel()
    else:
        out_bytes = first.numel() * (item if first.is_floating_point() else 1)  # a label is a byte
    work = {
        "activation_bytes": sum(x.nbytes for x in inputs) + out_bytes,
        "weight_bytes": item * sum(weight.numel() for weight in subject.module.parameters()),
        "operations": counter.get_total_flops(),
    }

    def ends(sets: int) -> list[Tensor]:
        last = input_set(sets - 1, subject, case.torch_dtype, bench.device)
        return [first, subject.reference(*last)]

    return ends, work


def measure_together(
    candidates: dict[str, Candidate],
    records: Records,
    subject: Subject,
    case: Case,
    ends: Callable[[int], list[Tensor]],
    work: dict[str, int],
    bench: Bench,
) -> None:
    """Prepare, check and time candidates, all in memory at once and interleaved."""
    count = rotation(work["activation_bytes"], bench.cache_bytes)
    sets = [input_set(i, subject, case.torch_dtype, bench.device) for i in range(count)]
    expected = ends(count)
    limit = tolerance(case, arithmetic(case, subject, bench.device), expected[0])
    prepared: dict[str, tuple[Run, Run]] = {}
    for name, candidate in candidates.items():
        try:
            runs = prepare(candidate, sets, records[name])
            compare(runs[0].outputs(), expected, limit, records[name])
            if name == TRITON:
                launches = planned_launches(candidate.call, laid_out(candidate, sets[0]))
                records[name]["launches"] = launch_work(launches)
            prepared[name] = runs
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the other candidates are still worth measuring
            records[name].update(status="failed", reason=first_line(error))
    for index, kind in enumerate(("timing", "plain")):
        runs_of_kind = {name: runs[index] for name, runs in prepared.items()}
        for name, timing in interleaved(runs_of_kind, bench.device, bench.sampling).items():
            records[name][kind] = timing.record()


@dataclass(frozen=True)
class Planned:
    """A launch as our Triton backend plans it.

    Attributes:
        kernel: name of the kernel's function.
        bytes: read and written at the least.
        operations: that reach the result.
    """

    kernel: str
    bytes: int
    operations: int


def planned_launches(call: Call, inputs: Inputs) -> list[Planned]:
    """What a call through our Triton kernels launches; nothing is computed."""
    from fassd_kernels.triton.program import recording

    with torch.no_grad(), recording() as programs:
        call(*inputs)
    return [
        Planned(launch.kernel.__name__, launch.work.bytes, launch.work.operations)
        for program in programs
        for launch in program.launches
    ]


def launch_work(launches: Sequence[Planned]) -> dict[str, list[int]]:
    """Bytes and operations of each launch, for its floor."""
    return {
        "bytes": [launch.bytes for launch in launches],
        "operations": [launch.operations for launch in launches],
    }


def tolerance(case: Case, arithmetic: str, expected: Tensor) -> float:
    """The largest error of a match."""
    if not expected.is_floating_point():
        return LABEL_TOLERANCES[case.dtype]
    return TOLERANCES[case.part][arithmetic]


def laid_out(candidate: Candidate, inputs: Inputs) -> Inputs:
    """An input set in the candidate's layout."""
    if not candidate.channels_last:
        return inputs
    return tuple(x.to(memory_format=torch.channels_last) for x in inputs)


def prepare(
    candidate: Candidate, sets: Sequence[Inputs], record: dict[str, Any]
) -> tuple[Run, Run]:
    """The candidate as a graph (where it can be captured) and as plain calls, warmed up."""
    sets = [laid_out(candidate, inputs) for inputs in sets]
    plain_method = "events" if sets[0][0].is_cuda else "clock"
    with candidate.settings(), warnings.catch_warnings():
        # Who runs without the graph that he is measured for has failed.
        warnings.filterwarnings("error", "GraphRunner: ", RuntimeWarning)
        record["first_call_s"] = round(warm_up(candidate.call, sets), 3)
        if candidate.own_graph:
            graph = plain_run(candidate.call, sets, "runner")
        else:
            graph = graph_run(candidate.call, sets)
    if graph.note:
        record["note"] = graph.note
    plain = plain_run(candidate.call, sets[:PLAIN_SETS], plain_method)
    return within(candidate, graph), within(candidate, plain)


def within(candidate: Candidate, run: Run) -> Run:
    """`run` under the candidate's settings."""

    def once() -> None:
        with candidate.settings():
            run.once()

    def outputs() -> list[Tensor]:
        with candidate.settings():
            return run.outputs()

    return replace(run, once=once, outputs=outputs)


def compare(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], limit: float, record: dict[str, Any]
) -> None:
    """Put the larger relative error and whether it is a match into `record`."""
    errors = [relative_error(*pair) for pair in zip(outputs, expected, strict=True)]
    finite = all(isfinite(error) for error in errors)
    record.update(
        rel_error=max(errors) if finite else None,
        tolerance=limit,
        match=finite and max(errors) <= limit,
    )


def relative_error(output: Tensor, reference: Tensor) -> float:
    """||output - reference|| / ||reference||, in float64; not finite where the output is not.

    Of labels, the share that differs; where the reference is the scores that they stand for, of
    the scores of the labels and the highest ones.

    Raises:
        RuntimeError: the shapes differ.
    """
    if not output.is_floating_point() and reference.is_floating_point():
        output, reference = scores_of(output, reference)
    if output.shape != reference.shape:
        raise RuntimeError(
            f"the output has shape {tuple(output.shape)}, expected is {tuple(reference.shape)}"
        )
    if not reference.is_floating_point():
        return float((output != reference).double().mean())
    exact = reference.double()
    return float((output.double() - exact).norm() / exact.norm())


def scores_of(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """What the labelled classes score in `scores` (N, C, H, W), not finite for a class that there
    is not; and what the best ones do. Both are (N, H, W).
    """
    best = scores.amax(1)
    if labels.shape != best.shape:
        return labels, best
    known = labels < scores.shape[1]  # 0 and more: they are argmaxes, or bytes
    chosen = scores.gather(1, (labels * known).long()[:, None])[:, 0]
    return chosen.masked_fill(~known, float("nan")), best


def free_memory() -> None:
    """Drop compiled code and cached device memory of the case before."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
