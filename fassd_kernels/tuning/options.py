"""Options that the commands share."""

from __future__ import annotations

from typing import cast

import torch
import typer

from fassd.models import sizes
from fassd.models.device import DTYPES
from fassd_kernels.modules.network import OUTPUTS, Output


def parse_output(text: str) -> Output:
    if text not in OUTPUTS:
        raise typer.BadParameter(f"{text!r}; expected one of {', '.join(OUTPUTS)}")
    return cast(Output, text)


def parse_size(text: str) -> tuple[int, int]:
    """HxW."""
    try:
        return sizes.parse_size(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}; expected HEIGHTxWIDTH, such as 1024x2048") from None


def parse_dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise typer.BadParameter(f"{text!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[text]
