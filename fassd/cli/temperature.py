"""`--temperature` of `fassd val`: calibration of a network's probabilities, and its fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fassd.cli.common import Network
from fassd.cli.terminal import escape, say

if TYPE_CHECKING:
    import torch

    from fassd.evaluation.calibration import Calibration

FIT = "fit"


def parse_temperature(text: str | float) -> str | float:
    """Parse a temperature, or `FIT`.

    Raises:
        typer.BadParameter: it is neither.
    """
    from fassd.models.info import checked_temperature

    try:
        return text if text == FIT else checked_temperature(float(text))
    except ValueError:
        raise typer.BadParameter(f"must be a finite number above 0, or fit, got {text!r}") from None


Temperature = Annotated[
    str | None,
    typer.Option(
        parser=parse_temperature,
        metavar="T|fit",
        help="Divisor of the logits before they become probabilities. [cyan]fit[/] finds the best "
        "and stores it in the weights' file, for [cyan]--confidence[/] of [cyan]fassd predict[/].",
    ),
]


def calibration_of(
    network: torch.nn.Module, chosen: Network, temperature: str | float | None
) -> Calibration | None:
    """The calibration to update, at a temperature or the network's own; None for only labels.

    Raises:
        ValueError: a temperature is to be fitted, but there is no file to store it in; or one is
            given, but there are only labels.
    """
    from fassd.evaluation.calibration import Calibration
    from fassd.models.info import set_temperature, temperature_of

    if getattr(getattr(network, "metadata", None), "output", "logits") != "logits":
        if temperature is not None:
            raise ValueError("--temperature: the file gives labels and no probabilities")
        return None
    if temperature == FIT:
        _keeper(chosen)
    elif temperature is not None:
        set_temperature(network, float(temperature))
    return Calibration(temperature_of(network), fit=temperature == FIT)


def keep_fitted(chosen: Network, calibration: Calibration | None) -> None:
    """Write the fitted temperature, if there is one, into the file of the weights."""
    from fassd.evaluation.calibration import keep_temperature

    if calibration is None or calibration.fitted is None:
        return
    keep_temperature(_keeper(chosen), calibration.fitted)
    say(f"temperature {calibration.fitted:.4g}: kept in {escape(str(_keeper(chosen)))}")


def _keeper(chosen: Network) -> Path:
    """The file of weights that stores a fitted temperature."""
    from fassd.models.zoo import is_weights_file

    file = chosen.model if is_weights_file(chosen.model) else chosen.weights
    if file is None or Path(file).suffix != ".safetensors" or not Path(file).is_file():
        raise ValueError(
            "--temperature fit writes into the file of the weights, a .safetensors of fassd train "
            f"(--weights), got {str(file)!r}"
        )
    return Path(file)
