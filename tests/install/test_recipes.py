"""Recipes that other machines follow: wheels, images, and the page of variables."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from install.installed import SEARCH
from install.wheels import FILES, FOLDERS, ROOT

PAGE = ROOT / "docs" / "environment.md"
PACKAGES = ("fassd", "fassd_kernels", "csrc", "build_backend")
CODE = {".py", ".cpp", ".h", ".cu", ".cuh", ".def"}
OURS = r"FASSD_[A-Z][A-Z_]*"
READ = rf"(?:environ(?:\.get|\.setdefault)?[(\[]|getenv\(|variable\()\s*\"([A-Z_]+)\"|\"({OURS})"


def sources() -> Iterable[Path]:
    yield ROOT / "setup.py"
    for folder in PACKAGES:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in CODE)


def read_variables(text: str) -> set[str]:
    """Variables that code reads: of ours, all that a string begins with."""
    return {name for pair in re.findall(READ, text) for name in pair if name}


def listed_variables(page: str) -> set[str]:
    """Variables of the tables' first columns."""
    cells = re.findall(r"^\| (`[^|]+) \|", page, re.M)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_variable_is_on_its_page() -> None:
    text = "\n".join(path.read_text() for path in sources())
    read, listed = read_variables(text), listed_variables(PAGE.read_text())
    assert "FASSD_KERNELS_CPU" in read and "OMP_WAIT_POLICY" in read, "nothing was looked at"
    assert sorted(read - listed) == []
    # Others' build tools read some of the rest, which our code then names.
    assert sorted(name for name in listed if not re.search(rf"\b{name}\b", text)) == []
    assert sorted(name for name in listed - read if re.fullmatch(OURS, name)) == []


def test_variables_are_found_in_code() -> None:
    code = """
    os.environ.get("FASSD_NEW"), os.environ["OTHER_NEW"], typer.Option(envvar="FASSD_OPTION")
    std::getenv("FASSD_KERNELS_NEW"); constexpr const char* name = "FASSD_NAMED"; #define FASSD_AMX
    """
    found = {"FASSD_NEW", "OTHER_NEW", "FASSD_OPTION", "FASSD_KERNELS_NEW", "FASSD_NAMED"}
    assert read_variables(code) == found
    assert listed_variables("| `A_B`, `C` | `1` | `D` |\n|---|\nprose `E`") == {"A_B", "C"}


def test_wheels_are_built_for_two_kinds_of_processor() -> None:
    if importlib.util.find_spec("cibuildwheel") is None:
        pytest.skip("cibuildwheel is not installed")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    done = subprocess.run(
        [*command, "--platform", "linux", "--archs", "x86_64,aarch64", str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["cp310-manylinux_x86_64", "cp310-manylinux_aarch64"], done.stderr


@pytest.mark.parametrize(
    ("linter", "files"),
    [("hadolint", "docker/*.Dockerfile"), ("actionlint", ".github/workflows/*.yml")],
)
def test_recipes_pass_their_linter(linter: str, files: str) -> None:
    program = shutil.which(linter, path=SEARCH)
    if program is None:
        pytest.skip(f"{linter} is not installed")
    found = sorted(map(str, ROOT.glob(files)))
    assert found
    done = subprocess.run([program, *found], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_images_copy_what_a_build_needs() -> None:
    """.dockerignore lets through what a source copy for pip is made of."""
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sorted(kept) == sorted((*FILES, *FOLDERS))
