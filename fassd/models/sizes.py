"""Sizes of pictures as people write them."""

from __future__ import annotations

import re


def parse_size(text: str) -> tuple[int, int]:
    """Parse a text such as "1024x2048" to (height, width) in pixels.

    Raises:
        ValueError: the text is not two positive whole numbers with an x between them.
    """
    match = re.fullmatch(r"\s*([1-9]\d*)\s*x\s*([1-9]\d*)\s*", text.lower())
    if match is None:
        raise ValueError(
            f"{text!r} is not a size; write height x width in pixels, for example 1024x2048"
        )
    return int(match[1]), int(match[2])
