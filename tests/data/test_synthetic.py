import numpy as np
import pytest

from fassd.data import render_street
from fassd.palette import CITYSCAPES

NAMES = [info.name for info in CITYSCAPES]


def test_is_the_same_on_every_run():
    first, second = render_street(96, 160, 3), render_street(96, 160, 3)
    assert first[0].shape == (96, 160, 3) and first[0].dtype == np.uint8
    assert first[1].shape == (96, 160) and first[1].dtype == np.uint8
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeds_differ():
    assert (render_street(96, 160, 0)[1] != render_street(96, 160, 1)[1]).mean() > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_holds_a_street(seed):
    image, labels = render_street(192, 384, seed)
    share = dict(zip(NAMES, np.bincount(labels.ravel(), minlength=19) / labels.size, strict=True))
    assert labels.max() < 19
    for name in ("road", "sidewalk", "building", "vegetation", "sky"):
        assert share[name] > 0.02, name
    for name in ("pole", "traffic light", "traffic sign", "person", "car"):
        assert share[name] > 0, name
    assert labels[-1, 192] == NAMES.index("road")
    assert image.std() > 20


def test_shows_the_same_scene_at_every_size():
    _, small = render_street(128, 256, 5)
    _, large = render_street(512, 1024, 5)
    # Outlines differ by less than a small pixel.
    assert (small == large[2::4, 2::4]).mean() > 0.97


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (300, 17), (33, 65)])
def test_any_size(size):
    image, labels = render_street(*size, 2)
    assert image.shape == (*size, 3) and labels.shape == size


@pytest.mark.parametrize(
    ("arguments", "message"), [((8, 64, 0), "got 8"), ((64, 64, -1), "got -1")]
)
def test_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_street(*arguments)
