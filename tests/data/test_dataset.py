import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from data.trees import SIZE, encode, save, toy, write_card, write_tree
from PIL import Image
from torch.utils.data import DataLoader

from fassd.data.card import Pair
from fassd.data.cardfile import load_card
from fassd.data.dataset import SegmentationDataset, examine_pair
from fassd.data.masks import MaskCode, color_key, examine_mask
from fassd.io.images import ImageError, ImageWarning
from fassd.io.palette import IGNORE

IDS = MaskCode("ids", {0: IGNORE, 1: 0, 2: 1, 300: 1, 3: 2})
TABLE = np.array([IGNORE, 0, 1, 2], np.uint8)  # of the ids 0 to 3


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 4, SIZE).astype(np.uint8)


def read_mask(path, code):
    labels, remarks = examine_mask(path, code)
    assert remarks == []
    return labels


def png(pixels, depth, color_type, palette=b""):
    """A PNG of any bit depth; Pillow does not write all of them."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    rows = b""
    for row in pixels:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = (
        [chunk(b"IHDR", header), chunk(b"PLTE", palette)] if palette else [chunk(b"IHDR", header)]
    )
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---------------------------------------------------------------------------------- masks of ids


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_grey_masks_of_every_depth(tmp_path, ids, depth):
    (tmp_path / "mask.png").write_bytes(png(ids, depth, color_type=0))
    labels = read_mask(tmp_path / "mask.png", IDS)
    assert labels.dtype == np.uint8 and labels.shape == SIZE
    np.testing.assert_array_equal(labels, TABLE[ids])


@pytest.mark.parametrize("highest", [3, 18, 255, 300, 65535])
@pytest.mark.parametrize("magic", ["P2", "P5"])
def test_pgm_masks_of_any_largest_value(tmp_path, ids, highest, magic):
    """Pillow stretches 0 to the largest value over 8 or 16 bits."""
    head = f"{magic}\n{ids.shape[1]} {ids.shape[0]}\n{highest}\n".encode()
    body = " ".join(map(str, ids.ravel())).encode()
    if magic == "P5":
        body = ids.astype("u1" if highest < 256 else ">u2").tobytes()
    (tmp_path / "mask.pgm").write_bytes(head + body)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.pgm", IDS), TABLE[ids])


def test_masks_of_several_pages_are_told(tmp_path, ids):
    pages = [Image.fromarray(ids)] * 3
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    labels, remarks = examine_mask(tmp_path / "mask.tif", IDS)
    np.testing.assert_array_equal(labels, TABLE[ids])
    assert remarks == ["only the first of several pages or frames is read"]


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_palette_masks_are_indices_whatever_their_colours(tmp_path, ids, depth):
    colors = bytes([9, 9, 9] * 3 + [1, 2, 3])  # three indices look the same
    (tmp_path / "mask.png").write_bytes(png(ids, depth, 3, colors))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", IDS), TABLE[ids])


@pytest.mark.parametrize("color_type", [0, 3])
def test_1_bit_masks(tmp_path, ids, color_type):
    colors = bytes([255, 0, 0, 0, 0, 0]) if color_type == 3 else b""
    (tmp_path / "mask.png").write_bytes(png(ids & 1, 1, color_type, colors))
    labels = read_mask(tmp_path / "mask.png", MaskCode("ids", {0: 4, 1: 2}))
    np.testing.assert_array_equal(labels, np.where(ids & 1, 2, 4))


def test_16_bit_masks_hold_ids_beyond_255(tmp_path, ids):
    wide = ids.astype(np.uint16)
    wide[2, 3] = 300
    for name in ("mask.png", "mask.tif"):
        labels = read_mask(save(tmp_path / name, wide), IDS)
        assert labels[2, 3] == 1
        labels[2, 3] = TABLE[ids[2, 3]]
        np.testing.assert_array_equal(labels, TABLE[ids])


def test_32_bit_masks_must_fit_16_bits(tmp_path, ids):
    path = save(tmp_path / "mask.tif", ids.astype(np.int32))
    np.testing.assert_array_equal(read_mask(path, IDS), TABLE[ids])
    save(path, ids.astype(np.int32) + 65536)
    with pytest.raises(ImageError, match=r"mask\.tif: ids must be -1 to 65535, got 65536 to 65539"):
        read_mask(path, IDS)


def test_minus_one_is_ignored_where_the_card_says_so(tmp_path, ids):
    signed = ids.astype(np.int32)
    signed[2, 3:5] = -1
    path = save(tmp_path / "mask.tif", signed)
    with pytest.raises(ImageError, match=r"id -1 outside the card, in 2 pixels \(first at row 2"):
        read_mask(path, IDS)
    labels = read_mask(path, MaskCode("ids", {**IDS.labels, -1: IGNORE}))
    np.testing.assert_array_equal(labels, np.where(signed == -1, IGNORE, TABLE[ids]))
    assert labels[2, 3] == IGNORE
    card = toy(tmp_path / "toy", replace={"ignore: [0]": "ignore: [0, -1]"})
    assert card.masks[0].code.labels[-1] == IGNORE
    save(path, signed - 1)
    with pytest.raises(ImageError, match="ids must be -1 to 65535, got -2 to 2"):
        read_mask(path, IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_ids(tmp_path, ids, mode):
    path = tmp_path / "mask.png"
    Image.fromarray(ids).convert(mode).save(path)
    np.testing.assert_array_equal(read_mask(path, IDS), TABLE[ids])
    pixels = np.array(Image.fromarray(ids).convert(mode))
    if mode != "LA":
        pixels[2, 5, 1] += 1
        Image.fromarray(pixels).save(path)
        match = r"mask.png: .* must be grey .* at row 2, column 5 \(if its colours .*values: colors"
        with pytest.raises(ImageError, match=match):
            read_mask(path, IDS)
        pixels[2, 5, 1] -= 1
    if mode != "RGB":
        pixels[0, 0, -1] = 254
        Image.fromarray(pixels).save(path)
        with pytest.raises(ImageError, match="must be opaque: the card does not say what alpha"):
            read_mask(path, IDS)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_equal_channels_of_16_bits_keep_their_low_bytes(tmp_path, ids, color_type, channels):
    wide = ids.astype(np.uint16)
    wide[2, 3] = 300
    pixels = np.repeat(wide[..., None], channels, 2)
    if channels != 3:
        pixels[..., -1] = 65535
    content = png(pixels.reshape(SIZE[0], -1), 16, color_type)
    header = content[:16] + struct.pack(">I", SIZE[1]) + content[20:29]
    crc = struct.pack(">I", zlib.crc32(header[12:29]))
    (tmp_path / "mask.png").write_bytes(header + crc + content[33:])
    labels = read_mask(tmp_path / "mask.png", IDS)
    assert (labels[2, 3] == 1 and ids[2, 3] not in (2,)) or labels[2, 3] == TABLE[2]
    expected = TABLE[ids]
    expected[2, 3] = 1
    np.testing.assert_array_equal(labels, expected)


def test_exif_rotation_is_applied_to_both(tmp_path, ids):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, array in (("a.png", np.dstack([ids] * 3)), ("mask.png", ids)):
        Image.fromarray(array).save(tmp_path / name, exif=exif)
    sample, _ = examine_pair(Pair(tmp_path / "a.png", tmp_path / "mask.png", IDS))
    assert sample.labels.shape == SIZE[::-1]
    np.testing.assert_array_equal(sample.labels, TABLE[sample.image[..., 0]])


def test_an_id_outside_the_card_is_told_with_count_and_place(tmp_path, ids):
    ids[1:, 5] = 77
    ids[4, 2] = 9
    path = save(tmp_path / "mask.png", ids)
    with pytest.raises(ImageError) as caught:
        read_mask(path, IDS)
    assert str(caught.value) == (
        f"{path}: ids 9, 77 outside the card, in 6 pixels (first at row 1, column 5)"
    )


def test_many_ids_outside_the_card_are_cut_short(tmp_path):
    path = save(tmp_path / "mask.png", np.arange(100, 148, dtype=np.uint8).reshape(SIZE))
    with pytest.raises(ImageError, match=r"ids 100, 101, 102, 103, 104, \.\.\. \(48 in all\) outs"):
        read_mask(path, IDS)


def test_unlisted_ids_can_be_ignored(tmp_path, ids):
    ids[3] = 200
    code = MaskCode("ids", IDS.labels, ignore_unlisted=True)
    labels = read_mask(save(tmp_path / "mask.png", ids), code)
    assert (labels[3] == IGNORE).all()
    np.testing.assert_array_equal(labels[:3], TABLE[ids[:3]])


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_masks_of_ids_have_one_channel_of_whole_numbers(tmp_path, ids, mode):
    path = tmp_path / "mask.tif"
    Image.fromarray(ids).convert(mode).save(path)
    with pytest.raises(ImageError, match=f"mask.tif: .* got mode {mode} .*values: colors"):
        read_mask(path, IDS)


# ------------------------------------------------------------------------------------ other masks


COLORS = {(10, 20, 30): 0, (10, 20, 31): 1, (255, 255, 255): 2, (0, 0, 0): IGNORE}
COLOR_CODE = MaskCode("colors", {color_key(color): label for color, label in COLORS.items()})


def test_colours_are_told_apart_exactly(tmp_path):
    rgb = np.array([[*COLORS]], np.uint8)
    path = save(tmp_path / "mask.png", rgb)
    assert read_mask(path, COLOR_CODE).tolist() == [[0, 1, 2, IGNORE]]
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    assert read_mask(path, COLOR_CODE).tolist() == [[0, 1, 2, IGNORE]]  # through the palette
    rgb[0, 2] = (255, 255, 254)
    with pytest.raises(ImageError, match=r"colour \(255, 255, 254\) outside the card, in 1 pixels"):
        read_mask(save(path, rgb), COLOR_CODE)


def test_a_threshold_parts_jpeg_greys(tmp_path):
    code = MaskCode("threshold", {0: 0, 1: 1}, above=100)
    grey = np.array([[0, 100, 101, 255]], np.uint8)
    assert read_mask(save(tmp_path / "a.png", grey), code).tolist() == [[0, 0, 1, 1]]
    assert read_mask(save(tmp_path / "b.png", np.dstack([grey] * 3)), code).tolist() == [
        [0, 0, 1, 1]
    ]
    disc = np.zeros((64, 64), np.uint8)
    disc[16:48, 16:48] = 255
    Image.fromarray(disc).convert("RGB").save(tmp_path / "c.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "c.jpg", code), disc // 255)


# ------------------------------------------------------------------------------------ NumPy files


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_arrays_of_ids(tmp_path, ids, dtype):
    values = (ids & 1).astype(dtype) if dtype is bool else ids.astype(dtype)
    np.save(tmp_path / "mask.npy", values)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.npy", IDS), TABLE[values.astype(int)])
    if np.dtype(dtype).kind in "if":
        values[1, 1] = -1
        np.save(tmp_path / "mask.npy", values)
        code = MaskCode("ids", {**IDS.labels, -1: IGNORE})
        assert read_mask(tmp_path / "mask.npy", code)[1, 1] == IGNORE


def test_arrays_of_colours_and_greys(tmp_path):
    rgb = np.array([[*COLORS]], np.uint8)
    np.save(tmp_path / "mask.npy", rgb)
    assert read_mask(tmp_path / "mask.npy", COLOR_CODE).tolist() == [[*COLORS.values()]]
    np.save(tmp_path / "mask.npy", np.array([[0.0, 100, 101, 255]]))
    code = MaskCode("threshold", {0: 0, 1: 1}, above=100)
    assert read_mask(tmp_path / "mask.npy", code).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 1)), r"an array must be \(H, W\), got \(2, 3, 1\)"),
        (np.zeros((0, 3)), r"got \(0, 3\)"),
        (np.zeros(3), r"got \(3,\)"),
        (np.zeros((2, 3), complex), "must be of whole numbers, got complex128"),
        (np.array([["a"]]), "must be of whole numbers, got <U1"),
        (np.full((2, 3), 0.5), "must be of whole numbers, got others"),
        (np.full((2, 3), np.nan), "must be of whole numbers, got others"),
        (np.full((2, 3), 70000), "ids must be -1 to 65535, got 70000 to 70000"),
        (np.full((2, 3), 1e30), "ids must be -1 to 65535"),
        (np.array([[{}]], dtype=object), "is damaged or truncated"),
    ],
)
def test_arrays_that_are_no_mask(tmp_path, array, message):
    np.save(tmp_path / "mask.npy", array, allow_pickle=True)
    with pytest.raises(ImageError, match=f"mask.npy: {message}|mask.npy: .*{message}"):
        read_mask(tmp_path / "mask.npy", IDS)


def test_arrays_cut_short_or_of_a_claimed_size(tmp_path):
    path = tmp_path / "mask.npy"
    np.save(path, np.zeros((20, 30), np.uint8))
    whole = path.read_bytes()
    for content in (
        b"",
        b"nothing",
        whole[:60],
        whole[:-1],
        whole.replace(b"(20, 30)", b"(2, 9e9)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"mask\.npy: "):
            read_mask(path, IDS)
    path.write_bytes(whole.replace(b"(20, 30), }  ", b"(90000, 90000), }")[: len(whole)])
    with pytest.raises(ImageError, match=r"mask\.npy: is damaged"):
        read_mask(path, IDS)


# -------------------------------------------------------------------------------------- the dataset


def test_samples_hold_picture_labels_and_path(tmp_path):
    card = load_card(write_card(tmp_path))
    written = write_tree(card, tmp_path, count=3)
    dataset = SegmentationDataset(card, "val")
    assert len(dataset) == 3 and dataset.split == "val" and dataset.card is card
    assert repr(dataset) == "SegmentationDataset('toy', 'val', 3 pictures)"
    image, labels, path = dataset[1]
    assert path == tmp_path / "val/val_1.png" == dataset.pairs[1].image
    assert image.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    np.testing.assert_array_equal(labels, written[path])
    with pytest.raises(IndexError):
        dataset[3]


def twelve_bits(card):
    """Write 12-bit values into the pictures of a card; the 8-bit ones that they stand for."""
    grey = np.random.default_rng(5).integers(0, 256, SIZE)
    grey[0, :2] = 0, 255
    for split in card.splits:
        for pair in card.pairs(split):
            save(pair.image, np.round(grey * 4095 / 255).astype(np.uint16))
    return np.repeat(grey[..., None], 3, 2)


@pytest.mark.parametrize("range", ["[0, 4095]", "auto", "'0:4095'"])
def test_a_card_tells_the_range_of_its_pictures(tmp_path, range):
    expected = twelve_bits(toy(tmp_path))
    (tmp_path / "card.yaml").write_text((tmp_path / "card.yaml").read_text() + f"range: {range}\n")
    dataset = SegmentationDataset(load_card(tmp_path), "train")
    for worker in (dataset, pickle.loads(pickle.dumps(dataset))):
        np.testing.assert_array_equal(worker[1].image, expected)
    sample, remarks = examine_pair(dataset.pairs[0])
    np.testing.assert_array_equal(sample.image, expected)
    assert remarks == []


def test_a_dataset_tells_once_that_its_pictures_are_nearly_black(tmp_path, recwarn):
    card = toy(tmp_path)
    twelve_bits(card)
    dataset = SegmentationDataset(card, "val")
    assert dataset[0].image.max() < 16 and dataset[1].image.max() < 16
    [warning] = recwarn
    assert warning.category is ImageWarning and str(dataset.pairs[0].image) in str(warning.message)
    assert "upper 4 of 16 bits are empty" in str(warning.message)


def test_workers_read_the_same(tmp_path):
    dataset = SegmentationDataset(toy(tmp_path, count=4), "train")
    _ = dataset[0]
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    for sample, expected in zip(loader, pickle.loads(pickle.dumps(dataset)), strict=True):
        np.testing.assert_array_equal(sample.image, expected.image)
        np.testing.assert_array_equal(sample.labels, expected.labels)
        assert sample.path == expected.path


def test_sizes_that_differ_are_both_told(tmp_path):
    dataset = SegmentationDataset(toy(tmp_path), "train")
    save(dataset.pairs[1].mask, np.ones((3, 5), np.uint8))
    dataset[0]
    with pytest.raises(ImageError) as caught:
        dataset[1]
    assert str(caught.value) == (
        f"{tmp_path}/train_masks/train_1.png: the mask is 3x5 (height x width), but its picture "
        f"{tmp_path}/train/train_1.png is 6x8"
    )


def damaged():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()[:200]


@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"nothing", "is not a picture in a format that is read here"),
        (damaged(), "is damaged or truncated"),
        (None, "no such file"),
    ],
)
def test_files_that_do_not_decode_are_named(tmp_path, which, content, message):
    dataset = SegmentationDataset(toy(tmp_path), "train")
    path = getattr(dataset.pairs[0], which)
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(ImageError, match=message) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{path}: ")
    dataset[1]


def test_all_pixels_may_be_ignored(tmp_path):
    dataset = SegmentationDataset(toy(tmp_path), "train")
    save(dataset.pairs[0].mask, encode(np.full(SIZE, IGNORE, np.uint8), dataset.pairs[0].code))
    assert (dataset[0].labels == IGNORE).all()
