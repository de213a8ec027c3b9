from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.report.conftest import HERE, comparison

from fassd.bench.report.results import ResultsFile, collect, kind_of


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(json.dumps(content))


def test_a_figure_is_found_by_its_pointer() -> None:
    source = ResultsFile("a.json", "comparisons", {"comparisons": [{"a/b": [1, {"x~y": 5}]}]})
    figure = source.at("comparisons", 0, "a/b", 1, "x~y")
    assert figure.value == 5
    assert figure.pointer == "/comparisons/0/a~1b/1/x~0y"


def test_what_is_no_results_file_is_told(results: Path) -> None:
    write(results, "other.json", {"colour": 1})
    (results / "broken.json").write_text("{")
    notes: list[str] = []
    found = collect([results], notes)
    assert [source.name for source in found.sources] == ["results/networks.json"]
    assert len(notes) == 2
    assert "results/other.json" in notes[1] and "found keys colour" in notes[1]


@pytest.mark.parametrize("content", [[], 3, {"comparisons": 3}, {}])
def test_kinds_refuse(content: object) -> None:
    with pytest.raises(ValueError, match="one of the keys comparisons"):
        kind_of(content)


def test_the_nearest_folder_tells_the_machine_and_others_do_not_mix(
    results: Path, tmp_path: Path
) -> None:
    elsewhere = {**HERE, "cpu": "Other CPU", "device": "Other CPU", "date": "2026-12-01"}
    committed = tmp_path / "committed"
    content = {"environment": elsewhere, "comparisons": [comparison("fassd_net_l2")]}
    write(committed, "peers.json", content)
    write(committed, "layers.json", {"environment": elsewhere, "layers": []})
    found = collect([results, committed])
    assert found.machine is not None and found.machine[0] == "Some CPU"
    assert [c.value["job"]["model"] for c in found.comparisons()] == ["fassd_net"]
    assert found.first("layers") is None
    assert collect([committed, results]).first("layers") is not None


def test_of_one_job_the_fuller_comparison_counts_then_the_newer(results: Path) -> None:
    short = comparison()
    short["results"] = short["results"][2:]  # without plain PyTorch there is no ratio
    newer = {**HERE, "date": "2026-11-22"}
    write(results, "short.json", {"environment": newer, "comparisons": [short]})
    full = collect([results]).comparison("fassd_net", (1024, 2048))
    assert full is not None and full.source.name == "results/networks.json"
    write(results, "again.json", {"environment": newer, "comparisons": [comparison()]})
    again = collect([results]).comparison("fassd_net", (1024, 2048))
    assert again is not None and again.source.name == "results/again.json"


def test_threads_are_part_of_a_job(results: Path) -> None:
    one = {"environment": HERE, "comparisons": [comparison(threads=1)]}
    write(results, "one.json", one)
    found = collect([results])
    assert len(found.comparisons()) == 2
    full = found.comparison("fassd_net", (1024, 2048))
    assert full is not None and full.source.name == "results/networks.json"
