"""The items of a report, in the order of importance: late ones may find no time left.

`PARTS` gives for each kind of item its measurement, its section of the page, and its faults;
`build_plan` lists the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks import facts, probes, tools, variants
from benchmarks.rows import Record, case_faults, cases_section
from benchmarks.tools import Visit
from fassd.bench.candidates import SWITCHED
from fassd.bench.cases import measure_case
from fassd.bench.subjects import MODULES, OPERATORS, PICTURES, Case
from fassd.models import list_models
from fassd.models.clock import Sampling

# --- kinds of items -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportPart:
    """A kind of item.

    Attributes:
        measure: function from the `Visit` and an item's arguments to its data, ready for JSON.
        title: heading of the page's section.
        section: function from the report and the name of the part to the section's text; called if
            the report contains data of the part.
        faults: function from data to its faults, in words.
    """

    measure: Callable[..., dict[str, Any]]
    title: str = ""
    section: Callable[[Record, str], str] = lambda report, part: ""
    faults: Callable[[Record], Iterable[str]] = lambda data: ()


def case(visit: Visit, group: str, **subject: Any) -> dict[str, Any]:
    return measure_case(Case(**subject), group, visit.bench)


PARTS = {
    "build": ReportPart(tools.build),
    "environment": ReportPart(facts.describe_environment, "Environment", facts.environment_section),
    "smoke": ReportPart(facts.smoke, "First checks", facts.smoke_section),
    "networks": ReportPart(case, "Networks", cases_section, case_faults),
    "profile": ReportPart(
        probes.profile_network, "Launches", probes.profile_section, probes.profile_faults
    ),
    "counters": ReportPart(probes.count_launches, "Counters", probes.counters_section),
    "conformance": ReportPart(
        tools.conformance, "Conformance", tools.conformance_section, tools.failing_tests
    ),
    "runner": ReportPart(
        facts.measure_runner, "From camera to labels", facts.runner_section, facts.runner_faults
    ),
    "ceilings": ReportPart(facts.measure_ceilings, "Ceilings", facts.ceilings_section),
    "sanitizer": ReportPart(
        tools.sanitize, "Sanitizers", tools.sanitizer_section, tools.sanitizer_faults
    ),
    "modules": ReportPart(case, "Modules", cases_section, case_faults),
    "tune": ReportPart(tools.tune, "Tuning", tools.tuning_section),
    "choices": ReportPart(
        partial(tools.tune, backends=True), "Choice of backends", tools.tuning_section
    ),
    "variants": ReportPart(
        variants.measure_variants,
        "Variants of the convolution kernel",
        variants.variants_section,
        variants.wrong_variants,
    ),
    "operators": ReportPart(case, "Operators", cases_section, case_faults),
}

# --- items ----------------------------------------------------------------------------------------

PEER_SOURCES = ("fassd/models",)
OUR_SOURCES = ("fassd/models", "fassd_kernels", "csrc", "setup.py", "pyproject.toml")
SUITE_SOURCES = (*OUR_SOURCES, "tests/conformance")

CUDA = "cuda"
"""Our backend with kernels in CUDA C++."""

NETWORKS = ("fassd_net", "fassd_net_l2", "fassd_net_l1", "fc_hardnet_70")
"""Networks measured before the other rows of the table, the baselines."""

PEER_GROUPS = ("library", "compile", "max-autotune")
"""Candidates without our kernels, whose changes do not affect their figures."""

QUICK_GROUPS = ("library", "ours")
"""Seconds for each item that needs no compiler."""

TIMES_S = {
    "native": (6.0, 60.0),
    "library": (6.0, 60.0),
    "ours": (6.0, 90.0),
    "dependent": (12.0, 60.0),
    "carve-out": (12.0, 60.0),
    "threads": (12.0, 60.0),
    "choice": (15.0, 120.0),
    "compile": (20.0, 120.0),
    "max-autotune": (40.0, 200.0),
}
"""With less time left than the first a group is not started; after the second it is killed."""

SAMPLE = 8
"""The sample of the suite's rows that comes first: all of it takes minutes to compile."""

SANITIZED = 16
"""The sample of the suite's rows under each sanitizer."""

Place = dict[str, Any]
"""Batch, height and width of the network's input, and dtype."""


@dataclass(frozen=True)
class Item:
    """A unit of measuring and saving.

    Attributes:
        name: unique name; slashes separate its parts, of which the first is a key of `PARTS`.
        arguments: arguments of its measurement.
        limit_s: seconds after which it is killed.
        least_s: minimum seconds left for starting it.
        sources: files that it depends on; a result from before a change is not used again.
        backend: name of our backend that must be available for starting it, if any.
        environment: variables of a separate process, if it needs one.
        first: True if ``--first`` measures it.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    least_s: float = 5.0
    sources: tuple[str, ...] = OUR_SOURCES
    backend: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    first: bool = False

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]


def name_of(place: Place) -> str:
    return "{batch}x{height}x{width}/{dtype}".format(**place)


@dataclass(frozen=True)
class Scale:
    """The extent of a report; the most important comes first everywhere.

    Attributes:
        device: ``cuda`` or ``cpu``; our backend of compiled kernels has the same name.
        sizes: sizes (height, width) of the network's input.
        batches, dtypes: batches and dtypes of the network's input.
        operators, modules, networks: subjects; the first two networks are those of the headline.
        compiler: backend of torch.compile; if it is not Inductor, networks are not compiled, and
            nothing is autotuned.
        sampling: number and length of samples per figure.
        copy_bytes, matrix_side: sizes for measuring the ceilings.
        suite: paths of the conformance tests.
        runner_s: seconds of the stream of frames.
        variants_s: seconds for the variants of the convolution kernel, for one network.
    """

    device: str = "cuda"
    sizes: tuple[tuple[int, int], ...] = ((1024, 2048), (512, 1024))
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    operators: tuple[str, ...] = (*OPERATORS, *PICTURES)
    modules: tuple[str, ...] = tuple(MODULES)
    networks: tuple[str, ...] = tuple(dict.fromkeys((*NETWORKS, *list_models())))
    compiler: str = "inductor"
    sampling: Sampling = field(default_factory=Sampling)
    copy_bytes: int = 2 << 30  # a few dozen times the L2 cache of today's cards
    matrix_side: int = 8192
    suite: str = "tests/conformance"
    runner_s: float = 2.0
    variants_s: float = 90.0

    @property
    def headline(self) -> tuple[str, ...]:
        return self.networks[:2]

    @property
    def compiles(self) -> bool:
        return self.compiler == "inductor"

    @property
    def places(self) -> list[Place]:
        return [
            {"batch": batch, "height": height, "width": width, "dtype": dtype}
            for batch in self.batches
            for dtype in self.dtypes
            for height, width in self.sizes
        ]

    # Items of one kind.

    def cases(
        self, place: Place, part: str, subjects: Sequence[str], *groups: str
    ) -> Iterator[Item]:
        """All `groups` of a subject together, subject after subject."""
        for subject in subjects:
            for group in groups:
                if subject in PICTURES and group == "library":
                    continue  # for pictures of bytes, eager is the library's only form
                least_s, limit_s = TIMES_S[group]
                yield Item(
                    f"{part}/{subject}/{name_of(place)}/{group}",
                    {"part": part, "subject": subject, **place, "group": group},
                    limit_s,
                    least_s,
                    PEER_SOURCES if group in PEER_GROUPS else OUR_SOURCES,
                    environment=SWITCHED.get(group, {}),
                )

    def smoke(self, backend: str) -> Item:
        return Item(f"smoke/{backend}", {"backend": backend}, 90.0)

    def profile(self, backend: str, network: str) -> Item:
        """The launches of a network through one of our backends."""
        arguments = {"backend": backend, "network": network, **self.places[0]}
        return Item(f"profile/{backend}/{network}", arguments, 120.0)

    def suite_on(self, backend: str, every: int, group: str = "") -> Item:
        """The suite on a backend, one row of its tables in `every`, with a group's switches."""
        options = [f"--device={self.device}", f"--backend={backend}"]
        arguments = {"suite": self.suite, "options": options}
        name, limit_s = f"conformance/{backend}", 360.0
        if group:
            name, arguments["environment"] = f"{name}/{group}", SWITCHED[group]
        if every > 1:
            name, limit_s = f"{name}/sample", 90.0
            options.append(f"--every={every}")
        return Item(name, arguments, limit_s, 20.0, SUITE_SOURCES, backend)

    def sanitized(self, tool: str) -> Item:
        """Part of the suite under a tool of compute-sanitizer."""
        options = [f"--device={self.device}", f"--backend={CUDA}", "-ktest_table"]
        options.append(f"--every={SANITIZED}")
        arguments = {"tool": tool, "suite": self.suite, "options": options}
        return Item(f"sanitizer/{tool}", arguments, 100.0, 60.0, SUITE_SOURCES, CUDA)

    def memcheck(self, network: str) -> Item:
        """The kernels that a network uses, in one forward pass at the smallest size."""
        height, width = self.sizes[-1]
        forward = {"network": network, **self.places[0], "height": height, "width": width}
        arguments = {"tool": "memcheck", "forward": forward}
        return Item(f"sanitizer/memcheck/{network}", arguments, 100.0, 30.0, backend=CUDA)

    def tune(self, place: Place) -> Item:
        """Tile sizes for the first network, whose layers are also the other subjects."""
        arguments = {"model": self.networks[0], **place}
        name = f"tune/{self.networks[0]}/{name_of(place)}"
        return Item(name, arguments, 120.0, 60.0, backend="triton")


FULL = Scale()


def quick_scale(device: str = "cpu") -> Scale:
    """Everything in miniature: a rehearsal, whose figures mean nothing.

    torch.compile only traces (``aot_eager``), because Inductor takes long, on a CPU minutes.
    """
    return Scale(
        device=device,
        sizes=((64, 64),),
        batches=(1,),
        dtypes=("float32",),
        operators=("upsample_argmax", PICTURES[0]),
        modules=("MDA(63, 2)", "HarDBlock base.4"),
        networks=("fassd_net_l2",),
        compiler="aot_eager",
        sampling=Sampling(rounds=2, sample_ms=0.2),
        copy_bytes=1 << 20,
        matrix_side=128,
        suite="tests/conformance/test_normalize.py",
        runner_s=0.1,
        variants_s=1.0,
    )


def build_plan(scale: Scale) -> list[Item]:
    """The items of a report, most important first; an item named by two rules is placed by the
    first.
    """
    items = [
        *(replace(item, first=True) for item in first_items(scale)),
        *headline_items(scale),
        *rest_of_the_time(scale),
        *everything(scale),
    ]
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.name, item)
    return list(found.values())


def first_items(scale: Scale) -> Iterator[Item]:
    """The two minutes of ``--first``: correctness, time, and time by launch."""
    place, networks = scale.places[0], scale.headline
    if scale.device == "cuda":
        yield Item("build", {}, 300.0, 20.0)
    yield Item("environment", {}, least_s=1.0, sources=())
    yield scale.smoke(scale.device)
    for height, width in scale.sizes[:2]:
        here = {**place, "height": height, "width": width}
        yield from scale.cases(here, "networks", networks, "native")
    for network in networks:
        yield scale.profile(scale.device, network)
    yield from scale.cases(place, "networks", networks, *SWITCHED)


def headline_items(scale: Scale) -> Iterator[Item]:
    """The purpose of the report: the networks with their peers, the counters, and correctness.

    Within seven minutes on an H200, including the items before.
    """
    place, networks = scale.places[0], scale.headline
    network = networks[0]
    compiled = ("compile",) if scale.compiles else ()
    yield from scale.cases(place, "networks", networks, "ours", "library", *compiled)
    yield Item(f"counters/{network}", {"network": network, **place}, 120.0, 40.0, backend=CUDA)
    yield scale.suite_on(CUDA, SAMPLE)
    yield scale.suite_on(CUDA, SAMPLE, "dependent")
    for name in networks:
        arguments = {"backend": scale.device, "network": name, "seconds": scale.runner_s, **place}
        yield Item(f"runner/{name}", arguments, 60.0, 10.0)
    crowd = {**place, "batch": scale.batches[-1]}
    yield from scale.cases(crowd, "networks", [network], "native")
    sizes = {"copy_bytes": scale.copy_bytes, "matrix_side": scale.matrix_side}
    yield Item("ceilings", sizes, sources=())
    yield scale.memcheck(network)
    yield from scale.cases(place, "modules", with_targets(scale), "native", "library")


def rest_of_the_time(scale: Scale) -> Iterator[Item]:
    """Minutes each: tuning, the fastest backend of each call, max-autotune, variants."""
    place, networks = scale.places[0], scale.headline
    yield scale.tune(place)
    yield scale.profile("triton", networks[0])
    for network in networks:
        arguments = {"model": network, **place}
        yield Item(f"choices/{network}/{name_of(place)}", arguments, 120.0, 60.0, backend=CUDA)
    yield from scale.cases(place, "networks", networks, "choice")
    yield from scale.cases(place, "modules", with_targets(scale), "compile", "ours")
    if scale.compiles:
        yield from scale.cases(place, "networks", networks[:1], "max-autotune")
    for network in networks:
        arguments = {"backend": scale.device, "network": network, **place}
        name = f"variants/{network}/{name_of(place)}"
        # It finishes its current case after half of its limit.
        sources = (*OUR_SOURCES, "benchmarks/variants.py")
        yield Item(name, arguments, 2 * scale.variants_s, 30.0, sources)
    yield scale.smoke("triton")
    yield scale.suite_on("triton", SAMPLE)
    yield from map(scale.sanitized, tools.SANITIZERS)


def everything(scale: Scale) -> Iterator[Item]:
    """All subjects at all places: first those that need no compiler, max-autotune last; and the
    whole suite for our GPU backends, with a sample for the backends that they are compared with.
    """
    subjects = (
        ("networks", scale.headline),
        ("modules", scale.modules),
        ("networks", scale.networks),
        ("operators", scale.operators),
    )
    for place in scale.places:
        yield scale.tune(place)
        for part, names in subjects:
            yield from scale.cases(place, part, names, *QUICK_GROUPS)
        if place == scale.places[0]:
            yield scale.suite_on(CUDA, 1)
            yield scale.suite_on("triton", 1)
            yield scale.suite_on("reference", SAMPLE)
    for place in scale.places:
        yield from scale.cases(place, "modules", scale.modules, "compile")
        yield from scale.cases(place, "operators", scale.operators, "compile")
        if scale.compiles:
            yield from scale.cases(place, "networks", scale.networks, "compile")
    for place in scale.places if scale.compiles else ():
        yield from scale.cases(place, "modules", scale.modules, "max-autotune")
        yield from scale.cases(place, "networks", scale.networks, "max-autotune")


def with_targets(scale: Scale) -> list[str]:
    """The modules that have targets: context and refinement."""
    return [name for name in scale.modules if name.startswith(("DAPF", "MDA"))]


def untuned(plan: Sequence[Item], tuning: Item) -> list[Item]:
    """The items that run our kernels at the place of `tuning`, whose table changes them."""
    place = {name: value for name, value in tuning.arguments.items() if name != "model"}
    groups = ("choice",) if tuning.part == "choices" else ("ours", "choice")
    return [
        item
        for item in plan
        if item.arguments.get("group") in groups and place.items() <= item.arguments.items()
    ]
