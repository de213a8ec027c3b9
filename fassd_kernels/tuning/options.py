"""Options that the commands share."""

from __future__ import annotations

from typing import cast

import torch
import typer

from fassd_kernels.modules.network import OUTPUTS, Output

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def parse_output(text: str) -> Output:
    if text not in OUTPUTS:
        raise typer.BadParameter(f"{text!r}; expected one of {', '.join(OUTPUTS)}")
    return cast(Output, text)


def parse_size(text: str) -> tuple[int, int]:
    """HxW."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise typer.BadParameter(f"{text!r}; expected HEIGHTxWIDTH, such as 1024x2048")
    return int(height), int(width)


def parse_dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise typer.BadParameter(f"{text!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[text]
