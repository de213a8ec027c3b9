"""Tables and plots of README and docs, from the committed results: ``python -m benchmarks.readme``.

``--check`` writes nothing, names what differs, and exits with 1 if anything does. A plot tells by a
digest in its file what it was drawn from, since its pixels vary with the version of matplotlib.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import RESULTS, ROOT, camvid, exported, membrane, others, write_text
from benchmarks.ablation import rows_of
from fassd.bench.report.modules import namesakes_table
from fassd.bench.report.networks import (
    HEADLINE,
    ablation,
    headline_table,
    speed_table,
    speedup_plot,
)
from fassd.bench.report.page import Plot, Table
from fassd.bench.report.results import Collection, collect
from fassd.io.files import replacing

DIGEST = "Figures"
DPI = 100


def tables() -> dict[str, tuple[str, Sequence[str]]]:
    """Of each table, the document that it stands in and its lines, by the name in its marks.

    Raises:
        ValueError: there is no network at full size for the headline.
    """
    machines = [collect([folder]) for folder in sorted(RESULTS.glob("*-cores"))]
    headline = lines_of(map(headline_table, machines))
    if not headline:
        raise ValueError(f"no comparison of {', '.join(HEADLINE)} in {RESULTS}")
    modules = (source for machine in machines for source in machine.of("benchmarks"))
    return {
        "speed": ("README.md", lines_of(map(speed_table, machines))),
        "modules": ("README.md", lines_of(map(namesakes_table, modules))),
        "headline": ("docs/benchmarks.md", headline),
        "predicted": ("docs/how/time-model.md", predicted_networks()),
        "others": ("docs/accelerate.md", others.tables()),
        "formats": ("docs/deploy.md", exported.table(content_of(exported.RESULT))),
        "camvid": ("docs/camvid.md", camvid.tables(rows_of(camvid.FILE))),
        "membrane": ("docs/own-data.md", membrane.tables(content_of(membrane.FILE))),
    }


def lines_of(found: Iterable[Table | None]) -> list[str]:
    """The lines of the tables that there are."""
    return [line for table in found if table is not None for line in table.markdown()]


def predicted_networks() -> list[str]:
    """The table of networks in what `python -m benchmarks.predicted` wrote for an H200."""
    text = (RESULTS / "predicted" / "cuda-h200.md").read_text()
    return text.split("## Networks\n\n")[1].split("\n\n")[0].splitlines()


def content_of(file: Path) -> Any:
    """What a results file holds; None where it is not there."""
    return json.loads(file.read_text()) if file.is_file() else None


def marked(text: str, name: str, lines: Sequence[str]) -> str:
    """`text` with these lines between the marks of a table.

    Raises:
        ValueError: the marks are not there once.
    """
    begin, end = f"<!-- {name}: python -m benchmarks.readme -->\n", f"<!-- /{name} -->\n"
    rows = begin + "\n".join(lines).rstrip("\n") + "\n" + end
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    changed, count = re.subn(pattern, lambda _: rows, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"a document must have {begin!r} and {end!r} once, found {count}")
    return changed


def plots(results: Collection) -> Iterator[tuple[Path, Plot]]:
    """The README's plots with their files."""
    bars = speedup_plot(results, HEADLINE)
    if bars is None:
        raise ValueError(f"no comparison of {', '.join(HEADLINE)} in {RESULTS}")
    yield ROOT / "docs" / "speedups.png", bars
    scatter = next(block for block in ablation(results).blocks if isinstance(block, Plot))
    yield ROOT / "docs" / "speed-accuracy.png", scatter


def digest(plot: Plot) -> str:
    """Of the numbers and words that a plot is drawn from."""
    assert isinstance(plot.draw, functools.partial)
    return hashlib.sha256(repr((plot.draw.args, plot.draw.keywords)).encode()).hexdigest()


def drawn_from(path: Path) -> str | None:
    """The digest in a plot's file."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(DIGEST)


def refresh(results: Collection, check: bool) -> list[str]:
    """What differs from the results; it is written anew, unless `check`."""
    found = []
    for name, (document, lines) in tables().items():
        path = ROOT / document
        text = path.read_text()
        changed = marked(text, name, lines)
        if changed != text:
            found.append(f"{document}: the table {name!r}")
            if not check:
                write_text(path, changed)
    for path, plot in plots(results):
        if drawn_from(path) != digest(plot):
            found.append(str(path.relative_to(ROOT)))
            if not check:
                with replacing(path) as file:
                    file.write(plot.content(DPI, {DIGEST: digest(plot)}))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    found = refresh(collect([RESULTS]), options.check)
    for line in found:
        print(f"{'differs from benchmarks/results' if options.check else 'written'}: {line}")
    return int(options.check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
