"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], names: int | None = None
) -> list[str]:
    """Lines of a table.

    Args:
        headings: one for each column.
        rows: cells of each row.
        names: number of leading columns that contain words, aligned left; the others are aligned
            right. None: all columns contain words.
    """
    names = len(headings) if names is None else names
    rule = "|".join(["---"] * names + ["---:"] * (len(headings) - names))
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return [lines[0], f"|{rule}|", *lines[1:]]
