"""Output of commands: lines, tables and progress that text from elsewhere cannot control."""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fassd.io.files import replacing

if TYPE_CHECKING:
    from fassd.io.palette import LabelClass

IN_ASCII = {"±": "+-", "█": "#", "…": "..."}  # characters in our own tables
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories of Unicode


def visible(text: str, but: str = "") -> str:
    """`text` with escapes for control characters, and for other invisible ones.

    Names of files and classes can then neither control the terminal nor be mistaken for something
    else: C0, C1, marks of direction, lone surrogates, line breaks.

    Args:
        but: characters that stay.
    """
    if text.isprintable():
        return text
    stay = f"{but}\u200c\u200d"  # the joiners of emoji, and of letters
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in UNSEEN and char not in stay
        else char
        for char in text
    )


def escape(text: str) -> str:
    """Markup of a text from elsewhere, printed literally with escapes for invisible characters."""
    return escape_markup(visible(text))


def escape_lines(text: str) -> str:
    """The same for several lines; those after the first are indented, unlike our own."""
    return "\n  ".join(map(escape, text.split("\n")))


def _encodable(error: UnicodeError) -> tuple[str, int]:
    """Handler for characters that an output's encoding lacks, see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    shown = (
        IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode() for char in missing
    )
    return "".join(shown), error.end


codecs.register_error("fassd", _encodable)


class _Console(Console):
    """A console on which nothing printed controls the terminal, except rich itself."""

    def render_str(self, text: str, **settings: Any) -> Text:  # by which cells are measured
        return super().render_str(visible(text, but="\n"), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text, but="\n")
            yield Segment(text, segment.style, segment.control)


def console(stderr: bool = False) -> Console:
    """The console of a command: all of its output goes through here, or through `visible`."""
    return _Console(stderr=stderr, highlight=False, emoji=False)


def say(markup: str) -> None:
    """Print a line for the user on stderr, so that stdout only contains results."""
    console(stderr=True).print(markup, soft_wrap=True)


def counted(things: Sequence[Any], name: str) -> str:
    """How many there are, in words: 1 error, 2 errors."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def tell_results(results: Sequence[Path]) -> None:
    """Print the number of results of earlier runs that are not sources, if any."""
    if results:
        say(f"skipped {counted(results, 'result')} of earlier runs")


def swatch(info: LabelClass) -> str:
    """A class as markup: its colour and its name."""
    red, green, blue = info.color
    return f"[rgb({red},{green},{blue})]██[/] {escape(info.name)}"


def plain_table(*headings: str, **settings: Any) -> Table:
    """A table without lines; ">" before a heading aligns its column right."""
    settings = {"padding": (0, 2, 0, 0), **settings}
    table = Table(box=None, pad_edge=False, header_style="bold", **settings)
    for heading in headings:
        if heading.startswith(">"):
            table.add_column(heading[1:], justify="right", overflow="fold")
        else:
            table.add_column(heading, overflow="fold")
    return table


def write_json(path: Path, figures: Any) -> None:
    """Write figures to a file, and print its name.

    Raises:
        ValueError: one of them is NaN or infinite, which JSON does not support.
    """
    text = json.dumps(figures, indent=1, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode())
    say(f"figures: {escape(str(path))}")


def progress(shown: bool = True, *columns: ProgressColumn) -> Progress:
    """A progress bar on stderr, with more columns at its end; silent if that is not a terminal."""
    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *columns,
        console=screen,
        transient=True,
        disable=not (shown and screen.is_terminal),
    )
