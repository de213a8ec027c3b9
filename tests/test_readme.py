"""The README says what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fassd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_family_table_is_exact() -> None:
    """Every variant, with the golden parameter and operation counts and the published figures."""
    golden = json.loads((ROOT / "tests" / "golden" / "numbers.json").read_text())["variants"]
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


def test_commands_exist() -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    commands = re.findall(r"(?:^    |`)make (\w[\w-]*)", README, re.M)
    assert {"demo", "test"} <= set(commands) <= set(targets)


def test_files_named_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_python_example_names_exist() -> None:
    import fassd_kernels

    for module, name in re.findall(r"\b(fassd|fassd_kernels)\.(\w+)\(", README):
        assert hasattr({"fassd": fassd, "fassd_kernels": fassd_kernels}[module], name), name


def test_headline_and_plots_are_those_of_the_results() -> None:
    """`python -m benchmarks.readme` writes them."""
    from benchmarks.readme import RESULTS, stale
    from fassd.report import collect

    assert stale(collect([RESULTS])) == []
