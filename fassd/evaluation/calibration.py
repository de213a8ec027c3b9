"""The calibration of a network: its probabilities against the frequency of being right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from fassd.distributed import sum_over_ranks
from fassd.io.files import replacing
from fassd.io.packages import need
from fassd.io.palette import IGNORE
from fassd.io.untrusted import read_json
from fassd.models.info import NetworkInfo, checked_temperature
from fassd.models.tensor_files import read_safetensors, with_checksums

BINS = 15
TRIED = tuple(0.25 * 2 ** (step / 2) for step in range(11))
"""Temperatures to try, from 1/4 to 8."""


class Calibration:
    """A count of pixels by the probability of their label.

    The expected calibration error is the mean distance between the probability of labels and the
    share of them that is right, over `BINS` equal ranges of probability, weighted by pixels (Guo et
    al., *On calibration of modern neural networks*, ICML 2017, equation 3).

    Args:
        temperature: divisor of the logits.
        fit: True also finds the temperature at which the true classes have the largest
            probabilities (the least negative log-likelihood).
    """

    def __init__(self, temperature: float = 1.0, fit: bool = False) -> None:
        self.temperature = temperature
        self._tried = TRIED if fit else ()
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)  # pixels, correct ones, probability
        self._losses = torch.zeros(len(self._tried), dtype=torch.float64)

    @property
    def fits(self) -> bool:
        """True if a temperature is fitted."""
        return bool(self._tried)

    def __str__(self) -> str:
        fitted = "" if self.fitted is None else f"; the one that fits best: {self.fitted:.4g}"
        return (
            f"expected calibration error {100 * self.error:.2f}% at a temperature of "
            f"{self.temperature:.4g}{fitted}"
        )

    def update(
        self,
        probabilities: Callable[[float], Tensor],
        labels: Tensor | npt.NDArray[Any],
        predicted: Tensor | None = None,
    ) -> None:
        """Count the pixels of a picture.

        Args:
            probabilities: function from a temperature to the probabilities of the classes, (C, H,
                W).
            labels: ground truth, (H, W), with `fassd.io.palette.IGNORE` for pixels that do not
                count.
            predicted: predicted classes, (H, W); by default the most probable ones.
        """
        found = probabilities(self.temperature)
        truth = torch.as_tensor(labels, device=found.device).long()
        counted = truth != IGNORE
        truth = truth[counted]
        found = found[:, counted]
        said = found.argmax(0) if predicted is None else predicted[counted]
        likely = found.gather(0, said[None].long())[0]
        place = (likely * BINS).long().clamp(0, BINS - 1)
        for row, values in enumerate((None, (said == truth).double(), likely.double())):
            self._sums[row] += torch.bincount(place, values, BINS).cpu()
        for index, temperature in enumerate(self._tried):
            likely = probabilities(temperature)[:, counted].gather(0, truth[None])[0]
            self._losses[index] -= likely.double().clamp_min(1e-30).log().sum().cpu()

    def reduce(self) -> Calibration:
        """Add up the counts of all torch.distributed processes, in place; once, at the end."""
        self._sums, self._losses = sum_over_ranks(self._sums), sum_over_ranks(self._losses)
        return self

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1."""
        pixels, right, probability = self._sums
        return float((right - probability).abs().sum() / pixels.sum())

    @property
    def fitted(self) -> float | None:
        """The temperature that fits best; None if none was asked for.

        Between the temperatures tried, it is the lowest point of a parabola in the logarithm.
        """
        if not self._tried:
            return None
        best = int(self._losses.argmin())
        if best in (0, len(self._tried) - 1):
            return self._tried[best]
        before, here, after = self._losses[best - 1 : best + 2].tolist()
        step = math.log(self._tried[1] / self._tried[0])
        offset = 0.5 * (before - after) / (before - 2 * here + after)
        return self._tried[best] * math.exp(step * offset)

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; None for a range without a pixel."""
        pixels, right, probability = self._sums.tolist()
        ranges = [
            {
                "pixels": int(count),
                "probability": each / count if count else None,
                "right": good / count if count else None,
            }
            for count, good, each in zip(pixels, right, probability, strict=True)
        ]
        fitted = {} if self.fitted is None else {"fitted_temperature": self.fitted}
        return {
            "expected_calibration_error": self.error,
            "temperature": self.temperature,
            **fitted,
            "ranges": ranges,
        }

    def draw(self, path: Path, title: str = "") -> None:
        """Draw the reliability diagram as PNG: the share of right labels in each range.

        Raises:
            ImportError: matplotlib is not installed; the message says how to install it.
        """
        figures = need("matplotlib.figure", "the reliability diagram needs", "train")
        pixels, right, probability = self._sums.numpy()
        with np.errstate(invalid="ignore"):
            shares, means = 100 * right / pixels, 100 * probability / pixels
        figure = figures.Figure(figsize=(5, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        left, width = 100 * np.arange(BINS) / BINS, 100 / BINS
        above.plot((0, 100), (0, 100), color="0.6", linestyle="--", linewidth=1, label="as said")
        above.bar(left, shares, width, align="edge", edgecolor="white", label="right")
        above.plot(means, shares, "o", color="black", markersize=3, label="mean of the range")
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="labels that are right, %")
        above.set_title(title, parse_math=False)
        above.legend(loc="upper left", frameon=False)
        note = (
            f"expected calibration error {100 * self.error:.1f}%\n"
            f"temperature {self.temperature:.3g}"
        )
        above.text(97, 4, note, ha="right", va="bottom")
        below.bar(left, 100 * pixels / pixels.sum(), width, align="edge", edgecolor="white")
        below.set(xlabel="probability of the label, %", ylabel="pixels, %")
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=110)


def keep_temperature(path: Path, temperature: float) -> None:
    """Store a temperature in a file of weights, so that its network uses it from then on.

    Args:
        path: path of a .safetensors file of `fassd train`; it is replaced when the new one is
            complete.
        temperature: divisor of the logits, finite and above 0.

    Raises:
        ValueError: the temperature is invalid, or the file is damaged or does not describe its
            network.
        OSError: it cannot be read or written.
    """
    temperature = checked_temperature(temperature)
    tensors, metadata = read_safetensors(path)
    text = metadata.get("fassd", "{}")
    network = NetworkInfo.from_metadata(text)
    if network is None:
        raise ValueError(
            f"{path} does not say what network it is of, so it can keep no temperature; files of "
            "`fassd train` (.safetensors) do"
        )
    facts = read_json(text)
    facts["network"] = replace(network, temperature=temperature).to_json()
    noted = with_checksums(tensors, {**metadata, "fassd": json.dumps(facts)})
    with replacing(path) as file:
        file.write(safetensors.torch.save(tensors, noted))
