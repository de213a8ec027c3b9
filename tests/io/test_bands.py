import contextlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from fassd.io.bands import array_to_bands, examine_picture, read_picture, shown
from fassd.io.images import ImageError, ImageWarning, resized, write_image

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
CONTIG = {"photometric": "minisblack", "planarconfig": "contig"}
FIVE = RNG.integers(0, 256, (6, 8, 5), np.uint8)


def saved(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (FIVE, {"planarconfig": "contig"}),
        (np.moveaxis(FIVE, 2, 0), {"planarconfig": "separate"}),
        (np.moveaxis(FIVE, 2, 0), {"photometric": "minisblack", "metadata": None}),  # pages
        (FIVE, {"planarconfig": "contig", "compression": "zlib", "tile": (16, 16)}),
        (FIVE, {"planarconfig": "contig", "bigtiff": True, "byteorder": ">"}),
        (FIVE.astype(np.uint16) * 257, {"planarconfig": "contig"}),
        (FIVE / np.float32(255), {"planarconfig": "contig"}),
    ],
)
def test_tiffs_of_five_bands(tmp_path, array, options):
    path = saved(tmp_path / "a.tif", array, **{"photometric": "minisblack", **options})
    for source in (path, str(path), path.read_bytes()):
        levels = read_picture(source, 5)
        assert levels.dtype == np.uint8 and levels.flags.c_contiguous
        np.testing.assert_array_equal(levels, FIVE)


def test_a_range_is_that_of_all_bands(tmp_path):
    path = saved(tmp_path / "a.tif", FIVE.astype(np.uint16) << 4, **CONTIG)
    np.testing.assert_array_equal(read_picture(path, 5, (0, 4095)), FIVE)
    with pytest.warns(ImageWarning, match=r"a\.tif: read as 0 to 65535, but the upper 4 of 16"):
        read_picture(path, 5)
    reading = examine_picture(path, 5, "auto")
    assert reading.range == (0, 4080) and reading.remarks == ()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_bands_of_pillow_are_as_they_are(tmp_path, mode):
    count = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    expected = FIVE[..., :count]
    values = expected[..., 0] if count == 1 else expected
    if mode == "1":
        image = Image.fromarray(values).convert("1", dither=Image.Dither.NONE)
        expected = np.where(expected > 127, 255, 0)
    elif mode in ("I;16", "F"):
        image = Image.fromarray(
            values / np.float32(255) if mode == "F" else values.astype(np.uint16) * 257
        )
    else:
        image = Image.fromarray(values, mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    image.save(path)
    np.testing.assert_array_equal(read_picture(path, count), expected)


def test_arrays():
    for array in (FIVE, FIVE.astype(np.uint16) * 257, FIVE / 255):
        np.testing.assert_array_equal(array_to_bands(array, 5), FIVE)
    assert array_to_bands(FIVE[..., 0], 1).shape == (6, 8, 1)
    np.testing.assert_array_equal(array_to_bands(FIVE.astype(np.int32) * 2, 5, (0, 510)), FIVE)
    for array in (FIVE[..., :4], FIVE[:0], FIVE[None]):
        with pytest.raises(ImageError, match=re.escape(f"must be (H, W, 5), got {array.shape}")):
            array_to_bands(array, 5)
    with pytest.raises(ImageError, match=r"bool, uint8, uint16 or floating.* got int64"):
        array_to_bands(FIVE.astype(np.int64), 5)
    broken = FIVE / 255
    broken[2, 3, 4] = np.nan
    for range in (None, (0, 1), "auto"):
        with pytest.raises(ImageError, match=r"floating-point pixels must (lie|be numbers)"):
            array_to_bands(broken, 5, range)


def test_what_a_person_sees():
    np.testing.assert_array_equal(shown(FIVE), FIVE[..., :3])
    np.testing.assert_array_equal(shown(FIVE[..., :2]), np.repeat(FIVE[..., :1], 3, 2))


def test_each_band_is_resized_as_a_picture_is():
    small = resized(FIVE, (4, 11))
    for index in range(5):
        alone = Image.fromarray(FIVE[..., index]).resize((11, 4), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(small[..., index], alone)
    assert resized(FIVE[..., :1], (4, 11)).shape == (4, 11, 1)


# ---------------------------------------------------------------------------------------- bad input


def complaint(source, count=5, **settings):
    with pytest.raises(ImageError) as caught:
        read_picture(source, count, **settings)
    return str(caught.value)


def test_other_bands_are_counted(tmp_path):
    path = saved(tmp_path / "a.tif", FIVE[..., :4], **CONTIG)
    assert complaint(path) == f"{path}: has 4 bands; the network takes 5"
    pages = [FIVE[..., index] for index in range(5)] * 2
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, contiguous=False)
    assert complaint(path) == f"{path}: has 6 or more bands; the network takes 5"
    assert complaint(path, 12) == f"{path}: has 10 bands; the network takes 12"
    write_image(tmp_path / "a.png", FIVE[..., :3])
    assert complaint(tmp_path / "a.png") == f"{tmp_path}/a.png: has 3 bands; the network takes 5"
    assert complaint(tmp_path / "a.png", 1).endswith("has 3 bands; the network takes 1")


def test_bands_that_differ(tmp_path):
    path = tmp_path / "a.tif"
    for other, what in (
        (FIVE[:5, :, 0], "shape (5, 8), band 0 (6, 8)"),
        (FIVE[..., 0] / 255, "dtype float64, band 0 uint8"),
    ):
        with tifffile.TiffWriter(path) as file:
            for page in (FIVE[..., 0], FIVE[..., 1], other):
                file.write(page, contiguous=False)
        assert f"a.tif: its band 2 has {what or 'dtype float64, band 0 uint8'}" in complaint(
            path, 3
        )


def test_a_million_pages_are_not_looked_for(tmp_path):
    """Every page points to itself as the next."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, FIVE[..., 0], metadata=None)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        end = page.offset + 2 + 12 * len(page.tags)
        data[end : end + 4] = int(page.offset).to_bytes(4, "little")
    assert re.search("has 6 or more bands|damaged", complaint(bytes(data)))


def test_sizes_are_known_before_anything_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.tif", FIVE, **CONTIG, tile=(16, 16))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("decoded"))
    assert "has 6x8 pixels; more than 4.7e-05 million are refused" in complaint(path, max_pixels=47)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("TileWidth", "TileLength"):
            tag = tiff.pages[0].tags[name]
            start = tag.offset + 8
            data[tag.offset + 2 : tag.offset + 4] = (4).to_bytes(2, "little")  # 32 bits
            data[start : start + 4] = (1 << 30).to_bytes(4, "little")
    assert "has tiles of 1073741824x1073741824 pixels" in complaint(bytes(data))


def test_damage_is_told(tmp_path):
    path = saved(tmp_path / "a.tif", FIVE, **CONTIG, compression="zlib")
    data = path.read_bytes()
    for cut in (4, 12, len(data) // 2, len(data) - 20):
        assert re.search("is damaged or truncated|has .* bands", complaint(data[:cut]))
    assert complaint(tmp_path / "b.tif") == f"{tmp_path}/b.tif: no such file"
    assert complaint(tmp_path) == f"{tmp_path}: is a folder, not a picture"
    assert complaint(b"") == "is empty"
    rng = np.random.default_rng(1)
    for _ in range(200):  # whatever is broken, the error is ours
        broken = bytearray(data)
        for place in rng.integers(4, len(data), 4):
            broken[place] = rng.integers(256)
        with contextlib.suppress(ImageError):
            assert read_picture(bytes(broken), 5).shape[2] == 5
