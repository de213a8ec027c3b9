"""Pictures of more than 8 bits: which values become black and white, in every kind of file."""

import io
import struct
import warnings
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from pictures import png16
from PIL import Image

from fassd.inference.pictures import to_picture
from fassd.inference.segmenter import Segmenter
from fassd.io import images
from fassd.io.images import ImageError, ImageWarning, array_to_rgb, examine_image, read_image
from fassd.io.levels import as_range, to_levels

GREY = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
GREY[0, :2] = 0, 255
COLOR = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
COLOR[0, 0] = 0, 255, 7


def deep(levels, bits):
    """8-bit levels in the values that so many bits hold."""
    return np.round(levels * ((2**bits - 1) / 255)).astype(np.uint16)


def pil(values, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def pnm(values, highest, magic="P5"):
    head = f"{magic}\n{values.shape[1]} {values.shape[0]}\n{highest}\n".encode()
    if magic in ("P2", "P3"):
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2").tobytes()


def tiff(values, order="<", photometric=2, extra=()):
    """An uncompressed TIFF of 16-bit channels, which Pillow does not write."""
    height, width, channels = values.shape
    entries = {
        256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [photometric],
        273: [8], 277: [channels], 278: [height], 279: [values.nbytes],
    } | ({338: list(extra)} if extra else {})  # fmt: skip
    data = values.astype(f"{order}u2").tobytes()
    place = 8 + len(data)
    more, table = b"", b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            packed, more = struct.pack(f"{order}I", after + len(more)), more + packed
        table += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    return head + data + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + more


def png16_with_alpha(values, color_type):
    """A 16-bit PNG of grey (4) or colours (6) with full alpha."""
    alpha = np.full((*values.shape[:2], 1), 65535, np.uint16)
    data = bytearray(png16(np.concatenate([values, alpha], axis=2).astype(">u2")))
    data[25] = color_type
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


GREYS = {
    "I;16 PNG": pil,
    "I;16 TIFF": lambda values: pil(values, "TIFF"),
    "I;16B TIFF": lambda values: tiff(values[..., None], ">", 1),
    "I;16 TIFF, LZW": lambda values: pil(values, "TIFF", compression="tiff_lzw"),
    "mode I": lambda values: pil(values.astype(np.int32), "TIFF"),
    "float": lambda values: pil(values.astype(np.float32), "TIFF"),
    "JPEG 2000": lambda values: pil(values, "JPEG2000"),
    "PGM": lambda values: pnm(values, 65535),
    "plain PGM": lambda values: pnm(values, 65535, "P2"),
    "LA PNG": lambda values: png16_with_alpha(values[..., None], 4),
}
COLORS = {
    "PNG": lambda values: png16(values.astype(">u2")),
    "RGBA PNG": lambda values: png16_with_alpha(values, 6),
    "TIFF": tiff,
    "TIFF, big-endian": lambda values: tiff(values, ">"),
    "TIFF, four channels": lambda values: tiff(np.dstack([values, values[..., :1]]), extra=(0,)),
    "PPM": lambda values: pnm(values, 65535, "P6"),
    "plain PPM": lambda values: pnm(values, 65535, "P3"),
}
FILES = [(name, make, GREY) for name, make in GREYS.items()]
FILES += [(name, make, COLOR) for name, make in COLORS.items()]


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(("make", "levels"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_values_of_a_range_fill_all_levels(tmp_path, make, levels, bits):
    path = tmp_path / "deep.img"
    path.write_bytes(make(deep(levels, bits)))
    expected = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, 2)
    for range in ((0, 2**bits - 1), "auto"):
        reading = examine_image(path, range)
        np.testing.assert_array_equal(reading.pixels, expected)
        assert reading.range == (0, 2**bits - 1) and reading.remarks == ()


@pytest.mark.parametrize(
    ("make", "levels"), [f[1:] for f in FILES if f[0] != "float"],
    ids=[f[0] for f in FILES if f[0] != "float"],
)  # fmt: skip
def test_top_bits_that_are_empty_are_told(tmp_path, make, levels):
    path = tmp_path / "deep.img"
    for bits in (8, 10, 12, 14):
        path.write_bytes(make(deep(levels, bits)))
        told = rf"upper {16 - bits} of 16 bits are empty.* such as 0:{2**bits - 1} \(--range"
        with pytest.warns(ImageWarning, match=told):
            assert read_image(path).max() < 64
    for values in (deep(levels, 16), deep(levels, 16) // 2, deep(levels, 8) * 0):
        path.write_bytes(make(values))
        reading = examine_image(path)
        assert reading.range == (0, 65535)
        # Of colours Pillow gives the high bytes alone: all black, they may hold 8 bits.
        assert not reading.remarks or not values.any()
        np.testing.assert_array_equal(
            reading.pixels[..., 0], (values >> 8).reshape(5, 7, -1)[..., 0]
        )


def test_a_file_that_tells_its_own_range_is_read_by_it(tmp_path):
    path = tmp_path / "deep.img"
    for highest in (300, 1023, 4095, 40000):
        path.write_bytes(pnm(np.array([[0, highest // 2, highest]]), highest))
        reading = examine_image(path)
        assert reading.range == (0, highest) and reading.remarks == ()
        assert reading.pixels[0, [0, 2], 0].tolist() == [0, 255]
        assert abs(int(reading.pixels[0, 1, 0]) - 127) <= 1
        # Values are those of the file, whatever Pillow makes of them.
        assert examine_image(path, (0, highest // 2)).pixels[0, :, 0].tolist() == [0, 255, 255]


def test_12_bit_tiff_and_jpeg_2000_have_12_bits(tmp_path):
    path = tmp_path / "deep.tif"
    path.write_bytes(_tiff12([0, 0x123, 0x800, 0xFFF]))
    reading = examine_image(path)
    assert reading.range == (0, 4095) and not reading.remarks
    assert reading.pixels[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]

    codec = av.CodecContext.create("jpeg2000", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 32, 32, "gray12le", Fraction(1)
    codec.options = {"pred": "1", "format": "jp2"}
    frame = av.VideoFrame(32, 32, "gray12le")
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 4
    row = frame.planes[0].line_size // 2
    frame.planes[0].update(np.pad(values, ((0, 0), (0, row - 32))).tobytes())
    path.write_bytes(bytes((codec.encode(frame) + codec.encode(None))[0]))
    for range in (None, (0, 4095)):
        reading = examine_image(path, range)
        assert reading.range == (0, 4095)
        np.testing.assert_array_equal(reading.pixels[..., 1], values >> 4)


def _tiff12(values):
    """One row of 12-bit grey, two values in three bytes."""
    bits = "".join(f"{value:012b}" for value in values)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    whole = bytearray(tiff(np.zeros((1, len(values), 1)), photometric=1))
    whole[8 : 8 + len(data)] = data
    place = whole.index(struct.pack("<HHI", 258, 3, 1))
    whole[place + 8 : place + 10] = struct.pack("<H", 12)
    return bytes(whole)


def test_negative_and_wide_values_need_a_range(tmp_path):
    path = tmp_path / "ct.tif"
    Image.fromarray(np.array([[-1000, 0, 1000, 100_000]], np.int32)).save(path)
    with pytest.raises(ImageError, match=r"must be 0 to 65535, got -1000 .. 100000; others need a"):
        read_image(path)
    assert read_image(path, (-1000, 1000))[0, :, 0].tolist() == [0, 127, 255, 255]
    Image.fromarray(np.array([[-1.0, 0.0, 1.0, 7.0]], np.float32)).save(path)
    assert read_image(path, "-1:1")[0, :, 0].tolist() == [0, 128, 255, 255]
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(path)
    for range in (None, (0, 1), "auto"):
        with pytest.raises(ImageError, match="floating-point pixels must"):
            read_image(path, range)


def test_8_bits_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOR).save(path)
    reading = examine_image(path, (0, 4095))
    np.testing.assert_array_equal(reading.pixels, COLOR)
    assert reading.range is None and reading.remarks == ()


def test_the_default_is_the_range_0_to_65535():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(array_to_rgb(values, (0, 65535)), array_to_rgb(values))
    np.testing.assert_array_equal(array_to_rgb(values)[..., 0], values >> 8)


def test_narrow_ranges_reach_white():
    for high in (1, 100, 254, 255, 256, 1000):
        levels, used = to_levels(np.array([0, high, high + 5]), (0, high), (0, 65535))
        assert levels.tolist() == [0, 255, 255] and used == (0, high)
    assert to_levels(np.full(3, 9), "auto", (0, 65535))[0].tolist() == [0, 0, 0]
    assert to_levels(np.full(3, 0.5), "auto", (0, 1))[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("written", "read"),
    [(None, None), ("auto", "auto"), ("0:4095", (0, 4095)), ("-1.5:2e3", (-1.5, 2000))],
)
def test_ranges(written, read):
    assert as_range(written) == read


@pytest.mark.parametrize(
    "bad", ["4095", "5:5", "9:1", "a:b", "0:1:2", "0:inf", "nan:1", 12, [1], ""]
)
def test_ranges_that_are_none(bad):
    with pytest.raises(ValueError, match=r"range must be auto or LOW:HIGH, .* got "):
        as_range(bad)


def test_arrays_and_pillow_images_take_a_range(tmp_path):
    values = deep(COLOR, 12)
    np.testing.assert_array_equal(to_picture(values, (0, 4095)), COLOR)
    np.testing.assert_array_equal(to_picture(values.astype(np.int64), (0, 4095)), COLOR)
    np.testing.assert_array_equal(to_picture(Image.fromarray(deep(GREY, 12)), "auto")[..., 1], GREY)
    opaque = np.dstack([values, np.full(GREY.shape, 65535, np.uint16)])
    np.testing.assert_array_equal(to_picture(opaque, (0, 4095)), COLOR)
    path = tmp_path / "deep.png"
    path.write_bytes(png16(values.astype(">u2")))
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_picture(image, (0, 4095)), COLOR)
    with pytest.warns(ImageWarning, match="upper 4 of 16 bits are empty"):
        to_picture(values)
    with pytest.raises(ImageError, match="or with a range of any integers, got int64"):
        to_picture(values.astype(np.int64))


def test_a_segmenter_reads_by_its_range(tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (64, 96), np.uint8)
    path = tmp_path / "deep.png"
    Image.fromarray(deep(picture, 12)).save(path)
    settings = {"weights": "streets", "backend": "reference", "device": "cpu"}
    plain = Segmenter("fassd_net_l2", **settings)
    ranged = Segmenter("fassd_net_l2", **settings, range=(0, 4095))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (path, deep(picture, 12)):
            np.testing.assert_array_equal(ranged.predict(image), plain.predict(picture))
    with pytest.raises(ValueError, match="range must be auto or LOW:HIGH"):
        Segmenter("fassd_net_l2", range="black")


def test_values_beyond_16_bits_of_memory_are_not_made(monkeypatch):
    """16-bit pictures go through a table, not through floats of the whole picture."""
    sizes = []
    real = np.clip
    monkeypatch.setattr(np, "clip", lambda a, *b, **c: sizes.append(a.size) or real(a, *b, **c))
    images.array_to_rgb(np.zeros((400, 400), np.uint16), (0, 4095))
    assert sizes == [65536]
