import importlib.util
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from fassd.io.bands import read_picture
from fassd.io.images import ImageError, ImageWarning, read_image
from fassd.io.tiff import MOST_BYTES, ArrayRows, TiffRows, open_rows, write_tiff

HEIGHT, WIDTH = 150, 131
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = GREY.astype(np.uint16) * 256 + 7


def written(path, array, **options):
    tifffile.imwrite(path, array, metadata=None, **options)
    return path


KINDS = {
    "one strip": (RGB, {"photometric": "rgb"}),
    "strips": (RGB, {"photometric": "rgb", "rowsperstrip": 7}),
    "deflated strips": (RGB, {"photometric": "rgb", "rowsperstrip": 16, "compression": "zlib"}),
    "tiles": (RGB, {"photometric": "rgb", "tile": (32, 48)}),
    "deflated tiles": (
        RGB,
        {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "predictor": True},
    ),
    "bands apart": (
        np.moveaxis(RGB, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 9},
    ),
    "grey": (GREY, {"photometric": "minisblack", "tile": (32, 32), "compression": "zlib"}),
    "white is zero": (GREY, {"photometric": "miniswhite"}),
    "16 bits": (DEEP, {"photometric": "minisblack", "byteorder": ">", "rowsperstrip": 11}),
    "RGBA": (
        np.dstack([RGB, GREY]),
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (16, 32)},
    ),
    "a fourth band that says nothing": (
        np.dstack([RGB, GREY]),
        {"photometric": "rgb", "extrasamples": ["unspecified"], "rowsperstrip": 8},
    ),
    "16 bits and a fourth band that says nothing": (
        np.dstack([RGB, GREY]).astype(np.uint16) * 256,
        {"photometric": "rgb", "extrasamples": ["unspecified"]},
    ),
    "12 bits": (DEEP >> 4, {"photometric": "minisblack", "bitspersample": 12, "rowsperstrip": 7}),
    "16 bits, white is zero": (DEEP, {"photometric": "miniswhite"}),
    "floats, white is zero": (GREY / np.float32(255), {"photometric": "miniswhite"}),
    "BigTIFF": (RGB, {"photometric": "rgb", "bigtiff": True}),
    "palette": (
        GREY % 5,
        {
            "photometric": "palette",
            "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256) * 80,
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole_picture(kind, tmp_path):
    array, options = KINDS[kind]
    path = written(tmp_path / "a.tif", array, **options)
    whole = read_image(path)
    with TiffRows(path) as rows:
        assert (rows.height, rows.width) == whole.shape[:2] == (HEIGHT, WIDTH)
        for first, last in ((0, HEIGHT), (0, 1), (37, 101), (5, 40), (HEIGHT - 1, HEIGHT)):
            strip = rows.read(first, last)
            assert strip.dtype == np.uint8
            np.testing.assert_array_equal(strip, whole[first:last])


@pytest.mark.parametrize("bits", [9, 10, 14, 15])
def test_bits_that_only_tifffile_reads_fill_their_own_range(bits, tmp_path):
    values = RGB.astype(np.uint16) << (bits - 8)
    path = written(tmp_path / "a.tif", values, photometric="rgb", bitspersample=bits)
    with TiffRows(path) as rows:
        np.testing.assert_array_equal(rows.read(3, 90), RGB[3:90])
    np.testing.assert_array_equal(read_picture(path, 3), RGB)


@pytest.mark.parametrize("values, range", [(DEEP, (1000, 40000)), (GREY / np.float32(99), (0, 3))])
def test_a_range(values, range, tmp_path):
    path = written(tmp_path / "a.tif", values, photometric="minisblack", rowsperstrip=8)
    with TiffRows(path, range) as rows:
        np.testing.assert_array_equal(rows.read(20, 60), read_image(path, range)[20:60])


def test_floats_and_what_is_no_number(tmp_path):
    floats = GREY / np.float32(255)
    path = written(tmp_path / "f.tif", floats, photometric="minisblack", rowsperstrip=8)
    with TiffRows(path) as rows:
        np.testing.assert_array_equal(rows.read(0, HEIGHT), read_image(path))
    floats[77, 5] = np.nan
    written(path, floats, photometric="minisblack", rowsperstrip=8)
    with TiffRows(path) as rows:
        rows.read(0, 77)
        with pytest.raises(ImageError, match=r"f\.tif: .* got NaN at row 77, column 5"):
            rows.read(60, 80)
    path = written(tmp_path / "g.tif", floats[:50] * 300, photometric="minisblack")
    with (
        TiffRows(path) as rows,
        pytest.raises(ImageError, match=r"g\.tif: rows from 3 on.*0 \.\. 1"),
    ):
        rows.read(3, 9)
    with pytest.raises(ImageError, match=r"g\.tif: a range of auto"):
        TiffRows(path, "auto")


def test_other_pictures_are_read_whole(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    rows = open_rows(tmp_path / "a.png")
    assert isinstance(rows, ArrayRows)
    np.testing.assert_array_equal(rows.read(3, 9), RGB[3:9])
    with pytest.raises(ImageError, match="million pixels"):
        open_rows(tmp_path / "a.png", max_pixels=100)
    assert isinstance(open_rows(written(tmp_path / "b.TIFF", RGB, photometric="rgb")), TiffRows)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_file_is_named_with_the_place(compression, tmp_path):
    path = tmp_path / "cut.tif"
    written(path, RGB, photometric="rgb", rowsperstrip=10, compression=compression)
    with tifffile.TiffFile(path) as file:
        end = file.pages[0].dataoffsets[12]
    data = path.read_bytes()
    with path.open("r+b") as file:  # tifffile writes the directory first
        file.truncate(end + 5)
    assert len(data) > end + 5
    with TiffRows(path) as rows:
        np.testing.assert_array_equal(rows.read(0, 120), RGB[:120])
        with pytest.raises(ImageError, match=r"cut\.tif: is truncated: .*rows 120 to 129"):
            rows.read(110, 150)


def test_damaged_tiles(tmp_path):
    path = written(tmp_path / "a.tif", GREY, photometric="minisblack", tile=(64, 64), compression=8)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[4]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with TiffRows(path) as rows:
        rows.read(0, 60)
        with pytest.raises(
            ImageError, match=r"a\.tif: cannot be decoded at tile 4, rows 64 to 127, from column 64"
        ):
            rows.read(60, 70)


def test_a_tile_that_holds_far_more_than_it_says(tmp_path):
    path = tmp_path / "bomb.tif"
    bomb = zlib.compress(bytes(50 << 20), 9)
    written(path, GREY[:64, :64], photometric="minisblack", tile=(64, 64), compression=8)
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        offset, count = tags["TileOffsets"].valueoffset, tags["TileByteCounts"].valueoffset
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = struct.pack("<I", len(data))
    data[count : count + 4] = struct.pack("<I", len(bomb))
    path.write_bytes(bytes(data) + bomb)
    with TiffRows(path) as rows, pytest.raises(ImageError, match="holds more than its size says"):
        rows.read(0, 10)


def with_tags(path, **changed):
    """Overwrite values of the first page's tags."""
    with tifffile.TiffFile(path) as file:
        places = {
            name: (tag.valueoffset, tag.dtype)
            for name, tag in ((name, file.pages[0].tags[name]) for name in changed)
        }
    data = bytearray(path.read_bytes())
    for name, (at, dtype) in places.items():
        kind = "<H" if dtype == 3 else "<I"
        data[at : at + struct.calcsize(kind)] = struct.pack(kind, changed[name])
    path.write_bytes(data)
    return path


def test_hostile_sizes(tmp_path):
    def tiled():
        return written(tmp_path / "h.tif", GREY, photometric="minisblack", tile=(64, 64))

    with pytest.raises(ImageError, match=r"h\.tif: has \d+x\d+ pixels; at most"):
        TiffRows(with_tags(tiled(), ImageLength=2**31 - 1))
    with pytest.raises(ImageError, match=r"h\.tif: has 9 tiles where its size needs 196608"):
        TiffRows(with_tags(tiled(), ImageLength=1 << 22))
    path = tiled()
    with tifffile.TiffFile(path) as file:
        wide = file.pages[0].tags["TileWidth"].dtype == 4
    huge = 2**31 - 16 if wide else 65520
    with pytest.raises(ImageError, match=rf"h\.tif: .*at most {MOST_BYTES:,} are decoded at once"):
        TiffRows(with_tags(path, TileWidth=huge, TileLength=huge))
    with pytest.raises(ImageError, match=r"h\.tif: .*tile"):
        TiffRows(with_tags(tiled(), TileWidth=0))


def test_a_million_pages_are_not_looked_for(tmp_path):
    path = written(tmp_path / "p.tif", GREY, photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        begin, count = file.pages[0].offset, len(file.pages[0].tags)
    data = bytearray(path.read_bytes())
    after = begin + 2 + 12 * count
    data[after : after + 4] = struct.pack("<I", len(data))
    page = struct.pack("<H", 0)
    pages = b"".join(page + struct.pack("<I", len(data) + 6 * (i + 1)) for i in range(1_000_000))
    path.write_bytes(bytes(data) + pages)
    with TiffRows(path) as rows:
        np.testing.assert_array_equal(rows.read(0, 5)[..., 0], GREY[:5])


@pytest.mark.parametrize(
    ("array", "options", "told"),
    [
        (np.dstack([RGB, GREY]), {"photometric": "separated"}, "4 bands of the kind SEPARATED"),
        (RGB, {"photometric": "cielab"}, "3 bands of the kind CIELAB"),
        (RGB, {"photometric": "ycbcr"}, "3 bands of the kind YCBCR"),
        (RGB, {"photometric": "minisblack", "planarconfig": "contig"}, "3 bands of .* MINISBLACK"),
        (
            np.dstack([RGB, GREY]),
            {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            r"multiplied by their alpha \(ExtraSamples 1\)",
        ),
    ],
)
def test_colours_that_are_not_read(array, options, told, tmp_path):
    path = written(tmp_path / "a.tif", array, **options)
    with pytest.raises(ImageError, match=rf"a\.tif: has .*{told}"):
        TiffRows(path)


def test_further_pages_are_told_of(tmp_path):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as file:
        for reduced in (0, 0, 1):
            file.write(GREY, photometric="minisblack", metadata=None, subfiletype=reduced)
    with pytest.warns(ImageWarning) as caught:
        read_image(path)
    with open_rows(path) as rows:
        assert rows.remarks == ("only the first of several pages or frames is read",)
        assert str(caught[0].message).endswith(rows.remarks[0])
    Image.fromarray(RGB).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (9, 9))]
    )
    assert open_rows(tmp_path / "a.gif").remarks == (
        "only the first of several pages or frames is read",
    )


def test_what_is_not_read(tmp_path):
    two = written(tmp_path / "two.tif", RGB[..., :2], photometric="minisblack", planarconfig=1)
    with pytest.raises(ImageError, match=r"two\.tif: has 2 bands; 1, 3 or 4 are read"):
        TiffRows(two)
    long = written(tmp_path / "i.tif", GREY.astype(np.int32), photometric="minisblack")
    with pytest.raises(ImageError, match=r"i\.tif: has values of int32"):
        TiffRows(long)
    differ = written(tmp_path / "bands.tif", RGB, photometric="rgb")
    with tifffile.TiffFile(differ) as file:
        at = file.pages[0].tags["BitsPerSample"].valueoffset
    data = bytearray(differ.read_bytes())
    data[at : at + 6] = struct.pack("<3H", 8, 8, 16)
    differ.write_bytes(data)
    with pytest.raises(ImageError, match=r"bands\.tif: .*(differ|8, 8, 16)"):
        TiffRows(differ)
    turned = written(tmp_path / "turned.tif", RGB, photometric="rgb", extratags=[(274, 3, 1, 6, 1)])
    with pytest.raises(ImageError, match=r"turned\.tif: is stored turned \(orientation 6\)"):
        TiffRows(turned)
    for name, content in (("empty.tif", b""), ("text.tif", b"II*\0" + b"\xff" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}: is not a TIFF, or damaged"):
            TiffRows(tmp_path / name)
    with pytest.raises(ImageError, match=r"none\.tif: no such file"):
        TiffRows(tmp_path / "none.tif")


@pytest.mark.parametrize("shape, dtype", [((300, 517), np.uint8), ((20, 30), np.uint16)])
def test_labels_in_their_colours(shape, dtype, tmp_path):
    labels = np.random.default_rng(0).integers(0, 19, shape).astype(dtype)
    colors = np.random.default_rng(1).integers(0, 256, (19, 3), dtype=np.uint8)
    colors = colors if dtype == np.uint8 else None
    path = tmp_path / "folder" / "labels.tif"
    write_tiff(path, shape, lambda first, last: labels[first:last], dtype, colors)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        if colors is not None:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[labels])


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    def read(first, last):
        if last > 256:
            raise KeyboardInterrupt
        return RGB[:1].repeat(last - first, 0)

    with pytest.raises(KeyboardInterrupt):
        write_tiff(tmp_path / "a.tif", (1000, WIDTH), read)
    assert not list(tmp_path.iterdir())


def test_other_compressions_need_a_package(tmp_path):
    path = tmp_path / "lzw.tif"
    Image.fromarray(RGB).save(path, compression="tiff_lzw")
    with TiffRows(path) as rows:
        if importlib.util.find_spec("imagecodecs"):
            np.testing.assert_array_equal(rows.read(0, HEIGHT), RGB)
            return
        with pytest.raises(ImageError, match=r"lzw\.tif: cannot be decoded .* 'imagecodecs'"):
            rows.read(0, 1)
