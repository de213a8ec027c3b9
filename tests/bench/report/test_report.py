"""The page: its figures are those of the files, it asks for nothing, and says what is missing."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from bench.report.conftest import HERE, comparison, write_results

from fassd.bench.report.build import build_page, write_report
from fassd.bench.report.networks import ablation, headline_table, others_table, scaling
from fassd.bench.report.page import Cell, Page, Table
from fassd.bench.report.results import Collection, collect

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture
def collection(results: Path) -> Collection:
    return collect([results])


@dataclass(frozen=True)
class Written:
    """A page as it is written, once for all tests that only read it."""

    results: Path
    page: Page
    html: str
    markdown: str
    folder: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = write_results(tmp_path_factory.mktemp("page"))
    page = build_page(collect([results]))
    files = write_report(results.parent / "report", page)
    return Written(results, page, files[0].read_text(), files[1].read_text(), files[0].parent)


def row_of(table: Table, name: str) -> dict[str, Cell]:
    row = next(row for row in table.rows if name in row[0].text)
    return dict(zip(table.headings, row, strict=True))


def test_headline_shows_medians_and_no_figure_of_what_disagrees(collection: Collection) -> None:
    table = headline_table(collection)
    assert table is not None
    row = row_of(table, "fassd_net")
    assert row["PyTorch"].text == "800 ±1"
    assert row["ours, labels"].text == "160 ±1"
    assert row["ours float16, labels"].text == "disagrees"


def test_ablation_has_every_row_with_exact_counts_and_the_authors_figures(
    collection: Collection,
) -> None:
    golden = Path(__file__).parents[2] / "golden" / "numbers.json"
    variants = json.loads(golden.read_text())["variants"]
    table = ablation(collection).blocks[0]
    assert isinstance(table, Table)
    assert len(table.rows) == len(variants)
    shown = {(row[1].text, row[2].text, row[6].text, row[7].text) for row in table.rows}
    expected = set()
    for variant in variants.values():
        talk = variant["talk"] or {"fps_1080ti": "", "miou": ""}
        counts = (f"{variant['conv_gmacs']:.3f}", f"{variant['params']:,}")
        expected.add((*counts, str(talk["fps_1080ti"]), str(talk["miou"])))
    assert shown == expected
    row = row_of(table, "FASSD-Net")
    assert row["PyTorch\nframes/s"].text == "1.2"
    assert row["ours\nframes/s"].text == "6.2"
    assert row["speed-up"].text == "5.00x"


def test_every_measured_cell_leads_to_its_place(written: Written) -> None:
    """Each cell's `data-source` names a file and a place in it that holds the cell's number."""
    pattern = r'<td class="measured" data-source="([^"]*)"[^>]*>(.*?)</td>'
    cells = re.findall(pattern, written.html)
    assert len(cells) >= 8
    for sources, shown in cells:
        values = []
        for source in html.unescape(sources).split("; "):
            name, pointer = source.split("#")
            content = json.loads((written.results.parent / name).read_text())
            keys = [int(k) if k.isdigit() else k for k in pointer.split("/")[1:]]
            values.append(reduce(getitem, keys, content))
        number = re.search(r"[\d.]+", re.sub("<[^>]*>", "", shown))
        if number is None:
            assert values == [False] and "disagrees" in shown
            continue
        figure = float(number[0])
        forms = [1e3 * values[0], 1 / values[0], values[0] / 2**20, values[-1] / values[0]]
        assert any(abs(figure - form) <= 0.51 * 10 ** -decimals(number[0]) for form in forms)


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def test_all_values_have_an_origin(written: Written) -> None:
    blocks = [block for section in written.page.sections for block in section.blocks]
    cells = [
        cell for block in blocks if isinstance(block, Table) for row in block.rows for cell in row
    ]
    assert cells
    for cell in cells:
        assert bool(cell.kind) == bool(cell.where), cell


def test_the_page_asks_for_nothing_and_its_links_hold(written: Written) -> None:
    text = written.html
    fetched = re.findall(r'\b(?:src|srcset|poster|data)="([^"]*)"', text)
    assert all(item.startswith("data:") for item in fetched)
    assert all(f"<{element}" not in text for element in ("link", "script"))
    assert "@import" not in text and re.findall(r"url\((?!#)", text) == []
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]*)', text)
    assert set(targets) <= set(ids)


def test_plots_take_the_pages_ink(written: Written) -> None:
    assert "#010203" not in written.html and "currentColor" in written.html


def test_what_is_missing_is_said_with_the_command(written: Written) -> None:
    for command in ("fassd report -o DIR --measure", "make gpu-report", "pytest benchmarks/"):
        assert command in written.markdown


def test_sources_are_listed_with_device_threads_versions_date_and_commit(written: Written) -> None:
    lines = written.markdown.split("## Sources")[1].splitlines()
    line = next(line for line in lines if "networks.json" in line)
    for fact in ("Some CPU", "2 threads", "AVX-512", "torch 2.13.0", "2026-11-20", "0123456789ab"):
        assert fact in line


def test_scaling_finds_sizes_batches_and_threads(results: Path) -> None:
    jobs = [
        comparison(size=[512, 1024]),
        comparison(size=[512, 1024], batch=4),
        comparison(size=[512, 1024], threads=1),
    ]
    content = {"environment": HERE, "comparisons": jobs}
    (results / "scaling.json").write_text(json.dumps(content))
    section = scaling(collect([results]))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [[row[0].text for row in table.rows] for table in tables] == [
        ["512x1024", "1024x2048"],
        ["1", "4"],
        ["1", "2"],
    ]


def test_networks_of_others_have_a_table(results: Path) -> None:
    content = json.loads((results / "networks.json").read_text())
    own = content["comparisons"][0]
    fast = {**own["results"][0], "max_relative_difference": 1e-6, "peak_memory_bytes": 3 << 20}
    eager = {**fast, "median_s": 0.8}
    other = {**fast, "key": "openvino", "name": "OpenVINO", "median_s": 0.3}
    ours = {**fast, "key": "ours", "name": "ours", "median_s": 0.1, "peak_memory_bytes": 2 << 20}
    wrong = {**ours, "max_relative_difference": 1e-4}
    models = {
        "fassd.bench.others:pidnet_s": ours,
        "fassd_net@resnet18d": wrong,
        "my.networks:unet": ours,
    }
    content["comparisons"] = [
        {**own, "job": {**own["job"], "model": model}, "results": [eager, other, found]}
        for model, found in models.items()
    ]
    content["environment"]["date"] = "2027-01-01"
    (results / "others.json").write_text(json.dumps(content))
    collection = collect([results])
    assert collection.comparison("fassd_net", (1024, 2048)) is not None
    table = others_table(collection)
    assert table is not None and [row[0].text for row in table.rows] == [
        "PIDNet-S",
        "FASSD-Net, resnet18d",
        "unet",
    ]
    row = row_of(table, "PIDNet-S")
    assert row["x fastest other"].text == "3.00x" and row["ours frames/s"].text == "10.0"
    assert row["MiB: PyTorch, ours"].text == "3, 2"
    assert row["difference: PyTorch, ours"].text == "1e-06, 1e-06"
    assert row["published frames/s"].text == "93.2 (1024x2048, RTX 3090)"
    assert row["published frames/s"].kind == "quoted"
    assert row_of(table, "FASSD-Net, resnet18d")["x fastest other"].text == "differs"
    assert row_of(table, "unet")["published frames/s"].text == ""


def test_a_page_is_about_the_machine_of_our_networks(results: Path) -> None:
    content = json.loads((results / "networks.json").read_text())
    for part in content["comparisons"]:
        part["job"]["model"] = "my.networks:unet"
    content["environment"] |= {"cpu": "Another CPU", "date": "2027-01-01"}
    (results / "others.json").write_text(json.dumps(content))
    machine = collect([results]).machine
    assert machine is not None and machine[0] == "Some CPU"


def test_files_are_written_whole(written: Written) -> None:
    assert written.html.startswith("<!doctype html>")
    pictures = re.findall(r"\]\(([^)#]+\.png)\)", written.markdown)
    assert len(pictures) >= 3
    for name in pictures:
        assert (written.folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(written.folder.glob("*.part"))


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results to report"):
        build_page(collect([tmp_path / "absent"]))
