"""What a report measures, in the order of importance: what comes late may find no time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.probes import COPY_BYTES, MATRIX_SIDE
from benchmarks.tools import SANITIZERS
from fassd.bench.candidates import SWITCHED
from fassd.bench.stopwatch import Sampling
from fassd.bench.subjects import MODULES, OPERATORS, PICTURES, Case

PARTS = (
    "build",
    "environment",
    "smoke",
    "networks",
    "profile",
    "counters",
    "conformance",
    "runner",
    "ceilings",
    "sanitizer",
    "modules",
    "tune",
    "variants",
    "operators",
)

PEER_SOURCES = ("fassd/models",)
OUR_SOURCES = ("fassd/models", "fassd_kernels", "csrc", "setup.py", "pyproject.toml")
SUITE_SOURCES = (*OUR_SOURCES, "tests/conformance")
GPU_BACKEND = "cuda"
"""Of our backends, the one with kernels of CUDA C++."""

NETWORKS = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")
"""Measured before the other rows of the table, the baselines."""

CONTEXT_AND_REFINEMENT = tuple(name for name in MODULES if name.startswith(("DAPF", "MDA")))
"""The modules that there are targets for."""

PEER_GROUPS = ("library", "compile", "max-autotune")
"""Without kernels of ours, whose changes leave their figures as they are."""

QUICK_GROUPS = ("library", "ours")
"""Seconds each: what needs no compiler."""

TIMES_S = {
    "native": (6.0, 60.0),
    "library": (6.0, 60.0),
    "ours": (6.0, 90.0),
    "dependent": (12.0, 60.0),
    "carve-out": (12.0, 60.0),
    "choice": (15.0, 120.0),
    "compile": (20.0, 120.0),
    "max-autotune": (40.0, 200.0),
}
"""With less time left than the first a group is not begun; after the second it is killed."""

SAMPLE = 8
"""The suite's one row in so many comes first: all of it takes minutes to compile."""


@dataclass(frozen=True)
class Item:
    """What is measured, and saved, at once.

    Attributes:
        name: unique; slashes separate its parts.
        part: one of `PARTS`.
        task: what runs it: one of `benchmarks.session`.
        arguments: of the task.
        limit_s: after so many seconds it is killed.
        least_s: with less time left it is not begun.
        sources: files that it depends on; a result from before a change is not taken up again.
        backend: of ours, that must be there before it is begun, if any.
        environment: of a process of its own, where it needs one.
        first: whether ``--first`` measures it.
    """

    name: str
    part: str
    task: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    least_s: float = 5.0
    sources: tuple[str, ...] = ()
    backend: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    first: bool = False


@dataclass(frozen=True)
class Place:
    """Where subjects are measured: dtype, batch, and (height, width) of the network's input."""

    dtype: str
    batch: int
    height: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}/{self.dtype}"


@dataclass(frozen=True)
class Scale:
    """How large a report is.

    Attributes:
        device: ``cuda`` or ``cpu``.
        sizes: (height, width) of the network's input, most important first.
        batches, dtypes: most important first.
        operators, modules, networks, others: subjects; `others` are networks of lesser importance.
        targets: the networks that there are targets for.
        compiled_networks: whether networks are compiled, or modules only.
        max_autotune: whether ``max-autotune`` is tried at all.
        compiler: backend of torch.compile.
        sampling: samples per figure.
        copy_bytes, matrix_side: of the ceilings.
        suite: the conformance tests.
        suite_backends: backends that it judges, the most important one first.
        suite_limit_s: seconds for a sample of it, which is all that other backends get.
        whole_suite_limit_s: seconds for all of it.
        tune_limit_s: seconds for tuning at one place.
        sanitized_every: of the suite's rows, one in so many runs under each sanitizer.
        sanitizer_limit_s: seconds for each sanitizer.
        variants_limit_s: seconds for the variants of the convolution kernel, of one network.
        runner_s: seconds of frames in a row.
        install: whether the kernels are built.
    """

    device: str = "cuda"
    sizes: tuple[tuple[int, int], ...] = ((1024, 2048), (512, 1024))
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    operators: tuple[str, ...] = (*OPERATORS, *PICTURES)
    modules: tuple[str, ...] = tuple(MODULES)
    networks: tuple[str, ...] = NETWORKS
    targets: tuple[str, ...] = ("fassd_net", "fassd_net_l2")
    others: tuple[str, ...] = ()
    compiled_networks: bool = True
    max_autotune: bool = True
    compiler: str = "inductor"
    sampling: Sampling = field(default_factory=Sampling)
    copy_bytes: int = COPY_BYTES
    matrix_side: int = MATRIX_SIDE
    suite: str = "tests/conformance"
    suite_backends: tuple[str, ...] = (GPU_BACKEND, "triton", "reference")
    suite_limit_s: float = 90.0
    whole_suite_limit_s: float = 360.0
    tune_limit_s: float = 120.0
    sanitized_every: int = 16
    sanitizer_limit_s: float = 100.0
    variants_limit_s: float = 90.0
    runner_s: float = 2.0
    install: bool = True

    @property
    def places(self) -> list[Place]:
        """The most important first."""
        return [
            Place(dtype, batch, *size)
            for batch in self.batches
            for dtype in self.dtypes
            for size in self.sizes
        ]

    @property
    def native(self) -> str:
        """Our backend of C++ or CUDA kernels, which is named as the device is."""
        return self.device


def full_scale() -> Scale:
    from fassd.models import list_models

    return Scale(others=tuple(name for name in list_models() if name not in NETWORKS))


def quick_scale(device: str = "cpu") -> Scale:
    """Everything in miniature: a rehearsal, whose figures mean nothing.

    torch.compile only traces (``aot_eager``), because Inductor takes its time, on a CPU minutes.
    """
    return Scale(
        device=device,
        sizes=((64, 64),),
        batches=(1,),
        dtypes=("float32",),
        operators=("upsample_argmax", PICTURES[0]),
        modules=("MDA(63, 2)", "HarDBlock base.4"),
        networks=("fassd_net",),
        targets=("fassd_net",),
        compiled_networks=False,
        max_autotune=False,
        compiler="aot_eager",
        sampling=Sampling(rounds=3, sample_ms=0.5),
        copy_bytes=1 << 20,
        matrix_side=128,
        suite="tests/conformance/test_normalize.py",
        suite_backends=(GPU_BACKEND, "triton", "reference"),
        suite_limit_s=30.0,
        whole_suite_limit_s=30.0,
        tune_limit_s=60.0,
        sanitizer_limit_s=60.0,
        variants_limit_s=20.0,
        runner_s=0.2,
        install=device == "cuda",
    )


def build_plan(scale: Scale) -> list[Item]:
    """The items of a report, most important first; what two rules name stands where the first
    puts it.
    """
    items = [
        *first_items(scale),
        *headline(scale),
        *rest_of_the_time(scale),
        *quick_items(scale, scale.places[:1]),
        *more_conformance(scale),
        *quick_items(scale, scale.places[1:]),
        *compile_items(scale),
    ]
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.name, item)
    return list(found.values())


def first_items(scale: Scale) -> Iterator[Item]:
    """The two minutes of ``--first``: is it right, how long does it take, and where."""
    native = scale.native
    items = [
        Item("environment", "environment", "environment", {"device": scale.device}, least_s=1.0),
        smoke_item(scale, native),
    ]
    if scale.install:
        items.insert(0, Item("build", "build", "build", {}, 300.0, 20.0, OUR_SOURCES))
    for height, width in scale.sizes[:2]:
        here = [replace(scale.places[0], height=height, width=width)]
        items += group_items(scale, here, "networks", scale.targets, ("native",))
    here = scale.places[:1]
    items += [profile_item(scale, native, network, here[0]) for network in scale.targets]
    items += group_items(scale, here, "networks", scale.targets, tuple(SWITCHED))
    return (replace(item, first=True) for item in items)


def headline(scale: Scale) -> Iterator[Item]:
    """What the report is for: the networks beside their peers, the counters, and that it is right.

    Within seven minutes on an H200, with what comes before it.
    """
    first, network = scale.places[0], scale.targets[0]
    groups = ("ours", "library", *(("compile",) if scale.compiled_networks else ()))
    yield from group_items(scale, [first], "networks", scale.targets, groups)
    yield counters_item(scale, network, first)
    yield conformance_item(scale, scale.suite_backends[0], SAMPLE)
    for target in scale.targets:
        yield runner_item(scale, target, first)
    crowd = [replace(first, batch=scale.batches[-1])]
    yield from group_items(scale, crowd, "networks", scale.targets[:1], ("native",))
    yield Item("ceilings", "ceilings", "ceilings", ceilings_arguments(scale), 60.0)
    yield memcheck_item(scale, network)
    modules = with_targets(scale)
    yield from group_items(scale, [first], "modules", modules, ("native", "library"))


def rest_of_the_time(scale: Scale) -> Iterator[Item]:
    """Minutes each: tuning, the fastest backend of each call, max-autotune, variants."""
    first = scale.places[0]
    yield tune_item(scale, first)
    yield profile_item(scale, "triton", scale.networks[0], first)
    for network in scale.targets:
        yield tune_item(scale, first, network, backends=True)
    yield from group_items(scale, [first], "networks", scale.targets, ("choice",))
    yield from group_items(scale, [first], "modules", with_targets(scale), ("compile", "ours"))
    if scale.max_autotune:
        yield from group_items(scale, [first], "networks", scale.targets[:1], ("max-autotune",))
    for network in scale.targets:
        yield variants_item(scale, network, first)
    yield smoke_item(scale, "triton")
    yield conformance_item(scale, "triton", SAMPLE)
    for tool in SANITIZERS:
        yield sanitizer_item(scale, tool)


def more_conformance(scale: Scale) -> Iterator[Item]:
    """All of the suite for our GPU backends, and a sample of what they are compared with."""
    for backend in scale.suite_backends:
        yield conformance_item(scale, backend, 1 if backend != "reference" else SAMPLE)


def with_targets(scale: Scale) -> tuple[str, ...]:
    return tuple(name for name in scale.modules if name in CONTEXT_AND_REFINEMENT)


def quick_items(scale: Scale, places: Sequence[Place]) -> Iterator[Item]:
    """What needs no compiler, place by place, each tuned for first."""
    for place in places:
        here = [place]
        yield tune_item(scale, place)
        yield from group_items(scale, here, "networks", scale.networks[:1], QUICK_GROUPS)
        yield from group_items(scale, here, "modules", scale.modules, QUICK_GROUPS)
        yield from group_items(scale, here, "networks", scale.networks[1:], QUICK_GROUPS)
        yield from group_items(scale, here, "operators", scale.operators, QUICK_GROUPS)
        yield from group_items(scale, here, "networks", scale.others, QUICK_GROUPS)


def compile_items(scale: Scale) -> Iterator[Item]:
    """Tens of seconds each, a network's max-autotune minutes: place by place, max-autotune last."""
    networks = (*scale.networks, *scale.others)
    for place in scale.places:
        for part, subjects in (("modules", scale.modules), ("operators", scale.operators)):
            yield from group_items(scale, [place], part, subjects, ("compile",))
        if scale.compiled_networks:
            yield from group_items(scale, [place], "networks", networks, ("compile",))
    if scale.max_autotune:
        for place in scale.places:
            for part, subjects in (("modules", scale.modules), ("networks", networks)):
                yield from group_items(scale, [place], part, subjects, ("max-autotune",))


def ceilings_arguments(scale: Scale) -> dict[str, Any]:
    return {
        "device": scale.device,
        "sampling": asdict(scale.sampling),
        "copy_bytes": scale.copy_bytes,
        "matrix_side": scale.matrix_side,
    }


def conformance_item(scale: Scale, backend: str, every: int) -> Item:
    """The suite on a backend, one row of its tables in `every`."""
    name, limit_s = f"conformance/{backend}", scale.whole_suite_limit_s
    options = [f"--device={scale.device}", f"--backend={backend}"]
    if every > 1:
        name, limit_s = f"{name}/sample", scale.suite_limit_s
        options.append(f"--every={every}")
    arguments = {"suite": scale.suite, "options": options}
    return Item(
        name, "conformance", "conformance", arguments, limit_s, 20.0, SUITE_SOURCES, backend
    )


def smoke_item(scale: Scale, backend: str) -> Item:
    arguments = {"device": scale.device, "backend": backend}
    return Item(f"smoke/{backend}", "smoke", "smoke", arguments, 90.0, sources=OUR_SOURCES)


def profile_item(scale: Scale, backend: str, network: str, place: Place) -> Item:
    """The launches of a network through a backend of ours."""
    arguments = {"device": scale.device, "backend": backend, "subject": network, **asdict(place)}
    name = f"profile/{backend}/{network}"
    return Item(name, "profile", "profile", arguments, 120.0, sources=OUR_SOURCES)


def runner_item(scale: Scale, network: str, place: Place) -> Item:
    """From pictures in memory to labels there."""
    arguments = {
        "device": scale.device,
        "backend": scale.native,
        "network": network,
        "seconds": scale.runner_s,
        **asdict(place),
    }
    return Item(f"runner/{network}", "runner", "runner", arguments, 60.0, 10.0, OUR_SOURCES)


def variants_item(scale: Scale, network: str, place: Place) -> Item:
    """The variants of the convolution kernel, on each shape of a network."""
    limit_s = scale.variants_limit_s
    arguments = {
        "device": scale.device,
        "backend": scale.native,
        "network": network,
        "sampling": asdict(scale.sampling),
        "limit_s": limit_s,
        **asdict(place),
    }
    # Beyond its own limit, it ends what it is at.
    return Item(
        f"variants/{network}/{place.name}", "variants", "variants", arguments, 2 * limit_s, 30.0,
        (*OUR_SOURCES, "benchmarks/variants.py"),
    )  # fmt: skip


def counters_item(scale: Scale, network: str, place: Place) -> Item:
    """The hardware's counters, of the slowest launches of a network."""
    arguments = {"network": network, **asdict(place)}
    return Item(
        f"counters/{network}", "counters", "counters", arguments, 120.0, 40.0, OUR_SOURCES,
        GPU_BACKEND,
    )  # fmt: skip


def sanitizer_item(scale: Scale, tool: str) -> Item:
    """Part of the suite under a tool of compute-sanitizer."""
    options = [f"--device={scale.device}", f"--backend={GPU_BACKEND}", "-ktest_table"]
    options.append(f"--every={scale.sanitized_every}")
    arguments = {"tool": tool, "suite": scale.suite, "options": options}
    return Item(
        f"sanitizer/{tool}", "sanitizer", "sanitizer", arguments, scale.sanitizer_limit_s, 60.0,
        SUITE_SOURCES, GPU_BACKEND,
    )  # fmt: skip


def memcheck_item(scale: Scale, network: str) -> Item:
    """The kernels that a network takes, in one forward at the smallest size."""
    height, width = scale.sizes[-1]
    place = replace(scale.places[0], height=height, width=width)
    arguments = {"tool": "memcheck", "forward": {"network": network, **asdict(place)}}
    return Item(
        f"sanitizer/memcheck/{network}", "sanitizer", "sanitizer", arguments,
        scale.sanitizer_limit_s, 30.0, OUR_SOURCES, GPU_BACKEND,
    )  # fmt: skip


def tune_item(scale: Scale, place: Place, network: str = "", backends: bool = False) -> Item:
    """Tuning for a network, by default the first, whose layers are the other subjects too.

    Args:
        scale: of the report.
        place: to tune for.
        network: its name.
        backends: find the fastest backend of each call, instead of the Triton kernels' tile sizes.
    """
    network = network or scale.networks[0]
    kind = "choices" if backends else "tune"
    return Item(
        f"{kind}/{network}/{place.name}",
        "tune",
        "tune",
        {"model": network, "backends": backends, **asdict(place)},
        scale.tune_limit_s,
        60.0,
        OUR_SOURCES,
        GPU_BACKEND if backends else "triton",
    )


def group_items(
    scale: Scale,
    places: Sequence[Place],
    part: str,
    subjects: Sequence[str],
    groups: Sequence[str],
) -> Iterator[Item]:
    """All `groups` of a subject together, subject after subject, place after place."""
    for place in places:
        for subject in subjects:
            for group in groups:
                # Of pictures of bytes, eager is the library's only form.
                if subject not in PICTURES or group != "library":
                    yield case_item(scale, Case(part, subject, **asdict(place)), group)


def case_item(scale: Scale, case: Case, group: str) -> Item:
    least_s, limit_s = TIMES_S[group]
    return Item(
        f"{case.part}/{case.subject}/{case.batch}x{case.height}x{case.width}/{case.dtype}/{group}",
        case.part,
        "case",
        {
            "device": scale.device,
            "sampling": asdict(scale.sampling),
            "compiler": scale.compiler,
            "group": group,
            **asdict(case),
        },
        limit_s,
        least_s,
        PEER_SOURCES if group in PEER_GROUPS else OUR_SOURCES,
        environment=SWITCHED.get(group, {}),
    )


def untuned(plan: Sequence[Item], tuning: Item) -> list[Item]:
    """The items that run our kernels at the place of `tuning`, whose table changes them."""
    keys = [key for key in tuning.arguments if key not in ("model", "backends")]
    groups = ("choice",) if tuning.arguments["backends"] else ("ours", "choice")
    return [
        item
        for item in plan
        if item.arguments.get("group") in groups
        and all(item.arguments[key] == tuning.arguments[key] for key in keys)
    ]
