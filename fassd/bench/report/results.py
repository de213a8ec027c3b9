"""Results files: their kinds, their machines, and the positions of figures in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fassd.bench.candidates import OURS, REFERENCE
from fassd.io.untrusted import read_json
from fassd.models import VARIANTS

KINDS = {
    "comparisons": "fassd bench peers",
    "layers": "fassd bench layers",
    "modules": "fassd report --measure",
    "accuracy": "python -m benchmarks.ablation",
    "benchmarks": "pytest benchmarks/ --benchmark-json",
    "items": "make gpu-report",
    "exported": "python -m benchmarks.exported",
    "load": "python -m benchmarks.serve_load",
}
"""Key that identifies the kind of a results file, and the command that writes such files."""

Machine = tuple[str, int, str, str]
"""Processor, threads, instruction set, device: results of different machines are not mixed."""


@dataclass(frozen=True)
class ResultsFile:
    """A results file.

    Attributes:
        name: path on the page, relative to its folder's parent.
        kind: key of `KINDS`.
        content: content of the file.
        rank: position of its folder among the given ones; of two results the one with the lower
            rank counts.
        path: path of the file.
    """

    name: str
    kind: str
    content: Mapping[str, Any] = field(repr=False, compare=False)
    rank: int = 0
    path: Path = Path()

    @property
    def environment(self) -> Mapping[str, Any]:
        """Device, versions, threads, date and commit, as far as the file contains them."""
        if self.kind == "benchmarks":
            return self.content.get("machine_info", {}).get("fassd", {})
        if self.kind == "items":
            return {key: self.content.get(key, "") for key in ("device", "date", "commit")}
        return self.content.get("environment") or {}

    @property
    def machine(self) -> Machine:
        facts = self.environment
        return (
            str(facts.get("cpu", "")),
            int(facts.get("threads", 0)),
            str(facts.get("instruction_set", "")),
            str(facts.get("device", "")),
        )

    @property
    def date(self) -> str:
        return str(self.environment.get("date", ""))

    @property
    def description(self) -> str:
        """The file with its device, threads, versions, date and commit, as far as known."""
        facts = self.environment
        details = (
            facts.get("device") or facts.get("cpu"),
            facts.get("threads") and f"{facts['threads']} threads",
            facts.get("instruction_set"),
            facts.get("torch") and f"torch {facts['torch']}",
            self.date[:10],
            facts.get("commit") and f"commit {str(facts['commit'])[:12]}",
        )
        return ", ".join([self.name, *(str(detail) for detail in details if detail)])

    def at(self, *keys: str | int) -> Figure:
        """The figure under these keys."""
        return Figure(self, tuple(keys))


@dataclass(frozen=True)
class Figure:
    """A position in a results file, or an `origin`: the source of a table's cell."""

    source: ResultsFile
    keys: tuple[str | int, ...]

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.source.name

    @property
    def description(self) -> str:
        return self.source.description

    @property
    def place(self) -> str:
        """File and position in it, in one line."""
        return f"{self.name}#{self.pointer}" if self.keys else self.name

    @property
    def pointer(self) -> str:
        """The position as a JSON pointer (RFC 6901)."""
        escaped = (str(key).replace("~", "~0").replace("/", "~1") for key in self.keys)
        return "".join(f"/{key}" for key in escaped)

    @property
    def value(self) -> Any:
        """The value at this position.

        Raises:
            LookupError: there is none.
        """
        found: Any = self.source.content
        for key in self.keys:
            found = found[key]
        return found

    def at(self, *keys: str | int) -> Figure:
        """A position below this one."""
        return Figure(self.source, (*self.keys, *keys))

    def entries(self) -> list[Figure]:
        """The positions of a list's entries."""
        return [self.at(index) for index in range(len(self.value))]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key below this one, or `default`."""
        found = self.value.get(key)
        return default if found is None else found


def origin(text: str) -> Figure:
    """Origin of a value that was not measured here: a publication, or a count."""
    return Figure(ResultsFile(text, "", {}), ())


@dataclass(frozen=True)
class Collection:
    """All results for a page."""

    sources: tuple[ResultsFile, ...]

    def of(self, kind: str) -> Iterator[ResultsFile]:
        """Files of a kind: the nearest folder first, then the newest file."""
        found = [source for source in self.sources if source.kind == kind]
        found.sort(key=lambda source: source.date, reverse=True)
        yield from sorted(found, key=lambda source: source.rank)

    @property
    def machine(self) -> Machine | None:
        """The machine of the page: that of the nearest comparison with networks of this project; if
        several are as near, that of the one with most of them, then of the newest.
        """

        def order(source: ResultsFile) -> tuple[bool, int, int]:
            compared = {part["job"]["model"] for part in source.content["comparisons"]}
            own = len(compared & VARIANTS.keys())
            return own == 0, source.rank, -own

        compared = sorted(self.of("comparisons"), key=order)
        first = next(iter(compared), None) or next(self.of("layers"), None)
        return None if first is None else first.machine

    def comparisons(self) -> list[Figure]:
        """Comparisons of the page's machine, one for each job, the most complete one."""
        best: dict[JobKey, Figure] = {}
        for source in filter(self.is_of_the_page, self.of("comparisons")):
            for figure in source.at("comparisons").entries():
                job = job_of(figure)
                if job not in best or completeness(figure) > completeness(best[job]):
                    best[job] = figure
        return list(best.values())

    def first(self, kind: str) -> ResultsFile | None:
        """The nearest and newest file of a kind from the page's processor and device."""
        return next((s for s in self.of(kind) if self.is_of_the_page(s)), None)

    def is_of_the_page(self, source: ResultsFile) -> bool:
        """True if a source is from the page's processor and device; threads may differ."""
        machine, own = source.machine, self.machine
        return own is not None and (machine[0], machine[3]) == (own[0], own[3])

    def comparison(self, model: str, size: tuple[int, int]) -> Figure | None:
        """The comparison of a network, one picture at a time, with the page's number of threads."""
        wanted = (model, *size, 1, self.machine[1] if self.machine else 0)
        return next((c for c in self.comparisons() if job_of(c) == wanted), None)


class JobKey(NamedTuple):
    """The subject of a measurement; comparisons with equal keys are of the same job."""

    model: str
    height: int
    width: int
    batch: int
    threads: int

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def shape(self) -> str:
        """Shape of the network's input."""
        return f"{self.batch}x3x{self.size}"


def job_of(comparison: Figure) -> JobKey:
    job = comparison.value["job"]
    threads = job["threads"] or comparison.source.environment["threads"]
    height, width = job["size"]
    return JobKey(job["model"], height, width, job["batch"], threads)


def completeness(comparison: Figure) -> tuple[bool, int]:
    """True if both plain PyTorch and ours are included; and the number of the network's results."""
    keys = [r["key"] for r in comparison.value["results"]]
    return {REFERENCE, OURS} <= set(keys), len(keys)


def collect(folders: Sequence[Path], notes: list[str] | None = None) -> Collection:
    """Read every results file below some folders.

    Args:
        folders: folders, the nearest first; a missing one counts as empty.
        notes: list that gets a line for each JSON file that is not a results file or cannot be
            read.
    """
    sources = []
    for rank, folder in enumerate(folders):
        for path in sorted(folder.rglob("*.json")):
            name = str(Path(folder.name) / path.relative_to(folder))
            try:
                content = read_json(path.read_bytes())
                sources.append(ResultsFile(name, kind_of(content), content, rank, path))
            except (OSError, ValueError) as error:
                if notes is not None:
                    notes.append(f"{name} was not used: {error}")
    return Collection(tuple(sources))


def kind_of(content: Any) -> str:
    """The kind of a results file.

    Raises:
        ValueError: it is none; the message says what was found and what is accepted.
    """
    if isinstance(content, dict):
        for kind in KINDS:
            if isinstance(content.get(kind), list):
                return kind
    found = f"keys {', '.join(list(content)[:4])}" if isinstance(content, dict) else "no object"
    raise ValueError(f"a results file has one of the keys {', '.join(KINDS)}; found {found}")
