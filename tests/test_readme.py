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
            there = (document.parent / name).read_text() if name else text
            assert re.search(rf"^#+ {heading.replace('-', ' ')}$", there, re.M | re.I), path


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


def test_python_example_names_exist() -> None:
    import fassd_kernels

    for module, name in re.findall(r"\b(fassd|fassd_kernels)\.(\w+)\(", README):
        assert hasattr({"fassd": fassd, "fassd_kernels": fassd_kernels}[module], name), name


def test_tables_and_plots_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks.readme` writes them."""
    from benchmarks import readme

    readme.main(["--check"])
    assert capsys.readouterr().out == ""


def test_a_table_is_written_between_its_marks(tmp_path: Path, monkeypatch, capsys) -> None:
    from benchmarks import readme

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t: python -m benchmarks.readme -->\nold\n<!-- /t -->\nb\n")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "tables", lambda: {"t": ("page.md", ["| 1 |", "| 2 |"])})
    monkeypatch.setattr(readme, "plots", lambda _: [])
    assert readme.main(["--check"]) == 1 and "old" in page.read_text()
    assert "differs from benchmarks/results: page.md: the table 't'" in capsys.readouterr().out
    assert readme.main([]) == 0 and readme.main(["--check"]) == 0
    assert page.read_text().splitlines()[2:4] == ["| 1 |", "| 2 |"]
    with pytest.raises(ValueError, match="found 0"):
        readme.marked(page.read_text(), "u", [])
