import os
import subprocess
import sys

import pytest

from fassd.io.finished import RECORD, Record, WrittenFiles, stamp


@pytest.fixture
def files(tmp_path):
    source, result = tmp_path / "in.png", tmp_path / "out.png"
    source.write_text("source")
    result.write_text("result")
    return source, result


def test_finished_until_anything_changes(tmp_path, files):
    source, result = files
    settings = {"opacity": 0.5, "size": (64, 96)}
    state = stamp([source])
    record = Record(tmp_path)
    assert not record.holds("a", state, settings, [result])
    record.add("a", state, settings)
    for each in (record, Record(tmp_path)):
        assert each.holds("a", stamp([source]), settings, [result])
        assert not each.holds("b", state, settings, [result])
        assert not each.holds("a", state, {**settings, "opacity": 0.6}, [result])
        assert not each.holds("a", state, settings, [result, tmp_path / "missing.png"])
    os.utime(source, ns=(1, 1))
    assert not record.holds("a", stamp([source]), settings, [result])
    source.write_text("another source")
    assert not record.holds("a", stamp([source]), settings, [result])
    result.write_text("")
    assert not record.holds("a", state, settings, [result])


def test_results_about_to_be_replaced_are_not_finished(tmp_path, files):
    source, result = files
    record = Record(tmp_path)
    record.add("a", stamp([source]), {})
    record.begin("a")
    assert not Record(tmp_path).holds("a", stamp([source]), {}, [result])
    record.add("a", stamp([source]), {})
    assert Record(tmp_path).holds("a", stamp([source]), {}, [result])


def test_results_are_what_a_record_above_them_lists(tmp_path):
    record = Record(tmp_path)
    record.begin("a/x_color.png")  # as a run that is killed leaves it
    record.add("v_overlay.mp4", [], {})
    (tmp_path / "a").mkdir()
    Record(tmp_path / "a").begin("y_color.png")
    results = WrittenFiles()
    for name in ("x_color.png", "x_overlay.png", "x_trainids.png", "y_overlay.png"):
        assert tmp_path / "a" / name in results
        assert tmp_path / "b" / ".." / "a" / name in results
        assert tmp_path / name not in results
    assert tmp_path / "v_overlay.mp4" in results
    assert tmp_path / "v_labels.mp4" not in results


def test_a_record_hides_nothing_but_results(tmp_path):
    record = Record(tmp_path)
    for name in ("photo.jpg", "../x_color.png", "/x_color.png"):
        record.add(name, [], {})
    results = WrittenFiles()
    assert tmp_path / "photo.jpg" not in results
    assert tmp_path.parent / "x_color.png" not in results


def test_a_torn_line_and_rubbish_count_for_nothing(tmp_path, files):
    source, result = files
    Record(tmp_path).add("a", stamp([source]), {})
    whole = (tmp_path / RECORD).read_bytes()
    Record(tmp_path).add("b", stamp([source]), {})
    torn = (tmp_path / RECORD).read_bytes()[:-40]
    rubbish = b'[1]\n\xff\n3\n{"name": [], "key": {}}\n' + b"[" * 100_000 + b"\n"
    (tmp_path / RECORD).write_bytes(rubbish + torn)
    record = Record(tmp_path)
    assert record.holds("a", stamp([source]), {}, [result])
    assert not record.holds("b", stamp([source]), {}, [result])
    record.add("c", stamp([source]), {})
    assert Record(tmp_path).holds("c", stamp([source]), {}, [result])
    assert len(whole) < len(torn)


ADD = """
import sys
from pathlib import Path
from fassd.io.finished import Record
record = Record(Path(sys.argv[1]))
for number in range(200):
    record.add(f"{sys.argv[2]}-{number}", [["x" * 300, 1, 1]], {})
"""


def test_processes_add_side_by_side(tmp_path, files):
    _, result = files
    runs = [
        subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    record = Record(tmp_path)
    for name in ("a", "b"):
        for number in range(200):
            assert record.holds(f"{name}-{number}", [["x" * 300, 1, 1]], {}, [result])
