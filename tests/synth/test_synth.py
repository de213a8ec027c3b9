import json
import time

import numpy as np
import pytest

from fassd.data import load_card
from fassd.io.images import read_image
from fassd.io.palette import CITYSCAPES
from fassd.synth import VERSION, patterns, render_street
from fassd.synth.patterns import FAMILIES
from fassd.synth.textures import SPLITS, bank
from fassd.synth.write import LABEL_IDS, NOTE, frame_paths, write_tree

NAMES = [info.name for info in CITYSCAPES]


def test_is_the_same_on_every_run():
    first, second = render_street(96, 160, 3), render_street(96, 160, 3)
    assert first[0].shape == (96, 160, 3) and first[0].dtype == np.uint8
    assert first[1].shape == (96, 160) and first[1].dtype == np.uint8
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("other", [{"seed": 1}, {"index": 1}, {"split": "val"}, {"split": "test"}])
def test_seed_index_and_split_each_give_another_scene(other):
    first = render_street(96, 160)[1]
    assert (first != render_street(96, 160, **other)[1]).mean() > 0.05


def test_shows_the_same_scene_at_every_size():
    for seed in range(3):
        _, small = render_street(128, 256, seed)
        _, large = render_street(512, 1024, seed)
        # Outlines differ by less than a small pixel.
        assert (small == large[2::4, 2::4]).mean() > 0.95, seed


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (300, 17), (33, 65)])
def test_any_size(size):
    for seed in range(5):
        image, labels = render_street(*size, seed)
        assert image.shape == (*size, 3) and labels.shape == size
        assert labels.max() < 19


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 8}, "got 8"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"index": -2}, "index must be 0 or more, got -2"),
        ({"split": "dev"}, "train, val, test, got 'dev'"),
    ],
)
def test_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_street(**{"height": 64, "width": 64, **arguments})


# ------------------------------------------------------------------------- what the scenes hold


@pytest.fixture(scope="module", params=["train", "val"])
def shares(request):
    """Share of each class in each of 40 frames, by name."""
    frames = [render_street(256, 512, 7, split=request.param, index=i)[1] for i in range(40)]
    counts = np.array([np.bincount(labels.ravel(), minlength=19) for labels in frames])
    return dict(zip(NAMES, (counts / frames[0].size).T, strict=True))


def test_all_classes_are_common(shares):
    for name in NAMES:
        assert shares[name].mean() > 0.002, name
        assert (shares[name] > 0.0002).mean() >= 0.4, name
    for name in ("pole", "traffic light", "traffic sign"):
        assert shares[name].mean() > 0.0025, name


@pytest.mark.parametrize("name", ["rider", "truck", "bus", "train", "motorcycle", "bicycle"])
def test_rare_classes_are_of_a_decent_size_in_many_frames(shares, name):
    assert (shares[name] > 0.002).mean() >= 0.4


def test_no_class_takes_over(shares):
    assert shares["road"].mean() < 0.4
    assert max(shares[name].mean() for name in NAMES[1:]) < 0.3


def test_the_camera_stands_on_the_road():
    for seed in range(8):
        labels = render_street(96, 192, seed)[1]
        assert (labels[-1, 80:112] == NAMES.index("road")).mean() > 0.5, seed


def test_trains_stand_on_rails():
    """A street without a track has no train, whatever else drives there."""
    with_train = []
    for index in range(25):
        scene = _scene(index)
        train = (scene.show(128, 256)[1] == NAMES.index("train")).any()
        assert scene.street.has_track or not train
        with_train.append(train)
    assert 5 < sum(with_train) < 25


def _scene(index):
    from fassd.synth.scene import Scene

    sequence = np.random.SeedSequence([0x57EE7, 0, SPLITS["train"], index])
    return Scene(np.random.default_rng(sequence), bank("train"))


def test_fences_are_see_through_but_labelled_whole():
    """Bars show what is behind them, so a fence is less even than its label."""
    from fassd.synth.canvas import Canvas, Upright
    from fassd.synth.solids import LABEL
    from fassd.synth.surfaces import paint_fence

    scene = _scene(0)
    canvas = Canvas((200, 200), scene.camera, scene.street.light)
    panel = Upright((-2.0, 0.5, 6.0), (1.0, 0.0), 4.0, 2.0)
    grid = [np.zeros((256 >> level, 256 >> level), np.uint8) for level in range(5)]
    for level in grid:
        level[:, : len(level) // 2] = 255
    paint_fence(canvas, panel, grid, (250.0, 250.0, 250.0), 1.0)
    canvas.develop()
    fence = canvas.pixels[..., 3] == LABEL["fence"]
    bars = canvas.pixels[..., 0] > 0
    assert fence.sum() > 2000 and not bars[~fence].any()
    assert 0.4 < bars[fence].mean() < 0.6


# ---------------------------------------------------------------------- colour is not enough


def _bins(image):
    coarse = (image >> 4).astype(np.int32)
    return (coarse[..., 0] * 256 + coarse[..., 1] * 16 + coarse[..., 2]).ravel()


@pytest.fixture(scope="module")
def colours():
    """Pixels of each (colour, class) in 40 frames of train, and those of 20 of val to guess."""
    counts = np.zeros((16**3, 19))
    for index in range(40):
        image, labels = render_street(256, 512, 1, index=index)
        np.add.at(counts, (_bins(image), labels.ravel()), 1)
    frames = [render_street(256, 512, 1, split="val", index=index) for index in range(20)]
    return counts, [(_bins(image), labels.ravel()) for image, labels in frames]


@pytest.mark.parametrize("prior", ["as seen", "equal"])
def test_colour_alone_does_not_tell_the_class(colours, prior):
    counts, frames = colours
    guess = (counts if prior == "as seen" else counts / counts.sum(0)).argmax(1)
    matrix = np.zeros((19, 19))
    for bins, labels in frames:
        np.add.at(matrix, (labels, guess[bins]), 1)
    right = np.diag(matrix)
    iou = right / (matrix.sum(0) + matrix.sum(1) - right)
    assert iou.mean() < 0.2  # 0.10 and 0.08
    # Where position and not colour decides.
    for name in ("sidewalk", "wall", "fence", "person", "rider", "car", "truck", "bus", "train"):
        assert iou[NAMES.index(name)] < 0.2, name


def test_road_and_pavement_have_the_same_colours():
    mean = {"road": [], "sidewalk": []}
    for index in range(40):
        materials = _scene(index).street.materials
        for material in materials[:1] + materials[2:4]:
            mean[NAMES[material.label]].append(np.mean(material.color))
    spread = np.std(mean["road"])
    assert spread > 15
    assert abs(np.mean(mean["road"]) - np.mean(mean["sidewalk"])) < spread


# --------------------------------------------------------------------------------- the splits


def _textures(split):
    """All finest textures of a split, as bytes."""
    textures = bank(split)
    pyramids = textures.ground + textures.wall + textures.grass + textures.leaves + textures.grids
    pictures = [pyramid[0] for pyramid in pyramids] + textures.clouds + [textures.noise]
    for facade in textures.facades + textures.shops:
        pictures += [facade.glass[0], facade.panes[0], facade.frames[0]]
    for crown in textures.crowns:
        pictures += [crown.mask[0], crown.shade[0]]
    return [picture.tobytes() for picture in pictures]


def test_splits_share_no_texture():
    splits = {split: _textures(split) for split in SPLITS}
    for split, textures in splits.items():
        assert len(set(textures)) > 100, split
    assert not set(splits["train"]) & set(splits["val"])
    assert not set(splits["train"]) & set(splits["test"])
    assert not set(splits["val"]) & set(splits["test"])


def test_each_split_has_families_of_its_own():
    for kind in ("ground", "wall"):
        train, val = (set(FAMILIES[split][kind]) for split in ("train", "val"))
        assert train - val and val - train and train & val


def test_textures_have_a_middle_gray_and_halve_from_level_to_level():
    textures = bank("val")
    for pyramid in textures.ground + textures.wall + textures.grass:
        assert 100 < pyramid[0].mean() < 156
        sizes = [level.shape[0] for level in pyramid]
        assert sizes[0] in (256, 512) and sizes[1:] == [size // 2 for size in sizes[:-1]]


@pytest.mark.parametrize("family", ["plain", "stained", "boards", "cobbles"])
def test_patterns_tile(family):
    for seed in range(4):
        pattern = getattr(patterns, f"_{family}")(np.random.default_rng(seed))
        for axis in (0, 1):
            steps = np.abs(np.diff(pattern, axis=axis)).mean(1 - axis)  # from row to row
            ends = np.abs(np.take(pattern, 0, axis) - np.take(pattern, -1, axis)).mean()
            assert ends < 1.5 * steps.max(), (seed, axis)


def test_takes_less_than_a_second():
    render_street(64, 64)
    start = time.perf_counter()
    for index in range(3):
        render_street(512, 1024, index=index)
    assert (time.perf_counter() - start) / 3 < 1.0  # 0.08 s on a quiet core


# ------------------------------------------------------------------------------ a tree of files


def _files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")}


def test_writes_a_tree_that_the_cityscapes_card_reads(tmp_path):
    write_tree(tmp_path, "val", 3, seed=4, size=(48, 96), workers=1)
    image_path, mask_path = frame_paths(tmp_path, "val", 2)
    name = "leftImg8bit/val/synth/synth_000002_000019_leftImg8bit.png"
    assert image_path.relative_to(tmp_path).as_posix() == name
    image, labels = render_street(48, 96, 4, split="val", index=2)
    np.testing.assert_array_equal(read_image(image_path), image)
    np.testing.assert_array_equal(read_image(mask_path)[..., 0], LABEL_IDS[labels])
    assert not (mask_path.read_bytes()[25]) & 2  # a grey PNG, not a coloured one
    card = load_card(tmp_path)
    assert card.name == "cityscapes" and len(card.pairs("val")) == 3


def test_label_ids_are_those_of_the_card(tmp_path):
    from fassd.data import SegmentationDataset

    write_tree(tmp_path, "train", 4, size=(64, 128), workers=1)
    dataset = SegmentationDataset(load_card(tmp_path), "train")
    for index in range(4):
        np.testing.assert_array_equal(
            dataset[index].labels, render_street(64, 128, 0, index=index)[1]
        )
    assert {NAMES[i]: int(LABEL_IDS[i]) for i in (0, 6, 16, 18)} == {
        "road": 7, "traffic light": 19, "train": 31, "bicycle": 33,
    }  # fmt: skip


def test_any_number_of_processes_writes_the_same_bytes(tmp_path):
    done = []
    for workers in (1, 3):
        write_tree(
            tmp_path / str(workers), "train", 5, 2, (32, 64), workers, lambda: done.append(1)
        )
    assert len(done) == 10
    serial = _files(tmp_path / "1")
    assert len(serial) == 10 and serial == _files(tmp_path / "3")
    # A smaller count is the beginning of a larger one.
    write_tree(tmp_path / "less", "train", 2, 2, (32, 64), 1)
    assert _files(tmp_path / "less").items() <= serial.items()


def test_notes_how_each_split_was_made(tmp_path):
    write_tree(tmp_path, "train", 2, 7, (16, 32), 1)
    write_tree(tmp_path, "val", 1, 8, (16, 16), 1)
    note = json.loads((tmp_path / NOTE).read_text())
    assert note["splits"] == {
        "train": {"version": VERSION, "seed": 7, "count": 2, "height": 16, "width": 32},
        "val": {"version": VERSION, "seed": 8, "count": 1, "height": 16, "width": 16},
    }


def test_writes_over_its_own_files_but_not_among_others(tmp_path):
    write_tree(tmp_path, "train", 3, 0, (16, 32), 1)
    before = _files(tmp_path)
    write_tree(tmp_path, "train", 3, 1, (16, 32), 1)
    after = _files(tmp_path)
    assert before.keys() == after.keys() and before != after
    with pytest.raises(FileExistsError, match=r"synth_000002_000019.*would stay"):
        write_tree(tmp_path, "train", 2, 0, (16, 32), 1)
    assert _files(tmp_path) == after


def test_a_failing_worker_is_reported(tmp_path):
    blocked = frame_paths(tmp_path, "train", 1)[0]
    blocked.mkdir(parents=True)
    with pytest.raises(OSError, match="synth_000001"):
        write_tree(tmp_path, "train", 3, 0, (16, 16), 2)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "got 'dev'"),
        ({"count": 0}, "count must be from 1 to 1,000,000, got 0"),
        ({"seed": -1}, "got -1"),
        ({"size": (64, 15)}, "got 64 and 15"),
        ({"workers": 0}, "workers must be 1 or more, got 0"),
    ],
)
def test_a_wrong_order_writes_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_tree(tmp_path / "new", **{"count": 1, "size": (16, 16), **arguments})
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="not a folder"):
        write_tree(tmp_path / "file", count=1, size=(16, 16))
