"""The prose of docstrings, comments and pages: habits that must not come back, where they are gone.

An argument or attribute is described by a noun ("taps: number of taps that reach the picture", not
"taps: that reach the picture"), sentences say who or what they are about, and spelling is British.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = [
    "benchmarks",
    "fassd/*.py",
    *(f"fassd/{room}" for room in ("bench", "cli", "data", "evaluation", "export")),
    *(f"fassd/{room}" for room in ("inference", "io", "models", "serve", "synth", "training")),
    "fassd/weights",
    "fassd_kernels",
    "build_backend",
    "csrc/*.*",
    "csrc/cpu",
    "csrc/cuda",
    "csrc/plan",
    "docs",
    "examples",
    "scripts",
    "*.md",
    "tests/ptx/*.md",
]
NO_NOUN = (
    "about how|as of|at what|called|for what|for which|how|in what|of|on what|so|takes?|tells?|that"
    "|to what|to which|what|where|whether|which|whose|why|with what"
)
ENTRY = re.compile(rf"\*{{0,2}}\w+(, \*{{0,2}}\w+)*: ({NO_NOUN})\b")
HABITS = (
    "(any|no|some)body|whoever|so many|be there|who (changes|holds|knows|runs|takes)",
    "as far as \\w+ goes|as (it|they) stands?",
    "(docstring|error|file|message|record|remarks?|report|tables?|warning)s? tells?",
)
AMERICAN = (
    "artifacts?|behaviors?|catalogs?|center(ed|s)?|color(ed|s)?|favorites?|fulfill|gray(ish|s)?"
    "|labeled|labeling|licenses?|modeling|neighbor\\w*|analyz\\w+",
    "(?!optimizer|parametriz|sanitizer|horizon|priz|re?siz|seiz|siz)[a-z]{3,}iz(e[ds]?|er|ing|ation)",
)
WRONG = re.compile(rf"\b({'|'.join((*HABITS, *AMERICAN))})\b", re.IGNORECASE)
# Not prose: code, quotations, keys before a colon, paths, dotted names, options, calls, addresses.
NAMES = re.compile(
    r"^\s*\w+(, \w+)*: |``.*?``|`[^`]*`|\"[^\"]*\"|'\w+'|{.*?}|https?://\S+"
    r"|\w*[_./]\w[\w./]*|--[\w-]+|\w+\(|\w+Sanitizer|Lavin and Gray"
)


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Lines of docstrings, comments or pages, with their numbers."""
    text = path.read_text()
    if path.suffix == ".md":
        code = re.sub(r"```.*?```|\]\(.*?\)", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
        return list(enumerate(code.splitlines(), 1))
    if path.suffix != ".py":
        parts = ((n, line.partition("//")) for n, line in enumerate(text.splitlines(), 1))
        return [(number, comment) for number, (_, mark, comment) in parts if mark]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(ast.Constant(str(doc)), lineno=first):
                doc = re.sub(r"(Returns|Yields):\n\s+", "\nresult: ", doc)
                lines += [(first + i, line) for i, line in enumerate(doc.splitlines())]
    return lines


@pytest.mark.parametrize("room", ROOMS)
def test_no_habit_comes_back(room):
    found = []
    for path in sorted(ROOT.glob(room if "." in room else f"{room}/**/*.*")):
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".md"):
            for number, line in prose_of(path):
                if ENTRY.match(line.strip()) or WRONG.search(NAMES.sub("", line)):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
