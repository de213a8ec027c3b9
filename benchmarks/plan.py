"""What a report measures, in the order of importance: what comes late may find no time left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.cases import MODULES, Case
from benchmarks.ceilings import COPY_BYTES, MATRIX_SIDE
from benchmarks.timing import Sampling

PARTS = (
    "install",
    "environment",
    "smoke",
    "ceilings",
    "operators",
    "conformance",
    "modules",
    "networks",
)

PEER_SOURCES = ("fassd/models",)
OUR_SOURCES = ("fassd/models", "fassd_kernels", "csrc", "setup.py", "pyproject.toml")
SUITE_SOURCES = (*OUR_SOURCES, "tests/conformance")

NETWORKS = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")
"""Measured before the other rows of the table, the baselines."""

LEAST_S = {"library": 6.0, "ours": 6.0, "compile": 20.0, "max-autotune": 40.0}
"""With less time left than this, a group is not begun."""

LIMITS_S = {
    ("operators", "ours"): 30.0,
    ("operators", "compile"): 60.0,
    ("modules", "library"): 30.0,
    ("modules", "ours"): 30.0,
    ("modules", "compile"): 60.0,
    ("modules", "max-autotune"): 100.0,
    ("networks", "library"): 60.0,
    ("networks", "ours"): 60.0,
    ("networks", "compile"): 120.0,
    ("networks", "max-autotune"): 200.0,
}


@dataclass(frozen=True)
class Item:
    """What is measured, and saved, at once.

    Attributes:
        name: unique; slashes separate its parts.
        part: one of `PARTS`.
        task: what runs it: a task of `benchmarks.worker`, ``install`` or ``conformance``.
        arguments: of the task.
        limit_s: after so many seconds it is killed.
        least_s: with less time left it is not begun.
        sources: files that it depends on; a result from before a change is not taken up again.
    """

    name: str
    part: str
    task: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    least_s: float = 5.0
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How large a report is.

    Attributes:
        device: ``cuda`` or ``cpu``.
        sizes: (height, width) of the network's input, most important first.
        dtypes: most important first.
        modules, networks, others: subjects; `others` are networks of lesser importance.
        compiled_networks: whether networks are compiled, or modules only.
        max_autotune: whether ``max-autotune`` is tried at all.
        compiler: backend of torch.compile.
        sampling: samples per figure.
        copy_bytes, matrix_side: of the ceilings.
        suite: the conformance tests.
        suite_options: its options.
        suite_limit_s: seconds for it.
        install: whether the package is installed.
    """

    device: str = "cuda"
    sizes: tuple[tuple[int, int], ...] = ((1024, 2048), (512, 1024))
    dtypes: tuple[str, ...] = ("float16", "float32")
    modules: tuple[str, ...] = tuple(MODULES)
    networks: tuple[str, ...] = NETWORKS
    others: tuple[str, ...] = ()
    compiled_networks: bool = True
    max_autotune: bool = True
    compiler: str = "inductor"
    sampling: Sampling = field(default_factory=Sampling)
    copy_bytes: int = COPY_BYTES
    matrix_side: int = MATRIX_SIDE
    suite: str = "tests/conformance"
    suite_options: tuple[str, ...] = ("--device=cuda", "--backend=cuda", "--backend=reference")
    suite_limit_s: float = 150.0
    install: bool = True


def full_scale() -> Scale:
    from fassd.models import list_models

    return Scale(others=tuple(name for name in list_models() if name not in NETWORKS))


def quick_scale(device: str = "cpu") -> Scale:
    """Everything in miniature: a rehearsal, whose figures mean nothing.

    torch.compile only traces (``aot_eager``), because Inductor takes its time, on a CPU minutes.
    """
    backends = ("reference",) if device == "cpu" else ("cuda", "reference")
    return Scale(
        device=device,
        sizes=((64, 64),),
        dtypes=("float32",),
        modules=("DAPF(224)", "MDA(63, 2)"),
        networks=("fassd_net",),
        compiled_networks=False,
        max_autotune=False,
        compiler="aot_eager",
        sampling=Sampling(rounds=3, sample_ms=0.5),
        copy_bytes=1 << 20,
        matrix_side=128,
        suite="tests/conformance/test_normalize.py",
        suite_options=(f"--device={device}", *(f"--backend={name}" for name in backends)),
        suite_limit_s=30.0,
        install=device == "cuda",
    )


def build_plan(scale: Scale) -> list[Item]:
    """The items of a report, most important first."""
    device = {"device": scale.device}
    plan = [
        Item("environment", "environment", "environment", device),
        Item("smoke", "smoke", "smoke", device, 90.0, sources=OUR_SOURCES),
        Item("ceilings", "ceilings", "ceilings", ceilings_arguments(scale), 60.0),
        *operator_items(scale),
        Item(
            "conformance",
            "conformance",
            "conformance",
            {"suite": scale.suite, "options": list(scale.suite_options)},
            scale.suite_limit_s,
            20.0,
            SUITE_SOURCES,
        ),
        *library_items(scale),
        *compile_items(scale),
    ]
    if scale.install:
        plan.insert(0, Item("install", "install", "install", {}, 240.0, 20.0, OUR_SOURCES))
    return plan


def ceilings_arguments(scale: Scale) -> dict[str, Any]:
    return {
        "device": scale.device,
        "sampling": asdict(scale.sampling),
        "copy_bytes": scale.copy_bytes,
        "matrix_side": scale.matrix_side,
    }


def case_item(scale: Scale, case: Case, group: str) -> Item:
    return Item(
        f"{case.part}/{case.subject}/{case.height}x{case.width}/{case.dtype}/{group}",
        case.part,
        "case",
        {
            "device": scale.device,
            "sampling": asdict(scale.sampling),
            "compiler": scale.compiler,
            "group": group,
            **asdict(case),
        },
        LIMITS_S[case.part, group],
        LEAST_S[group],
        OUR_SOURCES if group == "ours" else PEER_SOURCES,
    )


def operator_items(scale: Scale) -> Iterator[Item]:
    for group in ("ours", "compile"):
        yield from group_items(scale, "operators", ("normalize",), group)


def library_items(scale: Scale) -> Iterator[Item]:
    """Seconds each: what needs no compiler."""
    for part, subjects in (("modules", scale.modules), ("networks", scale.networks)):
        for group in ("library", "ours"):
            yield from group_items(scale, part, subjects, group)


def compile_items(scale: Scale) -> Iterator[Item]:
    """Tens of seconds each, a network's max-autotune minutes: size by size and dtype by dtype.

    The baselines come between, where all four networks have what is quick.
    """
    head, tail = scale.networks[:1], scale.networks[1:]
    places = [(dtype, size) for dtype in scale.dtypes for size in scale.sizes]
    for number, (dtype, size) in enumerate(places):
        here = replace(scale, dtypes=(dtype,), sizes=(size,))
        yield from group_items(here, "modules", scale.modules, "compile")
        if scale.compiled_networks:
            yield from group_items(here, "networks", head, "compile")
        if scale.max_autotune:
            yield from group_items(here, "modules", scale.modules, "max-autotune")
            yield from group_items(here, "networks", head, "max-autotune")
        if number == 0:
            for group in ("library", "ours"):
                yield from group_items(scale, "networks", scale.others, group)
        if scale.compiled_networks:
            yield from group_items(here, "networks", tail, "compile")
    if scale.max_autotune:
        yield from group_items(scale, "networks", tail, "max-autotune")
    if scale.compiled_networks:
        yield from group_items(scale, "networks", scale.others, "compile")
    if scale.max_autotune:
        yield from group_items(scale, "networks", scale.others, "max-autotune")


def group_items(scale: Scale, part: str, subjects: tuple[str, ...], group: str) -> Iterator[Item]:
    """All sizes and dtypes of `subjects`, the most important dtype and size first."""
    for dtype in scale.dtypes:
        for height, width in scale.sizes:
            for subject in subjects:
                yield case_item(scale, Case(part, subject, height, width, dtype), group)
