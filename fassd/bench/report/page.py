"""A page of sections as HTML, in one file, and as Markdown with pictures beside it.

Every cell carries where its value comes from: a place in a results file, a publication, or a count.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from fassd.bench.report.results import Figure, Origin

__all__ = ["Cell", "Page", "Picture", "Plot", "Section", "Table", "blank", "to_html", "to_markdown"]

INK_MARK, PAPER_MARK = "#010203", "#fdfcfb"
"""Colours that no figure uses otherwise; in the page they become its own ink and paper."""

PIXELS_PER_INCH = 104
"""Of a plot at its largest: its letters of 10 points are then about as large as the page's."""

Where = Figure | Origin


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        where: what it was made of: one place, or several for a ratio.
        kind: "measured", "quoted", "counted" or "predicted"; "" for a name.
        strong: whether it is set in bold.
    """

    text: str
    where: tuple[Where, ...] = ()
    kind: str = ""
    strong: bool = False


def blank(text: str = "") -> Cell:
    """A cell without a value."""
    return Cell(text)


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first `names` columns name the row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    names: int = 1


@dataclass(frozen=True)
class Plot:
    """A figure of matplotlib.

    Attributes:
        name: of its file, without an ending.
        draw: makes the figure in an ink and on a paper, both names of colours.
        text: what it shows, for readers who cannot see it.
        caption: under it: what, n, spread.
        where: the results that it was drawn from.
    """

    name: str
    draw: Callable[[str, str], Any]
    text: str
    caption: str
    where: tuple[Where, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture in pixels, JPEG."""

    name: str
    data: bytes
    text: str
    caption: str
    where: tuple[Where, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, in which `code` is marked by backquotes, then blocks."""

    title: str
    paragraphs: tuple[str, ...] = ()
    blocks: tuple[Table | Plot | Picture, ...] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """What `fassd report` writes."""

    title: str
    paragraphs: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


@dataclass
class References:
    """Numbers of the sources, in order of their first mention."""

    numbers: dict[str, int] = field(default_factory=dict)
    places: dict[str, Where] = field(default_factory=dict)

    def number(self, where: Where) -> int:
        key = where.source.name if isinstance(where, Figure) else where.text
        self.places.setdefault(key, where)
        return self.numbers.setdefault(key, len(self.numbers) + 1)

    def marks(self, wheres: Iterable[Where]) -> list[int]:
        return sorted({self.number(where) for where in wheres})

    def __iter__(self) -> Iterator[tuple[int, Where]]:
        for key, number in self.numbers.items():
            yield number, self.places[key]


def column_sources(table: Table, column: int) -> list[Where]:
    return [where for row in table.rows for where in row[column].where]


def place(where: Where) -> str:
    """A cell's origin in one line."""
    if isinstance(where, Figure):
        return f"{where.source.name}#{where.pointer}"
    return where.text


def describe(where: Where) -> str:
    """A source as the list at the end has it."""
    if isinstance(where, Origin):
        return where.text
    facts = where.source.environment
    device = facts.get("device") or facts.get("cpu") or ""
    details = [
        str(device),
        f"{facts['threads']} threads" if facts.get("threads") else "",
        str(facts.get("instruction_set") or ""),
        f"torch {facts['torch']}" if facts.get("torch") else "",
        str(facts.get("date", ""))[:10],
        f"commit {str(facts['commit'])[:12]}" if facts.get("commit") else "",
    ]
    return ", ".join([where.source.name, *(detail for detail in details if detail)])


# -------------------------------------------------------------------------------------------- HTML


def to_html(page: Page) -> str:
    """The page as one file that asks for no other."""
    references = References()
    body = [
        f"<header><h1>{html.escape(page.title)}</h1>",
        *(f"<p>{inline(text)}</p>" for text in page.paragraphs),
        "<nav><ul>",
        *(f'<li><a href="#{s.anchor}">{html.escape(s.title)}</a></li>' for s in page.sections),
        "</ul></nav></header><main>",
    ]
    for section in page.sections:
        body.append(f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>')
        body += [f"<p>{inline(text)}</p>" for text in section.paragraphs]
        body += [html_block(block, references) for block in section.blocks]
        body.append("</section>")
    body.append('<section id="sources"><h2>Sources</h2><ol class="sources">')
    for number, where in references:
        link = getattr(where, "link", "")
        text = html.escape(describe(where))
        body.append(
            f'<li id="source-{number}">'
            + (f'<a href="{html.escape(link)}">{text}</a>' if link else text)
            + "</li>"
        )
    body.append("</ol>")
    if page.notes:
        body.append("<h3>Notes</h3><ul>")
        body += [f"<li>{html.escape(note)}</li>" for note in page.notes]
        body.append("</ul>")
    body.append("</section></main>")
    style = resources.files("fassd.bench.report").joinpath("page.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(page.title)}</title><style>\n{style}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def html_block(block: Table | Plot | Picture, references: References) -> str:
    if isinstance(block, Table):
        return html_table(block, references)
    caption = f"<figcaption>{inline(block.caption)}{html_marks(references, block.where)}"
    if isinstance(block, Plot):
        inside = svg(block)
    else:
        data = base64.b64encode(block.data).decode()
        inside = f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(block.text)}">'
    kind = "plot" if isinstance(block, Plot) else "picture"
    return f'<figure class="{kind}">{inside}{caption}</figcaption></figure>'


def html_table(table: Table, references: References) -> str:
    caption = f'<p class="caption">{inline(table.caption)}</p>' if table.caption else ""
    parts = [f'{caption}<div class="scroll"><table><thead><tr>']
    for column, heading in enumerate(table.headings):
        kind = ' class="name"' if column < table.names else ""
        marks = html_marks(references, column_sources(table, column))
        parts.append(f'<th scope="col"{kind}>{inline(heading)}{marks}</th>')
    parts.append("</tr></thead><tbody>")
    for row in table.rows:
        parts.append("<tr>")
        for column, cell in enumerate(row):
            text = inline(cell.text)
            text = f"<strong>{text}</strong>" if cell.strong else text
            if column < table.names:
                parts.append(f'<th scope="row">{text}</th>')
                continue
            kind = f' class="{cell.kind}"' if cell.kind else ""
            places = "; ".join(map(place, cell.where))
            source = f' data-source="{html.escape(places)}"' if places else ""
            title = f' title="{html.escape(f"{cell.kind}: {places}")}"' if places else ""
            parts.append(f"<td{kind}{source}{title}>{text}</td>")
        parts.append("</tr>")
    parts.append("</tbody></table></div>")
    return "".join(parts)


def html_marks(references: References, wheres: Iterable[Where]) -> str:
    marks = references.marks(wheres)
    links = ", ".join(f'<a href="#source-{mark}">{mark}</a>' for mark in marks)
    return f"<sup>{links}</sup>" if marks else ""


def inline(text: str) -> str:
    """Escaped text, with backquoted words as code and line breaks kept."""
    escaped = html.escape(text).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def svg(plot: Plot) -> str:
    """The plot to stand inside the page, in the page's ink, under names of its own."""
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
    # Names are unique in a figure, not on a page that holds several.
    drawing = re.sub(r'\bid="', f'id="{plot.name}-', drawing)
    drawing = re.sub(r'href="#', f'href="#{plot.name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{plot.name}-", drawing)
    drawing = drawing.replace(INK_MARK, "currentColor").replace(PAPER_MARK, "var(--paper)")
    # Its size in points gives way to the column's width.
    drawing = re.sub(
        r'<svg([^>]*?) height="[^"]*"', r"<svg\1", re.sub(r' width="[^"]*pt"', "", drawing, count=1)
    )
    label = html.escape(plot.text)
    start = f'<svg role="img" aria-label="{label}" style="max-width: {width}px" '
    return drawing.replace("<svg ", start, 1)


# ---------------------------------------------------------------------------------------- Markdown


def to_markdown(page: Page) -> tuple[str, dict[str, bytes]]:
    """The page as Markdown, and the files of its pictures by name."""
    references = References()
    files: dict[str, bytes] = {}
    lines = [f"# {page.title}", ""]
    for text in page.paragraphs:
        lines += [text.replace("\n", "  \n"), ""]
    for section in page.sections:
        lines += [f"## {section.title}", ""]
        for text in section.paragraphs:
            lines += [text, ""]
        for block in section.blocks:
            if isinstance(block, Table):
                lines += markdown_table(block, references)
                continue
            name = f"{block.name}.{'png' if isinstance(block, Plot) else 'jpg'}"
            files[name] = png(block) if isinstance(block, Plot) else block.data
            marks = markdown_marks(references, block.where)
            lines += [f"![{block.text}]({name})", "", f"*{block.caption}*{marks}", ""]
    lines += ["## Sources", ""]
    for number, where in references:
        link = getattr(where, "link", "")
        text = describe(where)
        lines.append(f"{number}. " + (f"[{text}]({link})" if link else text))
    lines.append("")
    if page.notes:
        lines += ["Notes:", "", *(f"* {note}" for note in page.notes), ""]
    return "\n".join(lines), files


def markdown_table(table: Table, references: References | None = None) -> list[str]:
    """Lines of a table; without `references` no marks stand in its headings."""
    headings = []
    for column, heading in enumerate(table.headings):
        wheres = column_sources(table, column)
        marks = markdown_marks(references, wheres) if references is not None else ""
        headings.append(heading.replace("\n", " ") + marks)
    rule = ["---" if column < table.names else "---:" for column in range(len(headings))]
    lines = [f"*{table.caption}*", ""] if table.caption else []
    lines += [f"| {' | '.join(headings)} |", f"|{'|'.join(rule)}|"]
    for row in table.rows:
        cells = (f"**{cell.text}**" if cell.strong and cell.text else cell.text for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def markdown_marks(references: References, wheres: Iterable[Where]) -> str:
    marks = references.marks(wheres)
    return f" [{', '.join(map(str, marks))}]" if marks else ""


def png(plot: Plot, metadata: dict[str, str] | None = None, dpi: int = 110) -> bytes:
    """The plot in black on white."""
    buffer = io.BytesIO()
    figure = plot.draw("#222222", "#ffffff")
    figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def all_cells(sections: Sequence[Section]) -> Iterator[Cell]:
    """Every cell of every table."""
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                for row in block.rows:
                    yield from row
