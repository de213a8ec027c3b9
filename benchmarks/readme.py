"""The README's table and plots, from the committed results: ``python -m benchmarks.readme``.

``--check`` writes nothing and exits with 1 where they differ. A plot tells by a digest in its file
what it was drawn from, since its pixels vary with the version of matplotlib.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmarks import RESULTS, ROOT, refreshed
from fassd.bench.report.networks import HEADLINE, ablation, headline_table, speedup_plot
from fassd.bench.report.page import Plot
from fassd.bench.report.results import Collection, collect
from fassd.io.files import replacing

README = ROOT / "README.md"
BEGIN, END = "<!-- headline: python -m benchmarks.readme -->\n", "<!-- /headline -->\n"
DIGEST = "Figures"
DPI = 100


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


def headline(results: Collection) -> str:
    """The table as it stands in the README.

    Raises:
        ValueError: the results hold no network at full size.
    """
    table = headline_table(results)
    if table is None:
        raise ValueError(f"no comparison of {', '.join(HEADLINE)} in {RESULTS}")
    return "\n".join(table.markdown())


def drawn_from(path: Path) -> str | None:
    """The digest in a plot's file."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(DIGEST)


def stale(results: Collection) -> list[str]:
    """What in the README differs from the results."""
    differs = refreshed(README, BEGIN, END, headline(results), check=True)
    found = ["README.md: the headline table"] if differs else []
    drawn = [path for path, plot in plots(results) if drawn_from(path) != digest(plot)]
    return [*found, *(str(path.relative_to(ROOT)) for path in drawn)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    results = collect([RESULTS])
    if options.check:
        differing = stale(results)
        for line in differing:
            print(f"differs from benchmarks/results: {line}")
        return 1 if differing else 0
    refreshed(README, BEGIN, END, headline(results), check=False)
    for path, plot in plots(results):
        with replacing(path) as file:
            file.write(plot.content(DPI, {DIGEST: digest(plot)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
