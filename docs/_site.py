"""Hooks of the documentation's build: pages made of what the repository has elsewhere.

README, changelog, contributing guide, model cards and notes on results are pages unchanged; the
command line's page is made from the commands, the report's from the committed results. A link to a
file that is no page becomes a link to the repository, if `repo_url` names one, else plain text.
"""

from __future__ import annotations

import functools
import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "model-cards.md": "fassd/weights/README.md",
    "results.md": "benchmarks/results/README.md",
    "executed-ptx.md": "benchmarks/results/executed-ptx.md",
    "how/executor.md": "tests/ptx/README.md",
    "layers.png": "benchmarks/results/amd-epyc-2-cores/layers.png",
    "panel.jpg": "benchmarks/results/synthetic/panel.jpg",
}
"""Page or picture of the site -> file of the repository that it is."""

REPORT = "report.html"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*)\]\(([^()\s]+)\)")
"""A link or a picture of Markdown, also a link around a picture."""


class Docstrings(griffe.Extension):
    """Docstrings as Markdown: Sphinx's roles as code, examples in fences, one entry a name."""

    ROLE = re.compile(r":\w+:`~?([\w.]+)`")
    EXAMPLE = re.compile(r"((?:^>>> .*\n?)(?:^(?:>>>|\.\.\.) .*\n?)*)", re.M)
    JOINT = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.M)
    """`mean, std: ...` in a list of arguments, attributes or errors."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = self.ROLE.sub(r"`\1`", obj.docstring.value)
            text = self.EXAMPLE.sub(lambda m: f"```pycon\n{m[1].rstrip()}\n```\n", text)
            obj.docstring.value = self.JOINT.sub(
                lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), text
            )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for page, source in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "cli.md", content=command_line()))
    files.append(File.generated(config, REPORT, content=report()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site, wherever the file stands in the repository."""
    place = page.file.src_uri
    source = ROOT / PAGES.get(place, f"docs/{place}")
    return LINK.sub(functools.partial(linked, place, source.parent, config.repo_url), markdown)


def linked(place: str, folder: Path, repository: str | None, match: re.Match[str]) -> str:
    """A link as it is on the page `place`, whose source lies in `folder`."""
    picture, text, target = match.groups()
    inner = LINK.sub(functools.partial(linked, place, folder, repository), text)
    path, hash_, heading = target.partition("#")
    if "://" in target or not path:
        return f"{picture}[{inner}]({target})"
    name = os.path.relpath(folder / path, ROOT)
    made = {source: page for page, source in PAGES.items()}
    if name in made or name.startswith("docs/"):
        other = os.path.relpath(made.get(name, name.removeprefix("docs/")), Path(place).parent)
        return f"{picture}[{inner}]({other}{hash_}{heading})"
    if repository:
        return f"[{inner}]({repository.rstrip('/')}/blob/main/{name})"
    return inner


def command_line() -> str:
    """Every command with its options, as Markdown, in a process of its own: colours off."""
    whole = "core.TyperCommand.get_short_help_str.__defaults__ = (200,)"  # sentences are not cut
    command = [sys.executable, "-c", f"from typer import cli, core; {whole}; cli.main()"]
    command += ["fassd.cli", "utils", "docs", "--name", "fassd"]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    text = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    text = re.sub(r'<span style="font-weight: bold">(.*?)</span>', r"**\1**", text)
    return re.sub(
        r'<span style="color[^>]*>(.*?)</span>', lambda m: f"`{html.unescape(m[1])}`", text
    )


def report() -> str:
    """The page that `fassd report` makes of the committed results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fassd", "report", "-o", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return (Path(folder) / "report.html").read_text()
