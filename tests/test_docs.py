"""README and docs say what the code says: their Python runs, what they name exists."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import typer
import yaml
from golden.analogy import BY_ANALOGY
from torch import nn
from typer.testing import CliRunner

import fassd
import fassd_kernels.reference
from fassd.cli import app
from fassd.models.variants import GTX, TALK, VAL, VARIANTS, PublishedScore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NETWORKS = (ROOT / "docs" / "networks.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)

BLOCK = re.compile(r"^(?:<!-- not run: ([^\n>]+) -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)
REASONS = {"needs a GPU", "needs the result of a training", "needs a hub"}
"""Why a block may be left out; it is compiled all the same."""


def blocks(document: Path, language: str) -> list[tuple[str, str]]:
    """Of each block in a language, why it is not run, or "", and its text."""
    found = BLOCK.findall(document.read_text())
    return [(why, text) for why, kind, text in found if kind == language]


@pytest.fixture
def provided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pages take for granted: files in the working folder, and a few names."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    street = random.integers(0, 256, (96, 160, 3), np.uint8)
    for name in ("street.jpg", "street.png", "picture.png", "slide.tif"):
        assert cv2.imwrite(name, street)
    assert cv2.imwritemulti("field.tif", [*random.integers(0, 256, (5, 96, 160), np.uint8)])
    layers = nn.Conv2d(64, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(1, 64, 32, 32)
    return {"model": model, "x": x, "batch": torch.randn(1, 3, 64, 96), "frame": street}


@every_document
def test_python_runs(document: Path, provided: dict[str, Any]) -> None:
    """Page by page, one block behind the other."""
    text = document.read_text()
    if '"net.onnx"' in text:
        command = "export fassd_net_l2 -o net.onnx --size 96x160 --preprocess --output labels"
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    for why, code in blocks(document, "python"):
        assert why in {"", *REASONS}
        line = text[: text.index(code)].count("\n")
        program = compile("\n" * line + code, str(document), "exec")
        if not why:
            exec(program, provided)


@every_document
def test_yaml_and_json_are_read(document: Path) -> None:
    for language, read in (("yaml", yaml.safe_load), ("json", json.loads)):
        for _, text in blocks(document, language):
            assert read(text)


def test_family_table_is_exact() -> None:
    """Every variant, with the golden parameter and operation counts and the published figures."""
    golden = json.loads((ROOT / "tests" / "golden" / "numbers.json").read_text())["variants"]
    golden.update(BY_ANALOGY)
    table = NETWORKS.split("<!-- family")[1].split("\n\n")[0]
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
    table = NETWORKS.split("<!-- scores")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M)
    expected = []
    for name, variant in VARIANTS.items():
        reports = variant.reports
        if variant.published:
            talk = variant.published
            reports = (PublishedScore(TALK, VAL, talk.miou, talk.fps_1080ti, GTX), *reports)
        for report in reports if variant.reports else ():
            speed = "" if report.fps is None else f"{report.fps:g}, {report.device}"
            expected.append((name, [f"{report.miou:.1f}", report.data, speed, report.source]))
    found = [(name, [cell.strip() for cell in cells.split("|")]) for name, cells in rows]
    assert found == expected


def test_first_number_is_that_of_the_results() -> None:
    """The README's first sentence, in the table below it."""
    row = re.search(r"^\| `fassd_net` \|.*\*\*(\d+) ±.*\| ([\d.]+)x \| ([\d.]+)x \|$", README, re.M)
    assert row is not None
    own, eager, other = row.groups()
    first = " ".join(README.split("**")[1].split())
    assert f"in {own} ms, {float(eager):.1f} times as fast as PyTorch" in first
    assert f"and {float(other):.1f} times as fast as the fastest other" in first


def shell_lines(text: str) -> list[list[str]]:
    """The words of each command in blocks of shell, without comments."""
    found = [block for _, kind, block in BLOCK.findall(text) if kind == "sh"]
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@every_document
def test_commands_and_their_options_exist(document: Path) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for words in shell_lines(document.read_text()):
        while words and (words[0] in ("exec", "torchrun") or "=" in words[0]):
            words = words[words.index("-m") if words[0] == "torchrun" else 1 :]
        words = words[2:] if words[:2] == ["python", "-m"] else words
        words = words[1:] if words[0] == "-m" else words
        line = " ".join(words)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "fassd":
            check_options(words[1:], line)
        elif words[0].startswith(("fassd", "benchmarks")):
            assert importlib.util.find_spec(words[0]), line


def check_options(words: list[str], line: str) -> None:
    """A command of the command line, and each of its options."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, line
        command = command.commands[name]
    known = {option for each in command.params for option in [*each.opts, *each.secondary_opts]}
    used = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    assert set(used) <= {*known, "-h"}, line


def test_the_two_commands_are_named() -> None:
    words = shell_lines(README)
    assert ["make", "demo"] in words and ["make", "test"] in words


@every_document
def test_files_named_exist(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, heading = path.partition("#")
        if name == "report.html":  # made with the site
            continue
        target = document.parent / name if name else document
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title).strip().lower() for title in titles]
            assert heading in [slug.replace(" ", "-") for slug in slugs], path


def test_every_name_of_the_api_has_a_docstring() -> None:
    entry = re.compile(r"^::: ([\w.]+)(?:\n    options: {members: \[([\w, ]+)\])?", re.M)
    found = entry.findall((ROOT / "docs" / "api.md").read_text())
    operators = {f"fassd_kernels.reference.{name}" for name in fassd_kernels.reference.__all__}
    named = {re.sub(r"(reference\.)\w+\.", r"\1", name) for name, _ in found}
    assert operators <= named
    for name, members in found:
        module, _, last = name.rpartition(".")
        described = getattr(importlib.import_module(module), last)
        listed = members.split(", ") if members else getattr(described, "__all__", [])
        for each in (described, *(getattr(described, each) for each in listed)):
            assert isinstance(each, (str, tuple, dict)) or inspect.getdoc(each), (name, each)


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
