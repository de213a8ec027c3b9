import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import png, png16
from PIL import Image, TiffImagePlugin

from fassd.data.masks import MaskCode, examine_mask
from fassd.io.files import check_file, check_folder
from fassd.io.images import (
    BACKGROUND,
    FORMATS,
    SUFFIXES,
    ImageError,
    ImageWarning,
    array_to_rgb,
    examine_image,
    formats,
    pil_to_rgb,
    read_image,
    write_image,
    written_suffixes,
)


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)


def saved(folder, name, image, **options):
    path = folder / name
    image.save(path, **options)
    return path


# ---------------------------------------------------------------------------------------- reading


def test_rgb_is_exact(tmp_path, rgb):
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
        np.testing.assert_array_equal(read_image(saved(tmp_path, name, Image.fromarray(rgb))), rgb)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode, rgb):
    stored = {"I;16": "u2", "I": "i4", "F": "f4"}.get(mode)
    zeros = np.zeros((7, 11), stored)
    result = pil_to_rgb(Image.fromarray(zeros) if stored else Image.fromarray(rgb).convert(mode))
    assert result.shape == (7, 11, 3) and result.dtype == np.uint8


def test_grey_has_three_equal_channels(tmp_path, rgb):
    result = read_image(saved(tmp_path, "grey.png", Image.fromarray(rgb[..., 0])))
    np.testing.assert_array_equal(result, np.repeat(rgb[..., :1], 3, 2))


def test_transparency_is_laid_over_the_mean_colour(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (255, 255, 255, 128)]
    result = read_image(saved(tmp_path, "a.png", Image.fromarray(pixels)))
    half = [round((128 * 255 + 127 * back) / 255) for back in BACKGROUND]
    assert result[0, :2].tolist() == [[200, 0, 0], list(BACKGROUND)]
    np.testing.assert_allclose(result[0, 2], half, atol=1)
    assert BACKGROUND == (124, 116, 104)


def test_palette_transparency_counts(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    path = saved(tmp_path, "p.png", image, transparency=1)
    assert read_image(path).tolist() == [[[10, 20, 30], list(BACKGROUND)]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(undo(upright)))
    path = saved(tmp_path, "turned.png", image, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.avif"])
def test_of_several_pictures_the_first_is_read_and_the_others_are_told(tmp_path, name):
    lossless = {"lossless": True} if name == "a.webp" else {}
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue", "lime")]
    one = saved(tmp_path, f"one-{name}", frames[0])
    path = saved(tmp_path, name, frames[0], save_all=True, append_images=frames[1:], **lossless)
    told = f"{re.escape(name)}: only the first of several pages or frames is read"
    with pytest.warns(ImageWarning, match=told):
        picture = read_image(path)
    np.testing.assert_allclose(picture, np.full((6, 8, 3), (255, 0, 0)), atol=2)
    assert examine_image(one).remarks == ()


def test_previews_are_not_passed_over(tmp_path):
    """Smaller copies in a TIFF, and what phones put behind a JPEG."""
    colors = [
        Image.new("RGB", (16 >> n, 12 >> n), color) for n, color in enumerate(("red", "blue"))
    ]
    pyramid = tmp_path / "a.tif"
    with TiffImagePlugin.AppendingTiffWriter(str(pyramid), True) as file:
        for reduced, image in enumerate(colors):
            image.save(file, format="TIFF", tiffinfo={254: reduced})
            file.newFrame()
    phone = saved(tmp_path, "a.jpg", colors[0], format="MPO", save_all=True, append_images=colors)
    for path in (pyramid, phone):
        with Image.open(path) as image:
            assert image.n_frames > 1
        reading = examine_image(path)
        assert reading.remarks == () and reading.pixels.shape == (12, 16, 3)


def test_damage_behind_the_first_page_does_not_matter(tmp_path, rgb):
    pages = [Image.fromarray(rgb)] * 2
    path = saved(tmp_path, "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with Image.open(path) as image:
        image.seek(1)
        second = image.tag_v2.offset
    path.write_bytes(path.read_bytes()[:second] + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(examine_image(path).pixels, rgb)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 0.5, 1]]), [0, 128, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[[7]], [[9]]], np.uint8), [7, 9]),
        (np.array([[0xFFFF, 0x1234]], np.uint16), [255, 0x12]),
    ],
)
def test_arrays(array, expected):
    assert array_to_rgb(array)[..., 2].ravel().tolist() == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 5), np.uint8), r"got \(2, 2, 5\)"),
        (np.zeros((0, 2, 3), np.uint8), r"got \(0, 2, 3\)"),
        (np.zeros((2, 2), np.int64), "got int64"),
        (np.full((2, 2), 255.0), r"must lie in 0 \.\. 1, got 255"),
        (np.full((2, 2), np.nan), "got NaN at row 0, column 0"),
    ],
)
def test_unsuitable_arrays_are_named(array, message):
    with pytest.raises(ImageError, match=message):
        array_to_rgb(array)


# ------------------------------------------------------------------------------------ broken files


def jpeg_bytes():
    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is neither a file nor a folder"),  # which it does not wait for
        (Path.touch, "is empty"),
        (lambda path: path.write_bytes(b"hello"), "is not a picture"),
        (lambda path: path.write_bytes(jpeg_bytes()[:1500]), "truncated"),
        (lambda path: path.write_bytes(png16(np.zeros((8, 8, 3), ">u2"))[:50]), "truncated"),
        # Refused before it is decoded.
        (
            lambda path: path.write_bytes(png(30_000, 30_000, 16, b"")),
            "more than 179 million.*bomb",
        ),
    ],
    ids=["missing", "folder", "pipe", "empty", "text", "half a JPEG", "half a PNG", "bomb"],
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, make, reason):
    make(tmp_path / "broken.jpg")
    with pytest.raises(ImageError, match=rf"^{tmp_path}/broken\.jpg: .*{reason}"):
        read_image(tmp_path / "broken.jpg")


def test_the_limit_of_pixels_is_exact_and_told(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png", Image.new("1", (30, 20)))
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    told = (
        r"a\.png: has 20x30 pixels; more than 0.000599 million .* \(--max-pixels of fassd predict"
    )
    with pytest.raises(ImageError, match=told):
        read_image(path, max_pixels=599)
    # Pillow's own limit holds, too, and a program may raise it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(ImageError, match=r"has 600 pixels; more than 0.000598 million"):
        read_image(path, max_pixels=600)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == read_image(path, max_pixels=600).shape == (20, 30, 3)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A file that is there if Ghostscript was called."""
    called, programs = tmp_path / "called", tmp_path / "bin"
    programs.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return called


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
IN_EPS = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(POSTSCRIPT).to_bytes(4, "little")


@pytest.mark.parametrize("content", [POSTSCRIPT, IN_EPS + bytes(18) + POSTSCRIPT])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.eps", "a"])
def test_postscript_starts_no_program_whatever_it_is_called(tmp_path, ghostscript, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    code = MaskCode("ids", {0: 0})
    for read in (read_image, lambda path: examine_mask(path, code)):
        with pytest.raises(ImageError, match=r"not a picture in a format that is read here \(AVIF"):
            read(path)
    with Image.open(path) as image, pytest.raises(ImageError, match="is PostScript"):
        pil_to_rgb(image)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["ICO", "PCX", "PSD", "WMF", "FLI", "SPIDER", "XPM"])
def test_formats_outside_the_list_are_not_opened(tmp_path, monkeypatch, kind):
    Image.init()
    tried = []
    monkeypatch.setitem(Image.OPEN, kind, (lambda *_: tried.append(kind), None))
    (tmp_path / "a.png").write_bytes(b"anything")
    with pytest.raises(ImageError, match="is not a picture"):
        read_image(tmp_path / "a.png")
    assert not tried and kind not in FORMATS


def test_formats_are_those_of_the_endings():
    known = Image.registered_extensions()
    assert set(formats()) <= set(FORMATS)
    assert {known[ending] for ending in SUFFIXES if ending in known} == set(formats())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_read_or_raise_image_error_and_nothing_else(tmp_path_factory, data):
    original = data.draw(st.sampled_from([jpeg_bytes(), png16(np.ones((9, 9, 3), ">u2"))]))
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.img"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        image = examine_image(path).pixels
    except ImageError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert image.ndim == 3 and image.shape[2] == 3


# ---------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_survive_writing(tmp_path, dtype):
    labels = np.arange(20, dtype=dtype).reshape(4, 5) + dtype(200)
    write_image(tmp_path / "new" / "labels.png", labels)
    with Image.open(tmp_path / "new" / "labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, rgb):
    path = tmp_path / "picture.png"
    write_image(path, rgb)
    before = path.read_bytes()

    def interrupted(self, stream, **options):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, rgb * 0)
    assert os.listdir(tmp_path) == ["picture.png"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", written_suffixes())
def test_every_ending_that_is_offered_is_written_in_colours(tmp_path, suffix):
    picture = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    write_image(tmp_path / f"a{suffix}", picture)
    assert abs(read_image(tmp_path / f"a{suffix}").astype(int) - picture).max() <= 8


def test_unknown_ending(tmp_path, rgb):
    with pytest.raises(ValueError, match=r"pictures are written as .*\.png.*, got '\.xyz'"):
        write_image(tmp_path / "a.xyz", rgb)


def test_a_folder_to_write_to_is_checked_and_left_alone(tmp_path):
    check_folder(tmp_path / "new" / "deeper")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*deeper: .*file: not a folder"):
        check_folder(tmp_path / "file" / "deeper")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["out.png", "p.GIF", "x.mp4", "scores.json", "a.b.onnx"])
def test_the_name_of_a_file_is_no_folder_unless_there_is_one(tmp_path, name):
    with pytest.raises(ValueError, match=rf"cannot write into .*{name}: it is the name of a file"):
        check_folder(tmp_path / name)
    (tmp_path / name).mkdir()
    check_folder(tmp_path / name)
    check_folder(tmp_path / "run.v2")
    check_file(tmp_path / "new.png/a.png")
