from pathlib import Path

import numpy as np
import pytest

from fassd.data import MEAN, STD, normalize

GOLDEN = Path(__file__).parents[1] / "golden"


def test_equals_the_original_preprocessing():
    image = np.random.default_rng([13, 0]).integers(0, 256, (32, 48, 3), np.uint8)
    expected = np.load(GOLDEN / "preprocess.npy").reshape(3, 32, 48)
    result = normalize(image)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def test_every_level_follows_the_formula_and_channels_become_bgr():
    image = np.zeros((3, 256, 3), np.uint8)
    for channel in range(3):  # row 0 varies in red, 1 in green, 2 in blue
        image[channel, :, channel] = np.arange(256)
    result = normalize(image)
    for row, bgr in zip(range(3), (2, 1, 0), strict=True):
        level = np.arange(256, dtype=np.float64)
        formula = (level - 255 * MEAN[bgr]) / (255 * STD[bgr])
        np.testing.assert_array_equal(result[bgr, row], formula.astype(np.float32))


def test_takes_views():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    view = image[::2, ::-1]
    np.testing.assert_array_equal(normalize(view), normalize(view.copy()))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_names_what_it_got(image):
    with pytest.raises(ValueError, match=f"got {image.dtype} of shape"):
        normalize(image)
