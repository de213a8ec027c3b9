"""What the Triton kernels are meant to reach, on an H200."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers import COMPILE, FOLDED, MAX_AUTOTUNE, TITLES, TRITON
from benchmarks.rows import Record, Row, rows_by_subject, speedup

PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}


@dataclass(frozen=True)
class Target:
    """A figure of our Triton kernels, at `PLACE`.

    Attributes:
        part, subject: of the case.
        against: the form to be faster than; None where the target is a time.
        limit: so many times faster at least, or so many milliseconds at most.
    """

    part: str
    subject: str
    against: str | None
    limit: float

    @property
    def text(self) -> str:
        if self.against is None:
            return f"at most {self.limit:g} ms"
        return f"at least {self.limit:g}x over {TITLES[self.against]}"

    def figure(self, report: Record) -> float | None:
        """What was measured; None where something is missing or does not match."""
        rows = rows_by_subject(report, self.part).get(self.subject, [])
        forms = {row.form["name"]: row for row in rows if is_here(row) and "timing" in row.form}
        ours = forms.get(TRITON)
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


def is_here(row: Row) -> bool:
    return all(row.case[name] == value for name, value in PLACE.items())


TARGETS = (
    Target("modules", "DAPF(224)", FOLDED, 4.0),
    Target("modules", "DAPF(224)", COMPILE, 2.0),
    Target("modules", "MDA(192, 8)", COMPILE, 2.0),
    Target("modules", "MDA(119, 4)", COMPILE, 2.0),
    Target("modules", "MDA(63, 2)", COMPILE, 2.0),
    Target("networks", "fassd_net", MAX_AUTOTUNE, 1.3),
    Target("networks", "fassd_net", None, 1.0),
)
