import numpy as np
import pytest
from PIL import ImageFont

from fassd.io import panel
from fassd.io.palette import CITYSCAPES, LabelClass
from fassd.io.panel import Tile, draw_panel

RED, BLUE = (200, 10, 20), (5, 40, 210)


def plain(color, size=(40, 80)):
    return np.full((*size, 3), color, np.uint8)


def area(drawn, color):
    """Rows and columns that the pixels of a colour span, and whether they fill that rectangle."""
    rows, columns = np.nonzero((drawn == color).all(2))
    box = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    return box, len(rows) == (box[1] - box[0]) * (box[3] - box[2])


def test_tiles_stand_in_columns_of_one_width_and_rows_of_their_own_height():
    drawn = draw_panel(
        ["left", "right"],
        [[Tile(plain(RED)), Tile(plain(BLUE))], [Tile(plain((1, 2, 3), (90, 60)))] * 2],
        [],
        width=128,
    )
    assert drawn.dtype == np.uint8 and drawn.shape[1] == 2 * 128 + 2 + 2 * 8
    (top, bottom, left, right), full = area(drawn, RED)
    assert full and (bottom - top, left, right) == (64, 8, 136)
    assert area(drawn, BLUE) == ((top, bottom, 138, 266), True)
    (second, end, *_), _ = area(drawn, (1, 2, 3))
    assert second == bottom + 2 and end - second == 192
    assert (drawn[[0, -1]] == 255).all() and (drawn[:, [0, -1]] == 255).all()


def test_titles_above_and_captions_below_leave_the_pictures_alone():
    tile = Tile(plain(RED), "mIoU 71.3%")
    titled = draw_panel(["FASSD-Net"], [[tile]], [], 256)
    (top, bottom, *_), full = area(titled, RED)
    assert full
    assert titled[:top].min() < 60 and titled[bottom:].min() < 120
    blank = draw_panel([""], [[Tile(plain(RED))]], [], 256)
    assert blank[:top].min() == 255 and blank[bottom:].min() == 255


def test_legend_has_every_colour_in_lines_that_fit():
    drawn = draw_panel(["one", "two"], [[Tile(plain(RED))] * 2], CITYSCAPES, 320)
    (_, bottom, *_), _ = area(drawn, RED)
    lines = set()
    colored = [info for info in CITYSCAPES if len(set(info.color)) > 1]  # letters have greys
    for info in colored:
        (top, end, left, right), full = area(drawn[bottom:], info.color)
        assert full and (end - top, right - left) == (18, 18)  # within a border
        lines.add(top)
    assert len(lines) == 4  # 5 names fit under two columns
    one = draw_panel(["one"], [[Tile(plain(RED))]], [LabelClass("x" * 300, BLUE)], 160)
    assert one.shape[1] == 160 + 2 * 10


def test_thin_lines_survive_shrinking_and_small_pictures_stay_sharp():
    poles = plain((0, 0, 0), (100, 1000))
    poles[:, 500] = 255
    drawn = draw_panel([""], [[Tile(poles)]], [], 100)
    assert 10 < drawn[20, 6 + 50].max() < 60  # a tenth of a pixel wide
    checks = np.kron(np.eye(2, dtype=np.uint8)[..., None], np.full((1, 1, 3), 255, np.uint8))
    assert set(np.unique(draw_panel([""], [[Tile(checks)]], [], 64))) == {0, 255}


def test_long_names_lose_their_middle():
    font = ImageFont.load_default(12)
    text = "frankfurt_000000_000294_leftImg8bit"
    short = panel._fitting(text, font, 100)
    assert font.getlength(short) <= 100 < font.getlength(text)
    start, end = short.split("...")
    assert text.startswith(start) and text.endswith(end) and len(start) >= 4
    assert panel._fitting("road", font, 100) == "road"
    assert panel._fitting("road", font, 1) == ""


def test_what_makes_no_panel():
    with pytest.raises(ValueError, match=r"rows of 2 tiles, got \[2, 1\]"):
        draw_panel(["a", "b"], [[Tile(plain(RED))] * 2, [Tile(plain(RED))]], [])
    with pytest.raises(ValueError, match=r"rows of one or more tiles, got \[\]"):
        draw_panel([], [], [])
    with pytest.raises(ValueError, match="width must be at least 32 pixels, got 8"):
        draw_panel(["a"], [[Tile(plain(RED))]], [], 8)
