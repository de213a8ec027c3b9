"""Imports run one way: no circle of files, and every room has its layer.

`make lint` checks the contracts in pyproject.toml. Imports inside functions count here as there.
"""

import graphlib
from collections import defaultdict
from pathlib import Path

import grimp
import pytest
from importlinter.api import read_configuration

ROOT = Path(__file__).parents[1]
Graph = dict[str, set[str]]


def imports_of(*packages: str) -> Graph:
    """The files that each file of some packages imports, by module names."""
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    return {file: graph.find_modules_directly_imported_by(file) for file in sorted(graph.modules)}


def order(graph: Graph) -> list[str]:
    """Modules, each after what it imports; `graphlib.CycleError` names a circle."""
    return list(graphlib.TopologicalSorter(graph).static_order())


def room(file: str) -> str:
    """`fassd.io` of `fassd.io.video.reader`; kernels and benchmarks are one room each."""
    depth = 2 if file.startswith("fassd.") else 1
    return ".".join(file.split(".")[:depth])


def drawing(graph: Graph) -> str:
    """A line for each room, the importing above the imported: its files, and what it imports."""
    files, edges = defaultdict(list), defaultdict(set)
    for file, imported in graph.items():
        files[room(file)].append(file)
        edges[room(file)] |= {room(other) for other in imported} - {room(file)}
    rooms = sorted(files, key=lambda name: -len(reached(edges, name)))
    return "\n".join(
        f"{name:18} {len(files[name]):3}  {'-> ' if edges[name] else ''}"
        + ", ".join(other for other in rooms if other in edges[name])
        for name in rooms
    )


def reached(edges: Graph, start: str) -> set[str]:
    """Everything that a room imports, directly or through others."""
    found, left = set(), [start]
    while left:
        for other in edges[left.pop()] - found:
            found.add(other)
            left.append(other)
    return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    return imports_of("fassd", "fassd_kernels", "benchmarks")


def test_no_circle_of_files(graph):
    print(f"\n{drawing(graph)}")
    try:
        order(graph)
    except graphlib.CycleError as error:
        pytest.fail("files import each other: " + " -> ".join(error.args[1]))


def test_a_circle_through_a_function_is_named(tmp_path, monkeypatch):
    for name, text in {
        "__init__": "",
        "first": "from rooms import second",
        "second": "def late():\n    from rooms.third import name",
        "third": "import rooms.first\nname = 1",
    }.items():
        path = tmp_path / "rooms" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(graphlib.CycleError) as error:
        order(imports_of("rooms"))
    assert set(error.value.args[1]) == {"rooms.first", "rooms.second", "rooms.third"}


def test_every_room_has_a_layer(graph, monkeypatch):
    monkeypatch.chdir(ROOT)
    layers, _ = read_configuration()["contracts_options"]
    named = {name.strip() for layer in layers["layers"] for name in layer.split(":")}
    rooms = {room(file) for file in graph} - {"fassd", "fassd.__main__", "benchmarks"}
    assert rooms == named
