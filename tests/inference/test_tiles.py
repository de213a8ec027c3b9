"""Pictures by overlapping tiles."""

import numpy as np
import pytest
from torch import nn

from fassd.inference.large import labelled
from fassd.inference.segmenter import Segmenter
from fassd.inference.tiles import windows
from fassd.io.tiff import ArrayRows
from fassd.synth import render_street


@pytest.mark.parametrize("total", [1, 63, 64, 65, 100, 128, 129, 1000])
@pytest.mark.parametrize("side", [1, 3, 16, 64])
def test_every_pixel_is_given_once_by_a_tile_that_sees_it(total, side):
    found = windows(total, side)
    assert [each.top for each in found] == [0, *(each.bottom for each in found[:-1])]
    assert found[-1].bottom == total
    for each in found:
        assert each.first <= each.top < each.bottom <= each.last
        assert each.last - each.first == min(side, total)
        # What a tile gives lies away from its border, but at the picture's.
        assert each.top == 0 or each.top - each.first >= side // 8
        assert each.bottom == total or each.last - each.bottom >= side // 8


def by_tiles(segmenter, picture, folder, side, **settings):
    with labelled(segmenter, ArrayRows(picture, 1), folder, tiles=side, **settings) as labels:
        return labels.read(0, labels.height)


@pytest.fixture(scope="module")
def picture():
    return render_street(301, 402, seed=1, split="val")[0]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter("fassd_net_l2", weights="streets")


def test_nearly_the_labels_of_the_whole(segmenter, picture, tmp_path):
    right = segmenter.predict(picture)
    found = by_tiles(segmenter, picture, tmp_path / "a", 200)
    assert 0.85 < (found == right).mean() < 1
    np.testing.assert_array_equal(by_tiles(segmenter, picture, tmp_path / "b", 402), right)
    assert not list(tmp_path.iterdir())  # the scratch files are gone


def test_of_what_sees_one_pixel_they_are_exact(picture, tmp_path):
    """Any network will do, of more than 256 classes too."""
    network = nn.Conv2d(3, 300, 1)
    network.num_classes = 300
    segmenter = Segmenter(network, backend="reference")
    right = segmenter.predict(picture)
    found = by_tiles(segmenter, picture, tmp_path / "a", 64)
    assert found.dtype == right.dtype == np.uint16
    assert (found == right).mean() > 0.9999


def test_a_run_that_was_stopped_goes_on(segmenter, picture, tmp_path):
    seen = []

    def stop(share):
        seen.append(share)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_tiles(segmenter, picture, tmp_path / "a", 128, progress=stop)
    again = []
    found = by_tiles(segmenter, picture, tmp_path / "a", 128, progress=again.append)
    assert again[-1] == 1 and len(again) == len(windows(301, 128)) - 2
    np.testing.assert_array_equal(found, by_tiles(segmenter, picture, tmp_path / "b", 128))


def test_certainty(segmenter, picture, tmp_path):
    expected = segmenter.predict(picture, confidence="entropy")
    rows = ArrayRows(picture, 1)
    for side in (402, 200):
        with labelled(
            segmenter, rows, tmp_path / str(side), tiles=side, confidence="entropy"
        ) as found:
            labels, certainty = found.read_all(0, 301)
            np.testing.assert_array_equal(found.certainty(40, 90), certainty[40:90])
        assert 0.8 < (labels == expected[0]).mean() <= 1
        assert np.abs(certainty.astype(int) - expected[1]).mean() < (20 if side == 200 else 1e-9)


def test_a_side_below_one_is_refused(segmenter, picture, tmp_path):
    with pytest.raises(ValueError, match="a side of at least 1 pixel, got 0"):
        by_tiles(segmenter, picture, tmp_path / "a", 0)
