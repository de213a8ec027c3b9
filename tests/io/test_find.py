import os
from pathlib import Path

import pytest

from fassd.io.find import PictureFile, Video, find_pictures, find_sources, sequence_files
from fassd.io.finished import Record
from fassd.io.images import ImageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a.png", "b.mp4", "deep/b.MKV", "deep/c.jpg", "notes.txt", "done/b_overlay.mp4",
             "done/b_labels.mp4", "done/b_side-by-side.mp4", ".hidden.mp4")  # fmt: skip
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    for name in ("b_overlay.mp4", "b_labels.mp4", "b_side-by-side.mp4"):
        Record(Path("done")).add(name, [], {})


def test_a_folder_gives_pictures_and_videos_but_no_results(here):
    assert find_sources(["."]) == [
        PictureFile(Path("a.png"), "a"),
        Video("b.mp4", "b"),
        Video("deep/b.MKV", "deep/b"),
        PictureFile(Path("deep/c.jpg"), "deep/c"),
    ]


def test_files_and_patterns_keep_their_own_name_alone(here):
    assert find_sources(["deep/b.MKV", "**/b.*", "done/b_overlay.mp4"]) == [
        Video("deep/b.MKV", "b"),
        Video("b.mp4", "b-2"),
        Video("done/b_overlay.mp4", "b_overlay"),
    ]


def test_cameras_addresses_and_sequences_stand_for_themselves(here):
    sources = ["camera:0", "rtsp://user@host:554/live/b?x=1", "https://host/", "in/f%04d.png",
               "%d.jpg", "b.mp4", "camera:0"]  # fmt: skip
    assert find_sources(sources) == [
        Video("camera:0", "camera-0"),
        Video("rtsp://user@host:554/live/b?x=1", "b-2"),
        Video("https://host/", "host"),
        Video("in/f%04d.png", "f"),
        Video("%d.jpg", "sequence"),
        Video("b.mp4", "b"),
    ]


def test_a_file_whose_name_looks_like_a_sequence_is_a_file(here):
    Path("100%1d.png").touch()
    assert find_sources(["100%1d.png"]) == [PictureFile(Path("100%1d.png"), "100%1d")]


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("f%04d.png", [0, 3, 12345]),
        ("f%d.png", [7, 12345]),
        ("f%02d.png", [0, 3, 12345]),
        ("g%d.png", []),
    ],
)
def test_numbers_of_a_sequence(tmp_path, pattern, numbers):
    for name in ("f0003.png", "f0000.png", "f12345.png", "f7.png", "f0003.jpg", "xf0003.png"):
        (tmp_path / name).touch()
    found = sequence_files(str(tmp_path / pattern))
    assert [number for number, _ in found] == numbers
    assert all(path.name.startswith("f") for _, path in found)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder `in` with pictures, and things that are none."""
    files = [
        "in/x10.png", "in/x2.png", "in/X1.JPG", "in/a/x2.png", "in/b/x2.png", "in/x2.jpg",
        "in/notes.txt", "in/.hidden.png", "in/.cache/x.png", "in/x2_color.png",
        "in/x2_overlay.png", "in/x2_trainids.png", "in/[1].png",
    ]  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    Record(tmp_path / "in").add("x2_color.png", [], {})
    (tmp_path / "in/folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*sources):
    return [
        (picture.path.as_posix(), Path(picture.name).as_posix())
        for picture in find_pictures(sources)
    ]


def test_a_folder_with_its_tree_in_natural_order(tree):
    assert found("in") == [
        ("in/[1].png", "[1]"),
        ("in/a/x2.png", "a/x2"),
        ("in/b/x2.png", "b/x2"),
        ("in/X1.JPG", "X1"),
        ("in/x2.jpg", "x2"),
        ("in/x2.png", "x2-2"),
        ("in/x10.png", "x10"),
    ]


def test_patterns(tree):
    assert found("in/*.png") == [("in/[1].png", "[1]"), ("in/x2.png", "x2"), ("in/x10.png", "x10")]
    assert found("in/**/x2.png") == [
        ("in/a/x2.png", "x2"),
        ("in/b/x2.png", "x2-2"),
        ("in/x2.png", "x2-3"),
    ]


def test_names_never_collide_and_nothing_is_taken_twice(tree):
    every = found("in/b/x2.png", "in", "./in/../in/x10.png", "in/*", str(tree / "in/x2.png"))
    assert len({path for path, _ in every}) == len(every) == 7
    assert len({name.casefold() for _, name in every}) == 7
    assert every[0] == ("in/b/x2.png", "x2")


def test_a_file_is_taken_whatever_its_name(tree):
    assert found("in/[1].png", "in/notes.txt", "in/x2_color.png") == [
        ("in/[1].png", "[1]"),
        ("in/notes.txt", "notes"),
        ("in/x2_color.png", "x2_color"),
    ]


def test_results_of_earlier_runs_are_those_that_the_record_lists(tree):
    Path("data").mkdir()
    for name in ("0001_color.png", "0002_color.png", "0002_overlay.mp4"):
        (tree / "data" / name).touch()
    assert found("data") == [
        ("data/0001_color.png", "0001_color"),
        ("data/0002_color.png", "0002_color"),
    ]
    Record(tree).add("data/0002_color.png", [], {})
    passed = []
    pictures = find_pictures(["data", "in", "data/*", "in/x2_color.png"], onresult=passed.append)
    assert [picture.path.name for picture in pictures if "_" in picture.name] == [
        "0001_color.png",
        "x2_color.png",  # named
    ]
    assert [path.as_posix() for path in passed] == [
        "data/0002_color.png",
        "in/x2_color.png",
        "in/x2_overlay.png",
        "in/x2_trainids.png",
    ]
    with pytest.raises(ImageError, match="no pictures but 1 that fassd predict wrote"):
        find_pictures(["data/0002*"])


FOLDERS = ["[x]", "a[1-3]", "a*b", "w?", "{a,b}", "%04d", "100%", "[!a]/[b]"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("pattern", ["*.png", "**/*.png", "p?.png", "deep/*.png", "[p]1.png"])
def test_a_folder_that_exists_stands_for_itself_in_a_pattern(
    tmp_path, monkeypatch, folder, pattern
):
    monkeypatch.chdir(tmp_path)
    for name in ("p1.png", "deep/p1.png"):
        for root in (folder, "x", "a1", "other"):
            Path(root, name).parent.mkdir(parents=True, exist_ok=True)
            Path(root, name).touch()
    expected = {"**/*.png": ["deep/p1.png", "p1.png"], "deep/*.png": ["deep/p1.png"]}
    for start in (folder, tmp_path / folder):
        assert [path for path, _ in found(f"{start}/{pattern}")] == [
            Path(start, name).as_posix() for name in expected.get(pattern, ["p1.png"])
        ]


def test_a_pattern_searches_each_folder_once_whatever_links_lead_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/1.png", "in/b/2.png", "out/3.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for link, target in {
        "in/self": ".", "in/again": ".", "in/a/up": "..", "in/a/b": "../b", "in/b/a": "../a",
        "in/0": "a", "in/out": "../out", "in/loop": "loop", "in/gone": "nowhere",
    }.items():  # fmt: skip
        Path(link).symlink_to(target)
    assert [path for path, _ in found("in/**/*.png")] == [
        "in/a/1.png", "in/b/2.png", "in/out/3.png"
    ]  # fmt: skip
    assert [path for path, _ in found("in/**")] == ["in/a/1.png", "in/b/2.png", "in/out/3.png"]


@pytest.mark.parametrize("find", [find_pictures, find_sources])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a source must be a file, folder or pattern, got ''"),  # not the current folder
        ("camera:x", "camera:x: no such file or folder"),
        ("in/y.png", "in/y.png: no such file or folder"),
        ("in/*.webp", r"in/\*.webp: this pattern matches no {what} \(.*{endings}"),
        ("in/folder.png", r"in/folder.png: this folder holds no {what} \(.*{endings}"),
    ],
)
def test_an_empty_match_is_an_error(tree, find, source, message):
    what, endings = (
        ("pictures", ".webp") if find is find_pictures else ("pictures or videos", ".y4m")
    )
    with pytest.raises(ImageError, match=message.format(what=what, endings=endings)):
        find(["in", source])


@pytest.mark.parametrize("locked", ["in", "in/a"])
def test_a_folder_that_cannot_be_searched_is_reported(tree, monkeypatch, locked):
    scandir = os.scandir

    def refusing(path):
        if Path(path) == Path(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    errors = []
    pictures = find_pictures(["in", "missing.png", "in/x2.png"], onerror=errors.append)
    assert len(pictures) == (1 if locked == "in" else 6)
    assert [str(error) for error in errors] == [
        f"{locked}: cannot be searched (Permission denied)",
        "missing.png: no such file or folder",
    ]
    with pytest.raises(ImageError, match="cannot be searched"):
        find_pictures(["in"])
