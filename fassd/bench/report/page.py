"""A page of sections as HTML, in one file, and as Markdown with pictures beside it.

Every cell carries the origin of its value: a position in a results file, a publication, or a count.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import jinja2
from markupsafe import Markup

from fassd.bench.markdown import markdown_table
from fassd.bench.report.charts import png
from fassd.bench.report.results import Figure

INK_MARK, PAPER_MARK = "#010203", "#fdfcfb"
"""Colours that figures do not use otherwise; in the page they become its own ink and paper."""

PIXELS_PER_INCH = 104
"""Pixels of the page per inch of a plot: letters of 10 points are then about as large as the
page's."""

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: text of the cell.
        where: positions that its value was computed from: one, or several for a ratio.
        kind: kind of value: "measured", "quoted", "counted" or "predicted"; "" for a name.
        strong: True for bold text.
    """

    text: str = ""
    where: tuple[Figure, ...] = ()
    kind: str = ""
    strong: bool = False

    @property
    def places(self) -> str:
        return "; ".join(where.place for where in self.where)


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first `names` columns name the row."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    caption: str = ""
    names: int = 1
    kind: ClassVar[str] = "table"

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        columns: Mapping[str, Callable[[Entry], Cell | str]],
        caption: str = "",
        names: int = 1,
    ) -> Table:
        """A row for each entry; `columns` makes its cells, or only their text, by heading."""
        made = ([make(entry) for make in columns.values()] for entry in entries)
        rows = [tuple(c if isinstance(c, Cell) else Cell(c) for c in cells) for cells in made]
        return cls(tuple(columns), rows, caption, names)

    def column(self, index: int) -> list[Figure]:
        """The positions that a column's values come from."""
        return [where for row in self.rows for where in row[index].where]

    def markdown(self, references: References | None = None) -> list[str]:
        """Lines of the caption and the table; without `references` the headings have no marks."""
        headings = [heading.replace("\n", " ") for heading in self.headings]
        if references is not None:
            headings = [h + references.text(self.column(i)) for i, h in enumerate(headings)]
        rows = [[f"**{c.text}**" if c.strong and c.text else c.text for c in r] for r in self.rows]
        caption = [f"*{self.caption}*", ""] if self.caption else []
        return [*caption, *markdown_table(headings, rows, self.names), ""]


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure.

    Attributes:
        name: name of its file, without an ending.
        draw: function that makes the figure in an ink and on a paper, both names of colours.
        text: description for readers who cannot see it.
        caption: text below it: subject, n, spread.
        where: results that it was drawn from.
    """

    name: str
    draw: Callable[[str, str], Any]
    text: str
    caption: str
    where: tuple[Figure, ...] = ()
    kind: ClassVar[str] = "plot"

    @property
    def file(self) -> str:
        return f"{self.name}.png"

    def content(self, dpi: int = 110, metadata: dict[str, str] | None = None) -> bytes:
        """The plot in black on white, PNG."""
        return png(self.draw("#222222", "#ffffff"), dpi, metadata)

    def html(self) -> Markup:
        return svg(self)


@dataclass(frozen=True)
class PagePicture:
    """A picture in pixels: `data` is a JPEG file; other attributes as in `Plot`."""

    name: str
    data: bytes
    text: str
    caption: str
    where: tuple[Figure, ...] = ()
    kind: ClassVar[str] = "picture"

    @property
    def file(self) -> str:
        return f"{self.name}.jpg"

    def content(self) -> bytes:
        return self.data

    def html(self) -> Markup:
        data = base64.b64encode(self.data).decode()
        return Markup('<img src="data:image/jpeg;base64,{}" alt="{}">').format(data, self.text)


Block = Table | Plot | PagePicture


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, in which backquotes mark `code`, then blocks."""

    title: str
    paragraphs: Sequence[str] = ()
    blocks: Sequence[Block] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """The page that `fassd report` writes."""

    title: str
    paragraphs: Sequence[str]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


class References(dict[str, Figure]):
    """Sources by name, numbered in the order of their first mention."""

    def marks(self, wheres: Iterable[Figure]) -> list[int]:
        for where in wheres:
            self.setdefault(where.name, where)
        names = list(self)
        return sorted({names.index(where.name) + 1 for where in wheres})

    def text(self, wheres: Iterable[Figure]) -> str:
        """The marks as Markdown: " [1, 3]"."""
        marks = self.marks(wheres)
        return f" [{', '.join(map(str, marks))}]" if marks else ""


def to_html(page: Page) -> str:
    """The page as one file that needs no others."""
    return render("page.html.j2", page)


def to_markdown(page: Page) -> tuple[str, dict[str, bytes]]:
    """The page as Markdown, and the files of its pictures by name."""
    pictures = [b for section in page.sections for b in section.blocks if not isinstance(b, Table)]
    return render("page.md.j2", page), {block.file: block.content() for block in pictures}


def render(template: str, page: Page) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fassd.bench.report"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = inline
    return environment.get_template(template).render(page=page, references=References())


def inline(text: str) -> Markup:
    """Escaped text, with backquoted words as code, and line breaks preserved."""
    escaped = html.escape(text).replace("\n", "<br>")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def svg(plot: Plot) -> Markup:
    """The plot for embedding in the page, in the page's ink, with unique names."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": plot.name}):
        figure = plot.draw(INK_MARK, PAPER_MARK)
        figure.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    width = round(PIXELS_PER_INCH * figure.get_figwidth())
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    # Names are unique in a figure, but not on a page with several.
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", drawing)
    drawing = drawing.replace(INK_MARK, "currentColor").replace(PAPER_MARK, "var(--paper)")
    # The width of the column overrides its size in points.
    drawing = re.sub(r' width="[^"]*pt"', "", drawing, count=1)
    drawing = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", drawing)
    label = html.escape(plot.text)
    start = f'<svg role="img" aria-label="{label}" style="max-width: {width}px" '
    return Markup(drawing.replace("<svg ", start, 1))
