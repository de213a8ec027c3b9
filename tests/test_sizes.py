"""Files and functions that can be read at once, and classes that one name finds."""

import ast
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = {".py": 500, ".cpp": 550, ".h": 550, ".cu": 550, ".cuh": 550}
FUNCTION = 80
"""Maximum lines of a function without its docstring."""

ROOMS = ("fassd", "fassd_kernels", "benchmarks")


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """The project's own sources, by their paths."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("these sources are no git repository")
    paths = {Path(line) for line in found.stdout.splitlines()}
    present = (path for path in sorted(paths) if (ROOT / path).is_file())
    return {path: (ROOT / path).read_text() for path in present if path.suffix in LINES}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    docstring = first if ast.get_docstring(function) is not None else None
    lines = (function.end_lineno or 0) - function.lineno + 1
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


def test_files_are_short(sources):
    lengths = {path: text.count("\n") for path, text in sources.items()}
    assert {path: n for path, n in lengths.items() if n > LINES[path.suffix]} == {}


def test_functions_are_short(sources):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    trees = {path: ast.parse(text) for path, text in sources.items() if path.suffix == ".py"}
    assert trees
    long = [
        f"{path}:{node.lineno} {node.name}: {code_lines(node)} lines"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and code_lines(node) > FUNCTION
    ]
    assert long == []


def test_public_classes_have_names_of_their_own(sources):
    places = defaultdict(list)
    for path, text in sources.items():
        if path.suffix == ".py" and path.parts[0] in ROOMS:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path))
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
