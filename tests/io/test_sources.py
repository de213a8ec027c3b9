from pathlib import Path

import pytest

from fassd.inference.finished import Record
from fassd.io.images import ImageError, Picture
from fassd.io.sources import Video, find_sources, sequence_files


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
        Picture(Path("a.png"), "a"),
        Video("b.mp4", "b"),
        Video("deep/b.MKV", "deep/b"),
        Picture(Path("deep/c.jpg"), "deep/c"),
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
    assert find_sources(["100%1d.png"]) == [Picture(Path("100%1d.png"), "100%1d")]


def test_errors_name_what_is_searched_for(here):
    Path("empty").mkdir()
    with pytest.raises(ImageError, match=r"empty: this folder holds no pictures or videos \(.*mp4"):
        find_sources(["empty"])
    with pytest.raises(ImageError, match=r"camera:x: no such file or folder"):
        find_sources(["camera:x"])


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
