"""`fassd report`: measurements on one page of HTML, and as Markdown with pictures."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import fassd
from fassd.bench.report import modules, networks
from fassd.bench.report.charts import check_matplotlib
from fassd.bench.report.page import Page, to_html, to_markdown
from fassd.bench.report.results import Collection
from fassd.io.files import replacing


def committed_results() -> Path | None:
    """The results in the project's checkout; None for an installed package."""
    folder = Path(fassd.__file__).parents[1] / "benchmarks" / "results"
    return folder if folder.is_dir() else None


def build_page(results: Collection, notes: Sequence[str] = ()) -> Page:
    """Build the page of some results.

    Raises:
        ValueError: there are no results.
    """
    if not results.sources:
        raise ValueError(
            "there are no results to report: measure some with `fassd report -o DIR --measure`, or "
            "name a folder of them with --results"
        )
    sections = (
        networks.headline(results),
        networks.ablation(results),
        networks.other_networks(results),
        modules.factorisation(results),
        modules.dead_taps(results),
        modules.layers(results),
        networks.scaling(results),
        networks.memory(results),
        modules.benchmarks(results),
        modules.gpus(results),
        modules.panel(results),
    )
    machine = results.machine
    where = f"{machine[3]}, {machine[1]} threads, {machine[2]}" if machine else platform.machine()
    paragraphs = (
        "FASSD-Net is a network for real-time semantic segmentation; `fassd_kernels` runs it, and "
        f"its relatives, in fused kernels. This page is about {where}.",
        "Every figure is measured, counted, predicted (marked ≈) or quoted (in italics); the small "
        "numbers lead to its results file or publication, and each cell names its place there. A "
        "speed-up is given only where both outputs agree: at least 99% of the labels equal.",
    )
    return Page("FASSD-Net, accelerated: what was measured", paragraphs, sections, tuple(notes))


def write_report(folder: Path, page: Page) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the pictures of the latter.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
        OSError: the folder is not writable.
    """
    check_matplotlib()
    markdown, files = to_markdown(page)
    contents = {
        **files,
        "report.md": markdown.encode(),
        "report.html": to_html(page).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as file:
            file.write(content)
    return [folder / "report.html", folder / "report.md"]
