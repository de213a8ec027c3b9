"""The README says what the code says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from golden.analogy import BY_ANALOGY

import fassd
from fassd.cli import app
from fassd.models.variants import GTX, TALK, VAL, VARIANTS, Report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_family_table_is_exact() -> None:
    """Every variant, with the golden parameter and operation counts and the published figures."""
    golden = json.loads((ROOT / "tests" / "golden" / "numbers.json").read_text())["variants"]
    golden.update(BY_ANALOGY)
    table = README.split("<!-- family")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M)
    assert [name for name, _ in rows] == list(fassd.list_models())
    for name, cells in rows:
        talk = golden[name]["talk"] or {"fps_1080ti": "", "miou": ""}
        expected = [
            f"{golden[name]['params']:,}",
            f"{golden[name]['conv_gmacs']:.3f}",
            str(talk["fps_1080ti"]),
            str(talk["miou"]),
        ]
        assert [cell.strip() for cell in cells.split("|")] == expected, name


def test_published_scores_are_exact() -> None:
    """Every score that the code knows, with its source."""
    table = README.split("<!-- scores")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M)
    expected = []
    for name, variant in VARIANTS.items():
        reports = variant.reports
        if variant.published:
            talk = variant.published
            reports = (Report(TALK, VAL, talk.miou, talk.fps_1080ti, GTX), *reports)
        for report in reports if variant.reports else ():
            speed = "" if report.fps is None else f"{report.fps:g}, {report.device}"
            expected.append((name, [f"{report.miou:.1f}", report.data, speed, report.source]))
    found = [(name, [cell.strip() for cell in cells.split("|")]) for name, cells in rows]
    assert found == expected


def test_commands_exist() -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    commands = re.findall(r"(?:^    |`)make (\w[\w-]*)", README, re.M)
    assert {"demo", "test"} <= set(commands) <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_exist(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, heading = path.partition("#")
        assert (document.parent / name).exists(), path
        if heading:
            assert re.search(rf"^#+ {heading.replace('-', ' ')}$", text, re.M | re.I), path


def command_lines(text: str) -> list[list[str]]:
    """The words of each indented line that calls fassd, without `torchrun ... -m` in front."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^    (?:torchrun .*? -m )?fassd (.+)$", joined, re.M)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_fassd_commands_and_their_options_exist(document: Path) -> None:
    lines = command_lines(document.read_text())
    assert lines
    for words in lines:
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            name, *words = words
            assert name in command.commands, f"{name} in {document.name}"
            command = command.commands[name]
        known = {option for each in command.params for option in [*each.opts, *each.secondary_opts]}
        used = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        assert set(used) <= known, f"{words} in {document.name}"


def test_table_of_formats_is_that_of_the_results() -> None:
    """`python -m benchmarks.exported --table` writes it."""
    from benchmarks.exported import main

    assert main(["--check"]) == 0


def test_table_of_other_networks_is_that_of_the_results() -> None:
    """`python -m benchmarks.others --table` writes it."""
    from benchmarks.others import main

    assert main(["--check"]) == 0


def test_python_example_names_exist() -> None:
    import fassd_kernels

    for module, name in re.findall(r"\b(fassd|fassd_kernels)\.(\w+)\(", README):
        assert hasattr({"fassd": fassd, "fassd_kernels": fassd_kernels}[module], name), name


def test_headline_and_plots_are_those_of_the_results() -> None:
    """`python -m benchmarks.readme` writes them."""
    from benchmarks.readme import RESULTS, stale
    from fassd.bench.report.results import collect

    assert stale(collect([RESULTS])) == []
