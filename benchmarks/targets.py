"""What our kernels are meant to reach, on an H200, and what the time model expects of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Record, Row, rows_by_subject, speedup
from fassd.bench.candidates import COMPILE, DTYPES, FOLDED, MAX_AUTOTUNE, NATIVE, TITLES, TRITON
from fassd.bench.costs.cuda import Prediction, find_device, predict_network

GPU = "NVIDIA H200"
PLACE = {"batch": 1, "height": 1024, "width": 2048, "dtype": "float16"}
CROWD = {**PLACE, "batch": 8}


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

    @property
    def unit(self) -> str:
        """``ms``, or ``x`` for a ratio."""
        return "ms" if self.against is None else "x"

    @property
    def is_predictable(self) -> bool:
        """Whether the time model says something of it."""
        return self.form == NATIVE and self.against is None

    def predict(self, predictions: Iterable[Prediction]) -> float | None:
        """The figure, from the time model's predictions; None where one is missing."""
        found = prediction_at(predictions, self.subject, PLACE)
        return None if found is None else 1e3 * found.predicted

    def predicted(self, report: Record) -> float | None:
        """What the time model expects, as a report holds it; None where it says nothing of this."""
        expected = report.get("predicted") or [] if self.is_predictable else []
        known = {(goal["network"], goal["unit"]): goal["figure"] for goal in expected}
        return known.get((self.subject, self.unit))


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

    @property
    def unit(self) -> str:
        return "x"

    def predict(self, predictions: Iterable[Prediction]) -> float | None:
        many, one = (prediction_at(predictions, self.subject, place) for place in (CROWD, PLACE))
        if many is None or one is None:
            return None
        return many.frames_per_second / one.frames_per_second


def forms_at(report: Record, part: str, subject: str, place: Record) -> dict[str, Row]:
    """The rows of a subject that were timed at a place, by form."""
    return {
        row.form["name"]: row
        for row in rows_by_subject(report, part).get(subject, [])
        if "timing" in row.form and all(row.case[name] == place[name] for name in place)
    }


def prediction_at(
    predictions: Iterable[Prediction], network: str, place: Record
) -> Prediction | None:
    """The prediction for a network at a place, labels out, on the targets' GPU."""
    wanted = {**place, "network": network, "output": "labels"}
    for prediction in predictions:
        if prediction.device.name == GPU and all(
            getattr(prediction, name) == value for name, value in wanted.items()
        ):
            return prediction
    return None


def goals_of(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """The targets that some predictions tell of, as records: target, figure, whether it is met."""
    predictions, goals = list(predictions), []
    for target in TARGETS:
        figure = target.predict(predictions) if target.is_predictable else None
        if figure is not None:
            goals.append(
                {
                    "network": target.subject,
                    "text": target.text,
                    "unit": target.unit,
                    "figure": figure,
                    "described": target.describe(figure),
                    "limit": target.limit,
                    "is_met": target.is_met(figure),
                }
            )
    return goals


@functools.cache
def load_predictions() -> list[dict[str, Any]]:
    """The targets with what is predicted for them; none where nothing can be predicted here."""
    try:
        device = find_device(GPU)
    except ImportError:
        return []
    cases = {
        (target.subject, place["batch"])
        for target in TARGETS
        if target.is_predictable
        for place in ((PLACE, CROWD) if isinstance(target, Throughput) else (PLACE,))
    }
    return goals_of(
        predict_network(
            name, PLACE["height"], PLACE["width"], device,
            batch=batch, dtype=DTYPES[PLACE["dtype"]],
        )
        for name, batch in sorted(cases)
    )  # fmt: skip


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
