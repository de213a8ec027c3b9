"""The cases of the report: one subject at one size and dtype, measured in several forms."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import (
    BUILDERS,
    EAGER,
    GROUPS,
    TITLES,
    Candidate,
    Form,
    Normalize,
    UnavailableError,
    normalize_candidate,
    normalize_reference,
    randomised,
)
from benchmarks.timing import (
    PLAIN_SETS,
    Run,
    Sampling,
    first_line,
    graph_run,
    interleaved,
    plain_run,
    rotation,
    warm_up,
)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

TOLERANCES = {
    "modules": {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2},
    # Some fifty convolutions in a row: the rounding of each adds up, as its square root.
    "networks": {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 8e-2},
    "operators": {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2},
}
"""Largest ||out - reference|| / ||reference|| that counts as a match; a wrong result is near 1."""


@dataclass(frozen=True)
class Case:
    """One subject at one size and dtype; batch 1.

    Attributes:
        part: ``modules``, ``networks`` or ``operators``.
        subject: a key of `MODULES`, the name of a network, or ``normalize``.
        height, width: of the *network's* input in pixels, also where a module is the subject.
        dtype: a key of `DTYPES`.
    """

    part: str
    subject: str
    height: int
    width: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class ModulePlace:
    """A module as it stands in FASSD-Net.

    Attributes:
        build: makes it.
        channels: of its input.
        reduction: its input's sides are the picture's divided by this.
        needs: operators of ours that compute it.
    """

    build: Callable[[], nn.Module]
    channels: int
    reduction: int
    needs: frozenset[str]


def _dapf() -> nn.Module:
    from fassd.models import DAPF

    return DAPF(224, alpha=2)


def _mda(channels: int, dilation: int) -> nn.Module:
    from fassd.models import MDA

    return MDA(channels, dilation)


def _place(channels: int, dilation: int, reduction: int) -> ModulePlace:
    return ModulePlace(partial(_mda, channels, dilation), channels, reduction, frozenset({"mda"}))


MODULES = {
    "DAPF(224)": ModulePlace(_dapf, 224, 32, frozenset({"dapf"})),
    "MDA(192, 8)": _place(192, 8, 16),
    "MDA(119, 4)": _place(119, 4, 8),
    "MDA(63, 2)": _place(63, 2, 4),
}

NETWORK_NEEDS = frozenset({"conv_act", "dapf", "mda"})
"""Operators without which an accelerated network is still mostly PyTorch."""


@dataclass(frozen=True)
class Subject:
    """A case made concrete.

    Attributes:
        module: float32, evaluation mode, on the CPU; for ``normalize`` what PyTorch does.
        shape: of one input.
        reference: input of any floating dtype to the output that all candidates must give.
        candidate: name to candidate.
    """

    module: nn.Module
    shape: tuple[int, ...]
    reference: Callable[[Tensor], Tensor]
    candidate: Callable[[str], Candidate]


def subject_of(case: Case, device: torch.device, compiler: str) -> Subject:
    if case.part == "operators":
        return Subject(
            Normalize(case.torch_dtype),
            (1, case.height, case.width, 3),
            normalize_reference,
            lambda name: normalize_candidate(name, case.torch_dtype, device, compiler),
        )
    if case.part == "modules":
        place = MODULES[case.subject]
        module, needs, precision = place.build(), place.needs, torch.float64
        sides = (case.height // place.reduction, case.width // place.reduction)
        shape = (1, place.channels, *sides)
    else:
        from fassd.models import create_model

        module, needs, precision = create_model(case.subject), NETWORK_NEEDS, torch.float32
        shape = (1, 3, case.height, case.width)
    form = Form(randomised(module), case.torch_dtype, device, compiler, needs)
    return Subject(
        form.module,
        shape,
        partial(reference_output, form.module, precision, device),
        lambda name: BUILDERS[name](form),
    )


def reference_output(
    module: nn.Module, precision: torch.dtype, device: torch.device, x: Tensor
) -> Tensor:
    """The eager output in `precision`, tf32 forbidden."""
    reference = copy.deepcopy(module).to(device, precision)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            return reference(x.to(precision))
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


# --- measuring ------------------------------------------------------------------------------------


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
    candidates, records = build_candidates(GROUPS[group], subject)
    measured: dict[str, Any] = {}
    if set(candidates) - {EAGER}:  # eager alone is what the group `library` measures
        measured = measure_candidates(candidates, records, subject, case, bench)
    return {
        **vars(case),
        "group": group,
        "input_shape": list(subject.shape),
        "arithmetic": arithmetic(case, bench.device),
        **measured,
        "candidates": list(records.values()),
    }


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


def arithmetic(case: Case, device: torch.device) -> str:
    """What the units may compute in: ``tf32`` where cuDNN may use it for float32."""
    convolves = case.part != "operators" and case.dtype == "float32"
    tf32 = convolves and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if tf32 else case.dtype


def reference_ends(
    subject: Subject, case: Case, bench: Bench
) -> tuple[Callable[[int], list[Tensor]], dict[str, int]]:
    """The reference's outputs on the first and last of n sets, and what the floor is made of."""
    x = input_set(0, subject, case, bench.device)
    with FlopCounterMode(display=False) as counter:
        first = subject.reference(x)
    item = case.torch_dtype.itemsize
    work = {
        "activation_bytes": x.numel() * x.element_size() + first.numel() * item,
        "weight_bytes": item * sum(weight.numel() for weight in subject.module.parameters()),
        "operations": counter.get_total_flops(),
    }

    def ends(sets: int) -> list[Tensor]:
        return [first, subject.reference(input_set(sets - 1, subject, case, bench.device))]

    return ends, work


def input_set(index: int, subject: Subject, case: Case, device: torch.device) -> Tensor:
    """The seeded random input number `index`, contiguous."""
    generator = torch.Generator(device).manual_seed(index)
    if case.part == "operators":
        return torch.randint(
            256, subject.shape, dtype=torch.uint8, generator=generator, device=device
        )
    return torch.randn(subject.shape, generator=generator, device=device).to(case.torch_dtype)


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
    sets = [input_set(index, subject, case, bench.device) for index in range(count)]
    expected = ends(count)
    limit = TOLERANCES[case.part][arithmetic(case, bench.device)]
    prepared: dict[str, tuple[Run, Run]] = {}
    for name, candidate in candidates.items():
        try:
            runs = prepare(candidate, sets, records[name])
            compare(runs[0].outputs(), expected, limit, records[name])
            prepared[name] = runs
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the other candidates are still worth measuring
            records[name].update(status="failed", reason=first_line(error))
    for index, kind in enumerate(("timing", "plain")):
        runs_of_kind = {name: runs[index] for name, runs in prepared.items()}
        for name, timing in interleaved(runs_of_kind, bench.device, bench.sampling).items():
            records[name][kind] = timing.record()


def prepare(
    candidate: Candidate, sets: Sequence[Tensor], record: dict[str, Any]
) -> tuple[Run, Run]:
    """The candidate as a graph (where it can be captured) and as plain calls, warmed up."""
    if candidate.channels_last:
        sets = [x.to(memory_format=torch.channels_last) for x in sets]
    plain_method = "events" if sets[0].is_cuda else "clock"
    with candidate.settings():
        record["first_call_s"] = round(warm_up(candidate.call, sets), 3)
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

    Raises:
        RuntimeError: the shapes differ.
    """
    if output.shape != reference.shape:
        raise RuntimeError(
            f"the output has shape {tuple(output.shape)}, expected is {tuple(reference.shape)}"
        )
    exact = reference.double()
    return float((output.double() - exact).norm() / exact.norm())


def free_memory() -> None:
    """Drop compiled code and cached device memory of the case before."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
