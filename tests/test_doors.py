"""What a visitor finds beside the code says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import fassd

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES += ("examples/README.md", "examples/serve/README.md")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(path).exists(), path


def test_contributing_knows_the_targets_and_the_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"make (\w[\w-]*)[`\s]", text.split("## Make targets")[1])) <= {*targets}
    for path in re.findall(r"`((?:fassd|fassd_kernels|csrc|tests|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_citation_has_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fassd.__version__
    version = re.escape(fassd.__version__)
    assert re.search(rf"^## .*\b{version}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_hooks_are_those_of_lint() -> None:
    """pre-commit runs the programs of `make lint`, each with its options but for mending."""
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    programs = re.findall(r"\$\(BIN\)/([\w-]+)", lint)
    assert {hook["entry"].split()[0].rpartition("/")[2] for hook in HOOKS} == set(programs)


def test_forms_ask_each_question_once() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for form in (yaml.safe_load(path.read_text()) for path in forms if path.name != "config.yml"):
        names = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert form["name"] and form["description"] and names and len(names) == len(set(names))
