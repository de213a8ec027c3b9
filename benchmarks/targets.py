"""What our kernels are meant to reach, on an H200, and what the time model expects of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.peers import COMPILE, FOLDED, MAX_AUTOTUNE, NATIVE, TITLES, TRITON
from benchmarks.rows import Record, Row, rows_by_subject, speedup

PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
CROWD = {**PLACE, "batch": 8}
PREDICTIONS = ROOT / "benchmarks" / "results" / "predicted" / "cuda-h200.json"


@dataclass(frozen=True)
class Target:
    """A figure of a form of ours, at `PLACE`.

    Attributes:
        part, subject: of the case.
        against: the form to be faster than; None where the target is a time.
        limit: so many times faster at least, or so many milliseconds at most.
        form: the form.
    """

    part: str
    subject: str
    against: str | None
    limit: float
    form: str = NATIVE

    @property
    def text(self) -> str:
        if self.against is None:
            return f"at most {self.limit:g} ms"
        return f"at least {self.limit:g}x over {TITLES[self.against]}"

    def figure(self, report: Record) -> float | None:
        """What was measured; None where something is missing or does not match."""
        forms = forms_at(report, self.part, self.subject, PLACE)
        ours = forms.get(self.form)
        if ours is None or not ours.form.get("match"):
            return None
        if self.against is None:
            return ours.form["timing"]["ms"]
        peer = forms.get(self.against)
        if peer is None:
            return None
        mine, its = (speedup(row.form, row.eager) for row in (ours, peer))
        return None if mine is None or its is None else mine / its

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.against is None else figure >= self.limit

    def describe(self, figure: float) -> str:
        """The figure with its unit."""
        return f"{figure:.3f} ms" if self.against is None else f"{figure:.2f}x"

    def predicted(self, report: Record) -> float | None:
        """What the time model expects; None where it says nothing of this."""
        if self.form != NATIVE or self.against is not None:
            return None
        return prediction(report, self.subject, "ms")


@dataclass(frozen=True)
class Throughput(Target):
    """Frames per second of `CROWD`, as a multiple of those of `PLACE`."""

    @property
    def text(self) -> str:
        return f"at batch {CROWD['batch']} at least {self.limit:g}x the frames/s of batch 1"

    def figure(self, report: Record) -> float | None:
        found = [
            forms_at(report, self.part, self.subject, place).get(self.form)
            for place in (PLACE, CROWD)
        ]
        rates = [
            row.case["batch"] / row.form["timing"]["ms"]
            for row in found
            if row is not None and row.form.get("match")
        ]
        return rates[1] / rates[0] if len(rates) == len(found) else None

    def is_met(self, figure: float) -> bool:
        return figure >= self.limit

    def describe(self, figure: float) -> str:
        return f"{figure:.2f}x"

    def predicted(self, report: Record) -> float | None:
        return prediction(report, self.subject, "x")


def forms_at(report: Record, part: str, subject: str, place: Record) -> dict[str, Row]:
    """The rows of a subject that were timed at a place, by form."""
    return {
        row.form["name"]: row
        for row in rows_by_subject(report, part).get(subject, [])
        if "timing" in row.form and all(row.case[name] == place[name] for name in place)
    }


def prediction(report: Record, network: str, unit: str) -> float | None:
    """The figure of a goal that the time model has for a network."""
    goals = report.get("predicted") or []
    return next((g["figure"] for g in goals if (g["network"], g["unit"]) == (network, unit)), None)


def load_predictions(path: Path = PREDICTIONS) -> list[dict[str, Any]]:
    """The goals with what is predicted for them; none where they were not written."""
    try:
        return json.loads(path.read_text())["goals"]
    except (OSError, ValueError, KeyError):
        return []


MODULES = ("MDA(192, 8)", "MDA(119, 4)", "MDA(63, 2)")
TARGETS = (
    Target("networks", "fassd_net", None, 0.5),
    Target("networks", "fassd_net_l2", None, 0.2),
    Target("networks", "fassd_net", MAX_AUTOTUNE, 2.0),
    Throughput("networks", "fassd_net", None, 1.3),
    Target("modules", "DAPF(224)", FOLDED, 5.0),
    Target("modules", "DAPF(224)", COMPILE, 2.5),
    *(Target("modules", name, FOLDED, 3.0) for name in MODULES),
    *(Target("modules", name, COMPILE, 2.0) for name in MODULES),
    Target("modules", "DAPF(224)", FOLDED, 4.0, TRITON),
    Target("modules", "DAPF(224)", COMPILE, 2.0, TRITON),
    *(Target("modules", name, COMPILE, 2.0, TRITON) for name in MODULES),
    Target("networks", "fassd_net", MAX_AUTOTUNE, 1.3, TRITON),
    Target("networks", "fassd_net", None, 1.0, TRITON),
)
