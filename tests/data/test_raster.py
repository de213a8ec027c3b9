import numpy as np
import pytest
from matplotlib.path import Path as Outline

from fassd.data import raster
from fassd.data.raster import decode_runs, fill, unpack_runs

SIZE = 37, 53


def drawn(rings, size=SIZE):
    top, left, inside = fill([np.asarray(ring, np.float64) for ring in rings], size)
    whole = np.zeros(size, np.bool_)
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return whole


def expected(rings, size=SIZE):
    """Pixel by pixel: how often a ray to the left of its centre meets an edge, in float64."""
    rows, columns = np.indices(size) + 0.5
    count = np.zeros(size, int)
    for ring in np.asarray(rings, np.float64):
        for (x, y), (other_x, other_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y == other_y:
                continue
            between = (rows >= min(y, other_y)) & (rows < max(y, other_y))
            count += between & (x + (rows - y) * ((other_x - x) / (other_y - y)) <= columns)
    return count % 2 == 1


def test_a_rectangle_has_the_pixels_of_its_area():
    whole = drawn([[(2, 3), (12, 3), (12, 9), (2, 9)]])
    assert whole.sum() == 60 and whole[3:9, 2:12].all()
    assert drawn([[(2.6, 3), (12.6, 3), (12.6, 9), (2.6, 9)]])[3:9, 3:13].sum() == 60


def test_neighbours_share_no_pixel_and_leave_none():
    corner = (20.3, 11.7)
    edge = [(0, 0), (53, 0), (53, 37), (0, 37)]
    parts = [drawn([[edge[i], edge[(i + 1) % 4], corner]]).astype(int) for i in range(4)]
    np.testing.assert_array_equal(sum(parts), np.ones(SIZE, int))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spread", [0, 30, 1e5])
def test_random_polygons_that_cross_themselves_and_leave_the_picture(seed, spread):
    rng = np.random.default_rng(seed)
    rings = rng.uniform(-spread, 50 + spread, (2, int(rng.integers(3, 12)), 2))
    np.testing.assert_array_equal(drawn(rings), expected(rings))


def test_whole_coordinates_and_repeated_corners():
    ring = [(5, 5), (5, 5), (20, 5), (20, 30), (20, 30), (5, 30), (5, 5)]
    np.testing.assert_array_equal(drawn([ring]), expected([ring]))
    assert not drawn([[(1, 1), (9, 1), (4, 1)]]).any() and not drawn([[(3, 3)] * 3]).any()


def test_agrees_with_matplotlib():
    ring = np.array([(3.1, 2.2), (40.7, 8.3), (30.2, 33.9), (18.4, 15.6), (6.6, 30.5)])
    rows, columns = np.indices(SIZE) + 0.5
    inside = Outline(ring).contains_points(np.stack([columns.ravel(), rows.ravel()], 1))
    np.testing.assert_array_equal(drawn([ring]), inside.reshape(SIZE))


def test_a_ring_inside_of_a_ring_is_a_hole():
    outer, inner = [(0, 0), (10, 0), (10, 10), (0, 10)], [(3, 3), (7, 3), (7, 7), (3, 7)]
    whole = drawn([outer, inner])
    assert whole.sum() == 84 and not whole[3:7, 3:7].any()


def test_pieces_give_the_same(monkeypatch):
    ring = np.random.default_rng(0).uniform(-5, 60, (200, 2))
    whole = drawn([ring])
    monkeypatch.setattr(raster, "AT_ONCE", 7)
    np.testing.assert_array_equal(drawn([ring]), whole)


def test_too_many_crossings(monkeypatch):
    monkeypatch.setattr(raster, "MOST_CROSSINGS", 100)
    with pytest.raises(ValueError, match="crosses 370 rows of pixels, at most 100 are drawn"):
        drawn([[(5 * (i % 2), 99 * (i % 2) - 9) for i in range(10)]])


# ------------------------------------------------------------------------------------ run lengths


def packed(counts):
    """The text that COCO's tools write."""
    text = ""
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
    return text


def test_runs_go_down_the_columns():
    mask = decode_runs([1, 2, 3], (2, 3))
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 0]])
    assert decode_runs([0, 6], (2, 3)).all() and not decode_runs([6], (2, 3)).any()


@pytest.mark.parametrize("seed", range(5))
def test_packed_runs_are_read_as_they_were_written(seed):
    rng = np.random.default_rng(seed)
    counts = [int(n) for n in rng.integers(0, 10 ** rng.integers(1, 7), 50)]
    assert unpack_runs(packed(counts)) == counts
    assert unpack_runs("") == []


def test_texts_that_pycocotools_wrote():
    """By pycocotools.mask.encode of version 2.0.11."""
    np.testing.assert_array_equal(decode_runs(unpack_runs("01400000"), (4, 4)), np.eye(4))
    waves = np.indices((5, 40)).sum(0) % 37 < 20
    runs = unpack_runs("0d21_M1O1OV20jM1O1O`0")
    np.testing.assert_array_equal(decode_runs(runs, (5, 40)), waves)
    box = np.zeros((700, 310), np.bool_)
    box[10:600, 300:] = True
    runs = unpack_runs("jR]6^b0^300000000000000000F")
    np.testing.assert_array_equal(decode_runs(runs, (700, 310)), box)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2", "hold ' ' at character 1"),
        ("1ä", "hold 'ä' at character 1"),
        ("Q", "end within a number"),
        ("o" * 100, "a run length at character 13 has more than 64 bits"),
    ],
)
def test_bad_packed_runs(text, message):
    with pytest.raises(ValueError, match=message):
        unpack_runs(text)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], r"add up to 7 pixels, not to the 6 of 2x3"),
        ([3], "add up to 3 pixels"),
        ([], "add up to 0 pixels"),
        ([2**62] * 4, "add up to 18,446,744,073,709,551,616 pixels"),
        ([7, -1], "run length 1 must be at least 0, got -1"),
    ],
)
def test_bad_runs(counts, message):
    with pytest.raises(ValueError, match=message):
        decode_runs(counts, (2, 3))
