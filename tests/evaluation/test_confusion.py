import csv
import sys

import numpy as np
import pytest
from PIL import Image

from fassd.evaluation.confusion import write_csv, write_heat_map

NAMES = ["road", "pole, thin", "sky"]
MATRIX = np.array([[90, 10, 0], [0, 0, 0], [0, 0, 5]])


def test_csv_holds_counts_under_names(tmp_path):
    write_csv(tmp_path / "new/counts.csv", MATRIX, NAMES)
    with (tmp_path / "new/counts.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["truth \\ prediction", *NAMES],
        ["road", "90", "10", "0"],
        ["pole, thin", "0", "0", "0"],
        ["sky", "0", "0", "5"],
    ]


def cells(path, classes):
    """The colour of every cell, taken beside its figure."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB"))
    assert (picture == (8, 48, 107)).all(2).any()  # the darkest, a share of 100%
    # The axes' black frame is the longest dark line of the picture.
    dark = (picture < 40).all(2)
    lines = np.nonzero(dark.sum(1) == dark.sum(1).max())[0]
    across = np.nonzero(dark[lines[0]])[0]
    top, bottom, left, right = lines[0], lines[-1], across[0], across[-1]
    step = np.array([(bottom - top) / classes, (right - left) / classes])
    places = [
        (np.array([row, column]) + 0.2) * step
        for row in range(classes)
        for column in range(classes)
    ]
    return np.array([picture[int(top + y), int(left + x)] for y, x in places]).reshape(
        classes, classes, 3
    )


def test_heat_map_shows_shares_of_rows(tmp_path):
    write_heat_map(tmp_path / "map.png", MATRIX, NAMES, "title")
    drawn = cells(tmp_path / "map.png", 3).astype(int).sum(2)
    assert drawn[2, 2] == 8 + 48 + 107  # 5 of 5
    assert drawn[2, 2] < drawn[0, 0] < drawn[0, 1] < drawn[0, 2]  # 100%, 90%, 10%, none
    assert (drawn[1] == 3 * 255).all()  # no such pixels: blank


def test_many_classes_make_no_giant(tmp_path):
    count = 100
    write_heat_map(tmp_path / "map.png", np.eye(count, dtype=int), list(map(str, range(count))))
    with Image.open(tmp_path / "map.png") as image:
        assert min(image.size) > 1500 and max(image.size) < 4000


def test_without_matplotlib_the_message_tells_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "map.png").write_text("older")
    with pytest.raises(ImportError, match=r"pip install 'fassd-net\[train\]'"):
        write_heat_map(tmp_path / "map.png", MATRIX, NAMES)
    assert (tmp_path / "map.png").read_text() == "older"
