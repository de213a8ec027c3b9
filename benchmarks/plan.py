"""The items of a GPU report, in the order of importance: late ones may find no time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fassd.bench.candidates import SWITCHED
from fassd.bench.subjects import MODULES
from fassd.models import list_models
from fassd.models.clock import Sampling

CUDA = "cuda"
"""Our backend with kernels in CUDA C++."""

TIMES_S = {
    "native": (6.0, 60.0),
    "library": (6.0, 60.0),
    "ours": (6.0, 90.0),
    **dict.fromkeys(SWITCHED, (12.0, 60.0)),
    "choice": (15.0, 120.0),
    "compile": (20.0, 120.0),
    "max-autotune": (40.0, 200.0),
}
"""With less time left than the first a group is not started; after the second it is killed."""

SAMPLE = 8
"""The sample of the suite's rows that comes first: all of it takes minutes to compile."""

Place = dict[str, Any]
"""Batch, height and width of the network's input, and dtype."""


@dataclass(frozen=True)
class Item:
    """A unit of measuring and saving.

    Attributes:
        name: unique name; slashes separate its parts, of which the first is a key of
            `benchmarks.report.PARTS`.
        arguments: arguments of its measurement.
        limit_s: seconds after which it is killed.
        least_s: minimum seconds left for starting it.
        backend: name of our backend that must be available for starting it, if any.
        environment: variables of the process, if it needs one of its own.
        first: True if ``--first`` measures it.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    least_s: float = 5.0
    backend: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    first: bool = False

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Scale:
    """The extent of a report.

    Attributes:
        device: ``cuda`` or ``cpu``; our backend of compiled kernels has the same name.
        sizes: sizes (height, width) of the network's input.
        batch: pictures at once, beside single ones.
        dtypes: dtypes of the network's input; the first one is that of most items.
        networks: the headline.
        others: networks that are measured through our kernels alone.
        modules: context and refinement.
        compiler: backend of torch.compile; if it is not Inductor, networks are not compiled.
        sampling: number and length of samples per figure.
        copy_bytes, matrix_side: sizes for measuring the ceilings.
        suite: path of the conformance tests.
        runner_s: seconds of the stream of frames.
    """

    device: str = "cuda"
    sizes: tuple[tuple[int, int], ...] = ((1024, 2048), (512, 1024))
    batch: int = 8
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    networks: tuple[str, ...] = ("fassd_net", "fassd_net_l2")
    others: tuple[str, ...] = tuple(list_models())
    modules: tuple[str, ...] = tuple(n for n in MODULES if n.startswith(("DAPF", "MDA")))
    compiler: str = "inductor"
    sampling: Sampling = field(default_factory=Sampling)
    copy_bytes: int = 1 << 30  # a few dozen times the L2 cache of today's cards
    matrix_side: int = 8192
    suite: str = "tests/conformance"
    runner_s: float = 2.0

    @property
    def place(self) -> Place:
        """The headline's."""
        height, width = self.sizes[0]
        return {"batch": 1, "height": height, "width": width, "dtype": self.dtypes[0]}


FULL = Scale()


def quick_scale(device: str = "cpu") -> Scale:
    """Everything in miniature: a rehearsal, whose figures mean nothing.

    torch.compile only traces (``aot_eager``), because Inductor takes long, on a CPU minutes.
    """
    return Scale(
        device=device,
        sizes=((64, 64),),
        batch=2,
        dtypes=("float32",),
        networks=("fassd_net_l2",),
        others=(),
        modules=("MDA(63, 2)",),
        compiler="aot_eager",
        sampling=Sampling(rounds=2, sample_ms=0.2),
        copy_bytes=1 << 20,
        matrix_side=128,
        suite="tests/conformance/test_normalize.py",
        runner_s=0.1,
    )


def build_plan(scale: Scale) -> list[Item]:
    """The items of a report, most important first; an item named by two rules is placed by the
    first.
    """
    items = [
        *(replace(item, first=True) for item in first_items(scale)),
        *headline_items(scale),
        *rest_of_the_time(scale),
    ]
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.name, item)
    return list(found.values())


def first_items(scale: Scale) -> Iterator[Item]:
    """The two minutes of ``--first``: correctness, time, and time by launch."""
    if scale.device == "cuda":
        yield Item("build", {}, 300.0, 20.0)
    yield Item("environment", {}, least_s=1.0)
    yield smoke(scale.device)
    for height, width in scale.sizes:
        here = {**scale.place, "height": height, "width": width}
        yield from cases("networks", scale.networks, here, "native")
    for network in scale.networks:
        yield profile(scale, scale.device, network)
    for group in SWITCHED:
        yield from cases("networks", scale.networks, scale.place, group)


def headline_items(scale: Scale) -> Iterator[Item]:
    """The purpose of the report: the networks with their peers, the counters, and correctness.

    Within seven minutes on an H200, including the items before.
    """
    place, networks = scale.place, scale.networks
    compiled = ("compile",) if scale.compiler == "inductor" else ()
    yield from cases("networks", networks, place, "ours", "library", *compiled)
    forward = {"network": networks[0], **place}
    yield Item(f"counters/{networks[0]}", forward, 120.0, 40.0, CUDA)
    yield conformance(scale, CUDA, SAMPLE)
    yield conformance(scale, CUDA, SAMPLE, "dependent")
    for name in networks:
        arguments = {"backend": scale.device, "network": name, "seconds": scale.runner_s, **place}
        yield Item(f"runner/{name}", arguments, 60.0, 10.0)
    yield from cases("networks", networks[:1], {**place, "batch": scale.batch}, "native")
    yield Item("ceilings", {"copy_bytes": scale.copy_bytes, "matrix_side": scale.matrix_side})
    height, width = scale.sizes[-1]
    forward = {**forward, "height": height, "width": width}
    yield Item(f"memcheck/{networks[0]}", forward, 100.0, 30.0, CUDA)
    yield from cases("modules", scale.modules, place, "native", "library")


def rest_of_the_time(scale: Scale) -> Iterator[Item]:
    """Minutes each: tuning, the fastest backend of each call, max-autotune, the whole suite."""
    place, networks = scale.place, scale.networks
    size = name_of(place)
    yield Item(f"tune/{networks[0]}/{size}", {"model": networks[0], **place}, 120.0, 60.0, "triton")
    yield profile(scale, "triton", networks[0])
    for name in networks:
        yield Item(f"choices/{name}/{size}", {"model": name, **place}, 120.0, 60.0, CUDA)
    yield from cases("networks", networks, place, "choice")
    yield from cases("modules", scale.modules, place, "compile", "ours")
    if scale.compiler == "inductor":
        yield from cases("networks", networks[:1], place, "max-autotune")
    yield smoke("triton")
    yield conformance(scale, "triton", SAMPLE)
    for dtype in scale.dtypes:
        yield from cases("networks", networks, {**place, "dtype": dtype}, "native", "library")
    yield from cases("networks", scale.others, place, "native")
    yield conformance(scale, CUDA, 1)


# --- items of one kind ----------------------------------------------------------------------------


def name_of(place: Place) -> str:
    return "{batch}x{height}x{width}/{dtype}".format(**place)


def cases(part: str, subjects: Iterable[str], place: Place, *groups: str) -> Iterator[Item]:
    """All `groups` of a subject together, subject after subject."""
    for subject in subjects:
        for group in groups:
            least_s, limit_s = TIMES_S[group]
            yield Item(
                f"{part}/{subject}/{name_of(place)}/{group}",
                {"part": part, "subject": subject, **place, "group": group},
                limit_s,
                least_s,
                environment=SWITCHED.get(group, {}),
            )


def smoke(backend: str) -> Item:
    return Item(f"smoke/{backend}", {"backend": backend}, 90.0)


def profile(scale: Scale, backend: str, network: str) -> Item:
    """The launches of a network through one of our backends."""
    arguments = {"backend": backend, "network": network, **scale.place}
    return Item(f"profile/{backend}/{network}", arguments, 120.0)


def conformance(scale: Scale, backend: str, every: int, group: str = "") -> Item:
    """The suite on a backend, one row of its tables in `every`, with a group's switches."""
    options = [f"--device={scale.device}", f"--backend={backend}", f"--every={every}"]
    name = "/".join(filter(None, ["conformance", backend, group, "sample" if every > 1 else ""]))
    arguments = {"suite": scale.suite, "options": options}
    limit_s = 90.0 if every > 1 else 360.0
    return Item(name, arguments, limit_s, 20.0, backend, SWITCHED.get(group, {}))
