from pathlib import Path

import numpy as np
import pytest

from fassd.data import MEAN, STD, TrainTransform, normalize
from fassd.data.transforms import LUMA, _jittered, _window
from fassd.io.images import BACKGROUND
from fassd.io.palette import IGNORE
from fassd.models.preprocess import MEAN_COLOR

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


# ------------------------------------------------------------------------------------ augmentation


def pair(height=96, width=128, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, 19, (height, width), np.uint8)


def regions(height=120, width=160):
    """A picture whose colour tells the label: blocks of 20 pixels, 30 levels a label."""
    blocks = np.random.default_rng(1).integers(0, 8, (height // 20, width // 20), np.uint8)
    labels = np.kron(blocks, np.ones((20, 20), np.uint8))
    return np.repeat((labels * 30)[..., None], 3, 2), labels


def positions(height, width):
    """A picture of coordinates, two pixels a level: red grows to the right, green downwards."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns // 2, rows // 2, 0 * rows], -1).astype(np.uint8)
    return image, np.zeros((height, width), np.uint8)


def test_the_mean_colour_becomes_nearly_zero():
    assert MEAN_COLOR == BACKGROUND == (124, 116, 104)
    assert np.abs(normalize(np.array([[MEAN_COLOR]], np.uint8))).max() < 0.01


def test_nothing_to_do_is_the_identity():
    image, labels = pair()
    same = TrainTransform((96, 128), scale=(1, 1), flip=0)
    results = same(image, labels, np.random.default_rng(0))
    for result, original in zip(results, (image, labels), strict=True):
        np.testing.assert_array_equal(result, original)
        assert result.dtype == np.uint8 and result.flags.c_contiguous
        assert not np.shares_memory(result, original)


def test_without_scaling_crops_are_exact_windows_at_every_place():
    image, labels = pair(12, 10)
    image[..., 0] = np.arange(120).reshape(12, 10)
    crop = TrainTransform((11, 7), scale=(1, 1), flip=0)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(800):
        cut, cut_labels = crop(image, labels, rng)
        top, left = divmod(int(cut[0, 0, 0]), 10)
        np.testing.assert_array_equal(cut, image[top : top + 11, left : left + 7])
        np.testing.assert_array_equal(cut_labels, labels[top : top + 11, left : left + 7])
        seen.append((top, left))
    counts = [seen.count((top, left)) for top in range(2) for left in range(4)]
    assert sum(counts) == 800 and min(counts) > 60 and max(counts) < 145  # 100 each, 4 sigma


@pytest.mark.parametrize(("flip", "least", "most"), [(0, 0, 0), (0.3, 240, 360), (1, 1000, 1000)])
def test_flips_are_mirrors_and_as_frequent_as_asked(flip, least, most):
    image, labels = pair(6, 8)
    transform = TrainTransform((6, 8), scale=(1, 1), flip=flip)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(1000):
        result, result_labels = transform(image, labels, rng)
        mirrored = not np.array_equal(result, image)
        np.testing.assert_array_equal(result, image[:, ::-1] if mirrored else image)
        np.testing.assert_array_equal(result_labels, labels[:, ::-1] if mirrored else labels)
        flipped += mirrored
    assert least <= flipped <= most


def test_turns_are_by_all_four_angles_alike_and_fill_the_crop():
    image, labels = pair(6, 8)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(800):
        turned, _ = TrainTransform((9, 9), (1, 1), flip=0.5, rotate=True)(image, labels, rng)
        inside = turned[(turned != MEAN_COLOR).any(2)].tobytes()
        seen.append(inside)
    whole = [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]
    counts = [seen.count(np.ascontiguousarray(each).tobytes()) for each in whole]
    assert sum(counts) == 800 and min(counts) > 60 and max(counts) < 145  # 100 each, 4 sigma


@pytest.mark.parametrize("crop", [(5, 11), (11, 5)])
def test_a_turned_window_is_a_part_of_the_turned_picture(crop):
    image, labels = pair(30, 40)
    labels[:] = image[..., 0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        part, found = TrainTransform(crop, (1, 1), flip=0, rotate=True)(image, labels, rng)
        assert part.shape == (*crop, 3) and part.flags.c_contiguous and found.flags.c_contiguous
        np.testing.assert_array_equal(part[..., 0], found)
        windows = [
            np.lib.stride_tricks.sliding_window_view(np.rot90(labels, turns), crop)
            for turns in range(4)
        ]
        assert any((window == found).all((2, 3)).any() for window in windows)


def test_scales_are_uniform_and_the_same_both_ways():
    image, labels = positions(400, 480)
    transform = TrainTransform((200, 200), scale=(0.5, 2.0), flip=0)
    rng = np.random.default_rng(0)
    factors = []
    for _ in range(300):
        result = transform(image, labels, rng)[0].astype(float)
        across = 199 / (2 * (result[100, 199, 0] - result[100, 0, 0]))
        down = 199 / (2 * (result[199, 100, 1] - result[0, 100, 1]))
        assert across == pytest.approx(down, rel=0.08)
        factors.append(across)
    assert 0.48 < min(factors) < 0.53 and 1.9 < max(factors) < 2.1
    share = np.histogram(factors, [0.45, 0.875, 1.25, 1.625, 2.1])[0] / 300
    assert share == pytest.approx(0.25, abs=0.1)  # 4 sigma


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.6, 0.9), (1.1, 1.9), (2.0, 2.0)])
def test_picture_and_labels_stay_aligned(scale):
    image, labels = regions()
    transform = TrainTransform((80, 72), scale=scale, flip=0.5)
    for seed in range(40):
        result, result_labels = transform(image, labels, np.random.default_rng(seed))
        shown = result_labels != IGNORE
        inner = shown.copy()  # away from the borders of the blocks, which interpolation mixes
        for shift in np.ndindex(3, 3):
            inner &= np.roll(result_labels, np.subtract(shift, 1), (0, 1)) == result_labels
        assert inner.sum() > 0.4 * shown.sum() > 0.2 * shown.size
        np.testing.assert_allclose(result[inner][:, 0], result_labels[inner] * 30.0, atol=1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [(0.51, 0.65), (0.65, 1.0), (1.0, 2.0), (2.0, 2.0)])
def test_edges_of_picture_and_labels_coincide(scale, axis):
    offsets = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.zeros((100, 100), np.uint8)
        labels[: int(rng.integers(30, 70))] = 1
        labels = labels if axis == 0 else np.ascontiguousarray(labels.T)
        image = np.repeat(255 * labels[..., None], 3, 2)
        result, result_labels = TrainTransform((256, 256), scale)(image, labels, rng)
        shown = result_labels != IGNORE
        line = shown.any(1 - axis).sum(), shown.any(axis).sum()
        lit = result[..., 0][shown].reshape(line) / 255, result_labels[shown].reshape(line)
        offsets.append(lit[0].sum(axis)[0] - lit[1].sum(axis)[0])  # in pixels of the result
    assert np.abs(offsets).max() <= 0.51
    assert abs(np.mean(offsets)) < 0.1


def test_shrinking_averages_and_growing_interpolates():
    stripes = np.tile(np.array([255, 0, 0, 0], np.uint8), (64, 16))
    labels = np.zeros((64, 64), np.uint8)
    small, _ = TrainTransform((16, 16), (0.25, 0.25), 0)(
        np.repeat(stripes[..., None], 3, 2), labels, np.random.default_rng(0)
    )
    assert small.min() == small.max() == 64  # 255 / 4
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    double, _ = TrainTransform((64, 64), (2, 2), 0)(
        ramp, labels[:32, :32], np.random.default_rng(0)
    )
    np.testing.assert_array_equal(double[0, :5, 0], [0, 2, 6, 10, 14])  # by pixel centres


def test_windows_show_what_they_should_to_within_a_pixel():
    rng = np.random.default_rng(0)
    errors = []
    for side, factor, wanted in [(100, 1.7, 64), (96, 0.6, 32), (77, 2.0, 31), (50, 0.9, 64)] * 200:
        window = _window(side, factor, wanted, rng)
        assert 0 <= window.start < window.stop <= side
        assert window.before + window.size + window.after == wanted
        errors.append(window.stop - window.start - window.size * side / round(side * factor))
    assert np.abs(errors).max() < 1 and abs(np.mean(errors)) < 0.05


@pytest.mark.parametrize("padding", [MEAN_COLOR, (0, 0, 0)])
def test_what_is_beyond_the_picture_is_padding_and_ignored(padding):
    image, labels = pair(20, 30)
    transform = TrainTransform((64, 48), scale=(1, 1), flip=0, padding=padding)
    places = set()
    rng = np.random.default_rng(0)
    for _ in range(300):
        result, result_labels = transform(image, labels, rng)
        assert result.shape == (64, 48, 3) and result_labels.shape == (64, 48)
        outside = result_labels == IGNORE
        assert outside.sum() == 64 * 48 - 20 * 30
        assert (result[outside] == padding).all()
        (top, left), (bottom, right) = np.argwhere(~outside)[[0, -1]]
        np.testing.assert_array_equal(result[top : bottom + 1, left : right + 1], image)
        np.testing.assert_array_equal(result_labels[top : bottom + 1, left : right + 1], labels)
        places.add((int(top), int(left)))
    assert {top for top, _ in places} == {*range(45)} and {left for _, left in places} == {
        *range(19)
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2), (40, 64)])
@pytest.mark.parametrize("crop", [(1, 1), (16, 24), (33, 1)])
def test_any_size_gives_the_crop(size, crop):
    image, labels = pair(*size)
    transform = TrainTransform(crop, scale=(0.1, 3.0), jitter=0.5)
    rng = np.random.default_rng(0)
    for _ in range(30):
        result, result_labels = transform(image, labels, rng)
        assert result.shape == (*crop, 3) and result_labels.shape == crop
        assert result.flags.c_contiguous and result_labels.flags.c_contiguous
        assert set(np.unique(result_labels)) <= {*range(19), IGNORE}


def test_all_randomness_comes_from_the_generator():
    image, labels = pair()
    transform = TrainTransform((64, 64), jitter=0.4)
    np.random.seed(0)
    first = [transform(image, labels, np.random.default_rng(seed)) for seed in range(5)]
    np.random.seed(1)
    again = [transform(image, labels, np.random.default_rng(seed)) for seed in range(5)]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert len({result.tobytes() for result, _ in first}) == 5
    rng = np.random.default_rng(0)
    assert not np.array_equal(transform(image, labels, rng)[0], transform(image, labels, rng)[0])


def test_inputs_are_left_alone_and_may_be_views():
    image, labels = pair(96, 128)
    kept = image.copy(), labels.copy()
    transform = TrainTransform((50, 60), jitter=0.5)
    expected = transform(image[:, ::-1].copy(), labels[:, ::-1].copy(), np.random.default_rng(3))
    result = transform(image[:, ::-1], labels[:, ::-1], np.random.default_rng(3))
    for one, two in zip((*result, image, labels), (*expected, *kept), strict=True):
        np.testing.assert_array_equal(one, two)


# -------------------------------------------------------------------------------------- the jitter


def test_jitter_moves_colours_only():
    image, labels = regions()
    image[..., 1] //= 2
    plain = TrainTransform((80, 72), flip=0.5)
    colored = TrainTransform((80, 72), flip=0.5, jitter=0.5)
    for seed in range(10):
        result, result_labels = plain(image, labels, np.random.default_rng(seed))
        other, other_labels = colored(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(result_labels, other_labels)
        assert not np.array_equal(result, other)
        padding = other_labels == IGNORE
        assert (other[padding] == MEAN_COLOR).all()


def test_jitter_is_brightness_then_contrast_then_saturation():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 160, (20, 30, 3), np.uint8)
    for brightness, contrast, saturation in rng.uniform(0.6, 1.4, (20, 3)):
        bright = brightness * image
        grey = (bright @ LUMA).mean()
        contrasted = grey + contrast * (bright - grey)
        greys = (contrasted @ LUMA)[..., None]
        expected = np.clip(greys + saturation * (contrasted - greys), 0, 255)
        result = _jittered(image, brightness, contrast, saturation)
        assert result.dtype == np.uint8
        np.testing.assert_allclose(result, expected, atol=0.7)  # OpenCV's fixed point


def test_jitter_keeps_within_its_strength():
    white = np.full((8, 8, 3), 100, np.uint8)  # one colour: contrast and saturation do nothing
    transform = TrainTransform((8, 8), (1, 1), 0, jitter=0.2)
    rng = np.random.default_rng(0)
    levels = [transform(white, white[..., 0], rng)[0][0, 0, 0] for _ in range(300)]
    assert 80 <= min(levels) < 84 and 116 < max(levels) <= 120


# --------------------------------------------------------------------------------- gamma and blur


@pytest.mark.parametrize("setting", ["gamma", "blur"])
def test_gamma_and_blur_leave_labels_and_padding(setting):
    image, labels = regions()
    plain = TrainTransform((180, 172), scale=(1, 1), flip=0.0)
    other = TrainTransform((180, 172), scale=(1, 1), flip=0.0, **{setting: 2.0})
    changed = 0
    for seed in range(20):
        result, result_labels = plain(image, labels, np.random.default_rng(seed))
        drawn, drawn_labels = other(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(result_labels, drawn_labels)
        assert (drawn[drawn_labels == IGNORE] == MEAN_COLOR).all()
        changed += not np.array_equal(result, drawn)
    assert changed >= 19 if setting == "gamma" else 4 <= changed <= 16


def test_gamma_raises_values_to_powers_within_its_strength():
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    transform = TrainTransform((16, 16), (1, 1), 0, gamma=1.0)
    rng, exponents = np.random.default_rng(0), []
    for _ in range(300):
        result, _ = transform(image, image[..., 0], rng)
        exponent = np.log(result[8, 0, 0] / 255) / np.log(128 / 255)
        np.testing.assert_allclose(result, 255 * (image / 255) ** exponent, atol=2.5)
        exponents.append(exponent)
    assert 0.49 < min(exponents) < 0.55 and 1.85 < max(exponents) < 2.02
    assert abs(np.median(np.log2(exponents))) < 0.15


def test_blur_is_a_gaussian_of_up_to_its_deviation():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    transform = TrainTransform((41, 41), (1, 1), 0, blur=2.0)
    rng = np.random.default_rng(0)
    peaks = [int(transform(image, image[..., 0], rng)[0].max()) for _ in range(400)]
    sharp = sum(peak == 255 for peak in peaks)
    assert 170 < sharp < 260  # half, and those of nearly no deviation
    assert min(peaks) == pytest.approx(255 / (2 * np.pi * 2.0**2), abs=2)


# ------------------------------------------------------------------------------------------- focus


def test_focus_shows_each_class_of_the_picture_equally_often():
    """One pixel of class 7 and a row of class 3 in a large picture of class 1."""
    image, labels = pair(200, 300)
    labels[:] = 1
    labels[150] = 3
    labels[31, 260] = 7
    labels[:, 0] = IGNORE

    def seen(focus):
        transform = TrainTransform((40, 50), scale=(1, 1), focus=focus)
        rng = np.random.default_rng(0)
        shown = [transform(image, labels, rng)[1] for _ in range(600)]
        return [np.mean([(result == label).any() for result in shown]) for label in (1, 3, 7)]

    _, row, pixel = seen(0.0)
    assert row < 0.35 and pixel < 0.05
    _, row, pixel = seen(1.0)
    assert 0.4 < row < 0.65 and 0.28 < pixel < 0.42
    _, _, pixel = seen(0.5)
    assert 0.12 < pixel < 0.24


@pytest.mark.parametrize("scale", [0.3, 0.77, 1.0, 1.9])
def test_a_focused_window_shows_its_pixel_wherever_that_lies(scale):
    rng = np.random.default_rng(0)
    for _ in range(300):
        side, wanted = rng.integers(30, 200, 2)
        at = int(rng.integers(side))
        window = _window(int(side), scale, int(wanted), rng, at)
        if round(side * scale) > 1:
            assert window.start - 1 <= at <= window.stop  # edges are whole source pixels
        assert window.before + window.size + window.after == wanted


def test_focus_on_a_picture_without_labels_is_a_plain_crop():
    image, labels = pair(60, 70)
    labels[:] = IGNORE
    result, found = TrainTransform((30, 30), focus=1.0)(image, labels, np.random.default_rng(0))
    assert result.shape == (30, 30, 3) and (found == IGNORE).all()


# ------------------------------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": (0, 5)}, r"crop must be .* at least 1, got \(0, 5\)"),
        ({"scale": (0, 1)}, r"scale must be .*got \(0, 1\)"),
        ({"scale": (2, 1)}, r"scale must be .*got \(2, 1\)"),
        ({"scale": (1, float("inf"))}, "scale must be"),
        ({"flip": 1.5}, "flip must be from 0 to 1, got 1.5"),
        ({"jitter": -0.1}, "jitter must be from 0 to 1, got -0.1"),
        ({"focus": 1.1}, "focus must be from 0 to 1, got 1.1"),
        ({"gamma": -1}, "gamma must be at least 0, got -1"),
        ({"blur": float("nan")}, "blur must be at least 0, got nan"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"crop": (8, 8), **values})


def test_arrays_are_checked():
    image, labels = pair(8, 8)
    transform = TrainTransform((4, 4))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"image must be uint8 .*got float64 of shape \(8, 8, 3\)"):
        transform(image / 255, labels, rng)
    with pytest.raises(ValueError, match=r"labels must be uint8 of shape \(8, 8\) .*\(8, 7\)"):
        transform(image, labels[:, 1:], rng)
    with pytest.raises(ValueError, match=r"labels must be .*got int64"):
        transform(image, labels.astype(np.int64), rng)
