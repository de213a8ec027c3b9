import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import skimage
from cli.conftest import FAST
from clips import write_clip
from PIL import Image

from fassd.cli import predict as command
from fassd.inference.segmenter import Segmenter
from fassd.io import images
from fassd.io.finished import OUTPUT_ENDINGS, RECORD
from fassd.io.palette import CITYSCAPES, colorize, overlay, palette

PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture
def folder(tmp_path):
    """The issue's mix of pictures, and what their label maps must measure."""
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(PHOTOS / "rocket.jpg") as photo:
        rocket = photo.resize((160, 128))
    rocket.save(source / "photo.jpg")
    grey = np.asarray(rocket.convert("L"))
    Image.fromarray(grey[:100, :90]).save(source / "grey.png")
    rgba = np.dstack([np.asarray(rocket), grey])
    Image.fromarray(rgba[:80]).save(source / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(source / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    rocket.save(source / "turned.jpg", exif=exif)
    whole = (source / "photo.jpg").read_bytes()
    (source / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (20, 20)).save(source / "tiny.png")
    sizes = {
        "photo": (128, 160),
        "grey": (100, 90),
        "rgba": (80, 160),
        "deep": (128, 160),
        "turned": (160, 128),
    }
    return source, sizes


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder):
    """What a person sees in it, the record of finished files being hidden."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*"))


def test_a_folder_of_every_kind_and_what_cannot_be_done(folder, tmp_path, run_fassd):
    source, sizes = folder
    missing = source / "none.png"
    result = run_fassd("predict", source, missing, "-o", tmp_path / "out", *FAST)
    assert result.exit_code == 1
    assert "truncated.jpg: is damaged or truncated" in result.stderr
    assert "tiny.png: the input must be at least 57x57" in result.stderr
    assert "none.png: no such file or folder" in result.stderr
    assert "5 of 7 pictures" in result.stderr and "3 failed" in result.stderr
    assert "streets weights, trained on CamVid's photographs" in result.stderr
    assert "160x128" in result.stdout and "median" in result.stdout
    assert files(tmp_path / "out") == sorted(
        f"{name}{ending}" for name in sizes for ending in OUTPUT_ENDINGS.values()
    )
    for name, size in sizes.items():
        labels = opened(tmp_path / f"out/{name}_trainids.png")
        assert labels.dtype == np.uint8 and labels.shape == size and labels.max() < 19
        picture = images.read_image(next(source.glob(f"{name}.*")))
        np.testing.assert_array_equal(opened(tmp_path / f"out/{name}_color.png"), colorize(labels))
        np.testing.assert_array_equal(
            opened(tmp_path / f"out/{name}_overlay.png"), overlay(picture, labels)
        )


def test_all_fine_is_0_and_runs_repeat(folder, tmp_path, succeed):
    source, _ = folder
    for name in ("one", "two"):
        succeed("predict", source / "grey.png", "-o", tmp_path / name, *FAST)
    one, two = ((tmp_path / name / "grey_trainids.png").read_bytes() for name in ("one", "two"))
    assert one == two


def test_other_shipped_weights_by_name(folder, tmp_path, succeed):
    source, _ = folder
    words = ("predict", source / "photo.jpg", "-o", tmp_path / "out", *FAST, "-w", "synthetic")
    assert "synthetic weights, trained on generated streets alone" in succeed(*words).stderr
    segmenter = Segmenter("fassd_net_l2", weights="synthetic", backend="reference", device="cpu")
    labels = segmenter.predict(source / "photo.jpg")
    np.testing.assert_array_equal(opened(tmp_path / "out/photo_trainids.png"), labels)


def test_views_are_those_of_val_and_decide_what_is_finished(folder, tmp_path, succeed, refusal):
    source, _ = folder
    run = ("predict", source / "photo.jpg", "-o", tmp_path / "out", *FAST)
    views = ("--scales", "1,1.5", "--flip")
    labels = []
    for more in ((), views):
        assert "before" not in succeed(*run, *more).stderr
        labels.append(opened(tmp_path / "out/photo_trainids.png"))
    segmenter = Segmenter(
        "fassd_net_l2", weights="streets", backend="reference", device="cpu", scales=(1, 1.5),
        flip=True,
    )  # fmt: skip
    np.testing.assert_array_equal(labels[1], segmenter.predict(source / "photo.jpg"))
    assert 0 < (labels[0] != labels[1]).mean() < 0.3
    assert "(1 done before)" in succeed(*run, *views).stderr
    assert "scales must be one or more positive numbers, got [0.0]" in refusal(
        *run, "--scales", "0"
    )
    assert "'x' is not a number" in refusal(*run, "--scales", "x")


def test_label_ids_are_those_of_the_server(folder, tmp_path, succeed):
    source, _ = folder
    run = ("predict", source / "photo.jpg", "-o", tmp_path / "out", *FAST)
    succeed(*run)
    result = succeed(*run, "--label-ids", "cityscapes")
    assert "before" not in result.stderr
    assert "(1 done before)" in succeed(*run, "--label-ids", "cityscapes").stderr
    labels, ids = (opened(tmp_path / f"out/photo_{kind}.png") for kind in ("trainids", "labelids"))
    server = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    np.testing.assert_array_equal(ids, np.array(server, np.uint8)[labels])
    assert ids.dtype == np.uint8
    Image.new("RGB", (64, 64)).save(tmp_path / "out/new.png")
    assert "skipped 4 results" in succeed("predict", tmp_path / "out", *run[2:]).stderr


def test_label_ids_that_cannot_be_written_end_it_before_any_picture(
    folder, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr(Segmenter, "predict", lambda *_: pytest.fail("predicted"))
    source, _ = folder
    run = ("predict", source / "photo.jpg", *FAST, "-o")
    out = tmp_path / "out"
    assert "there is no card 'city'" in refusal(*run, out, "--label-ids", "city")
    error = refusal(*run, out, "--label-ids", "camvid")
    assert "no ids of card 'camvid'" in error and "19 classes" in error
    error = refusal(*run, tmp_path / "x.png", "--label-ids", "cityscapes")
    assert "--label-ids writes a file beside others: give a folder, not --output" in error
    assert not out.exists()


def test_nothing_done_is_2(folder, tmp_path, refusal):
    refusal("predict", folder[0] / "truncated.jpg", "-o", tmp_path / "out", *FAST)
    assert not (tmp_path / "out").exists()


def test_tree_and_collisions_and_second_run_into_the_same_folder(tmp_path, succeed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "x.bmp", "a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "grey").save(name)
    first, second = (succeed("predict", ".", "-o", ".", *FAST) for _ in range(2))
    assert all("4 of 4 pictures" in result.stderr for result in (first, second))
    assert "x.png -> x-2 " in first.stdout and "x.bmp ->" not in first.stdout
    labels = [name for name in files(tmp_path) if name.endswith("_trainids.png")]
    assert labels == ["a/x_trainids.png", "b/x_trainids.png", "x-2_trainids.png", "x_trainids.png"]


def test_classes_size_and_opacity(folder, tmp_path, succeed):
    source, _ = folder
    succeed(
        "predict", source / "photo.jpg", "-o", tmp_path / "out", *FAST,
        "--classes", 3, "--size", "64x96", "--opacity", 1, "--alpha", 4, "--threads", 1,
    )  # fmt: skip
    labels = opened(tmp_path / "out/photo_trainids.png")
    assert labels.shape == (128, 160) and labels.max() < 3
    color = opened(tmp_path / "out/photo_color.png")
    np.testing.assert_array_equal(color, colorize(labels, palette(3)))
    np.testing.assert_array_equal(opened(tmp_path / "out/photo_overlay.png"), color)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "nothing.png: no such file or folder"),
        ([""], "a source must be a file, folder or pattern, got ''"),
        (["a.png", "--weights", "cityscape"], "no weights file 'cityscape'; published names are "),
        (["a.png", "--weights", ""], "no weights file ''; published names are streets"),
        (["a.png", "--threads", "1000000"], "less than or equal to 1024"),
        (["a.png", "--classes", "65537"], "less than or equal to 65536"),
        (["*.webp"], "*.webp: this pattern matches no pictures"),
        (["a.png", "--model", "fassd_nett"], "unknown model 'fassd_nett'"),
        (["a.png", "--backend", "nonsense"], "nonsense"),
        (["a.png", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["a.png", "--weights", "missing.pth"], "missing.pth"),
        (["a.png", "--size", "1024"], "'1024' is not a size; write height x width in pixels"),
        (["a.png", "--size", "0x5"], "'0x5' is not a size"),
        (["a.png", "--dtype", "int4"], "'int4' is not one of"),
        (["a.png", "--dtype", "int8"], "int8 needs calibration, pictures like those"),
        (
            ["a.png", "--range", "4095"],
            "range must be auto or LOW:HIGH, two numbers with the lower",
        ),
        (["a.png", "--max-pixels", "0"], "Invalid value for '--max-pixels'"),
        (["a.png", "--opacity", "2"], "Invalid value for '--opacity'"),
        ([], "Missing argument"),
    ],
)
def test_usage_errors_are_clear_and_exit_with_2(tmp_path, monkeypatch, refusal, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    assert message in refusal("predict", *arguments, "-o", "out")
    assert not os.path.exists("out")


@pytest.fixture
def unbuilt(monkeypatch):
    """Fails if the network is built."""
    monkeypatch.setattr(command, "build_segmenter", lambda *_: pytest.fail("built the network"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "-o", "file"], "error: cannot write to file: "),
        (["a.png", "-o", "file/below"], "error: cannot write to file/below: "),
        (["a.png", "-o", "/proc/fassd"], "error: cannot write to /proc/fassd: "),
        (["a.png", "-o", "out.pdf"], "must be a folder or end in .avif, .bmp, .gif"),
        (["a.png", "-o", "out.svg"], "for a picture, got 'out.svg'"),
        (["a.png", "-o", "out.pgm"], "for a picture, got 'out.pgm'"),
        (["a.png", "b.png", "-o", "p.gif"], "--output p.gif names one file, but there are 2 sour"),
        (["*.png", "-o", "p.PNG"], "--output p.PNG names one file, but there are 2 sources"),
        (["a.png", "-o", "./a.png"], "--output a.png is the source itself"),
        (["a.png", "-o", "a.png/b.png"], "cannot write to a.png: not a folder"),
        (["in.mp4", "-o", "in.mp4"], "--output in.mp4 is the source itself"),
        (["in.mp4", "-o", "out.avi"], "must be a folder or end in .mp4, .m4v, .mov, .mkv, .webm"),
        (["in.mp4", "a.png", "-o", "out.mp4"], "names one video, but there are 2 sources: give a"),
        (["a.png", "-o", "out.mp4"], "--output out.mp4 names a video, but a is a picture"),
        (["in.mp4", "-o", "a.png/out.mp4"], "error: cannot write to a.png: not a folder"),
        (["in.mp4", "-o", "out", "--view", "x"], "'x' is not one of 'overlay', 'labels'"),
        (["a.png", "b.png", "-o", "out", "--view", "labels"], "--view labels is for videos and"),
        (["a.png", "-o", "out", "--limit", "3"], "--limit is for videos, and no source is one"),
        (["a.png", "-o", "out", "--fps", "3"], "--fps is for videos, and no source is one"),
        (["in.mp4", "-o", "out", "--label-ids", "cityscapes"], "--label-ids is for pictures, and"),
        (["in.mp4", "-o", "out", "--probabilities", "npz"], "--probabilities is for pictures, and"),
        (["in.mp4", "-o", "out", "--limit", "0"], "Invalid value for '--limit'"),
        (["in.mp4", "-o", "out", "--fps", "0"], "Invalid value for '--fps'"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_network_is_built(
    tmp_path, monkeypatch, refusal, unbuilt, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_clip("in.mp4", 2)
    (tmp_path / "file").touch()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(name)
    assert message in refusal("predict", *arguments, *FAST)
    assert sorted(os.listdir()) == ["a.png", "b.png", "file", "in.mp4"]


@pytest.mark.parametrize("suffix", [".png", ".GIF", ".jpg"])
def test_one_picture_to_one_file(tmp_path, succeed, monkeypatch, suffix):
    labels = np.arange(64 * 96).reshape(64, 96) % 19
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    images.write_image(tmp_path / "a.png", picture)
    monkeypatch.setattr(Segmenter, "predict", lambda *_: labels)
    output = tmp_path / "new" / f"out{suffix}"
    expected = {
        "overlay": overlay(picture, labels, 0.4),
        "labels": colorize(labels),
        "side-by-side": np.hstack([picture, colorize(labels)]),
    }
    for view in expected if suffix == ".png" else ["labels"]:
        drawing = ("--view", view, "--opacity", 0.4)
        succeed("predict", tmp_path / "a.png", "-o", output, *FAST, *drawing)
        assert os.listdir(output.parent) == [output.name]
        written = images.read_image(output)
        assert written.shape == expected[view].shape
        if suffix != ".jpg":
            np.testing.assert_array_equal(written, expected[view])


def test_a_folder_with_the_name_of_a_picture_is_a_folder(tmp_path, succeed):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "out.png").mkdir()
    succeed("predict", tmp_path / "a.png", "-o", tmp_path / "out.png", *FAST)
    assert len(files(tmp_path / "out.png")) == 3


def test_pictures_that_are_named_like_results_are_pictures(tmp_path, succeed):
    source = tmp_path / "in"
    for name in ("0001_color.png", "0002_color.png"):
        images.write_image(source / name, np.zeros((64, 64, 3), np.uint8))
    for _ in range(2):
        result = succeed("predict", source, "-o", source, *FAST)
        assert "2 of 2 pictures" in result.stderr
    assert "skipped 6 results of earlier runs" in result.stderr
    assert "(2 done before)" in result.stderr
    assert files(source) == sorted(
        name
        for stem in ("0001_color", "0002_color")
        for name in (f"{stem}.png", *(f"{stem}{ending}" for ending in OUTPUT_ENDINGS.values()))
    )


def test_a_result_never_replaces_a_source(tmp_path, refusal, unbuilt):
    for name in ("x.png", "x_overlay.png"):
        images.write_image(tmp_path / name, np.zeros((64, 64, 3), np.uint8))
    error = refusal("predict", tmp_path, "-o", tmp_path, *FAST)
    assert f"x_overlay.png is a source, and the result of {tmp_path}/x.png" in error
    assert files(tmp_path) == ["x.png", "x_overlay.png"]


def test_ctrl_c_leaves_no_half_file_and_results_are_no_sources(tmp_path, run_fassd, monkeypatch):
    images.write_image(tmp_path / "x.png", np.zeros((64, 64, 3), np.uint8))
    save = Image.Image.save

    def interrupted(self, stream, **options):
        if "overlay" in stream.name:
            stream.write(b"half")
            raise KeyboardInterrupt
        save(self, stream, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        stopped = run_fassd("predict", tmp_path, "-o", tmp_path, *FAST)
    assert stopped.exit_code == 130 and "stopped" in stopped.stderr
    assert sorted(os.listdir(tmp_path)) == [RECORD, "x.png", "x_color.png"]
    result = run_fassd("predict", tmp_path, "-o", tmp_path, *FAST)
    assert result.exit_code == 0 and "1 of 1 pictures" in result.stderr
    assert "skipped 1 result of earlier runs" in result.stderr


def test_a_picture_beyond_the_memory_is_told_so(folder, tmp_path, refusal, monkeypatch):
    def exhausted(*_):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr(Segmenter, "predict", exhausted)
    source, _ = folder
    error = refusal("predict", source / "grey.png", "-o", tmp_path / "out", *FAST)
    assert "grey.png: does not fit in memory" in error


def test_ranges_and_pages_are_told_once_a_kind(tmp_path, run_fassd):
    """Three 12-bit pictures are warned of once; with their range they give what 8 bits give."""
    grey = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    for number in range(3):
        images.write_image(tmp_path / f"in/{number}.png", grey.astype(np.uint16) << 4)
    pages = [Image.fromarray(grey)] * 2
    pages[0].save(tmp_path / "in/9.tif", save_all=True, append_images=pages[1:])
    run = ("predict", tmp_path / "in", "-o", tmp_path / "out", *FAST)
    dark = run_fassd(*run)
    assert dark.exit_code == 0
    warned = [line for line in dark.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 3 and warned[0].startswith(f"warning: {tmp_path}/in/0.png: read as 0 to")
    assert "9.tif: only the first of several pages or frames is read" in warned[1]
    assert warned[2].startswith("warning: 2 more: read as 0 to 65535, but the upper 4 of 16 bits")
    told = "3 pictures of more than 8 bits per channel: values from 0 to {} became 0 to 255"
    assert told.format(65535) in dark.stderr
    ranged = run_fassd(
        "predict", tmp_path / "in", "-o", tmp_path / "out", *FAST, "--range", "0:4095"
    )
    assert "before" not in ranged.stderr and told.format(4095) in ranged.stderr
    labels = [opened(tmp_path / f"out/{name}_trainids.png") for name in (0, 1, 2, 9)]
    assert all((each == labels[3]).all() for each in labels)


def test_max_pixels_refuses_and_lifts(tmp_path, succeed, refusal, monkeypatch):
    """Beyond Pillow's limit, too, of which a run leaves nothing behind where it is not asked to."""
    default = inspect.signature(command.predict).parameters["max_pixels"].default
    assert default == images.MAX_PIXELS
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("1", (96, 64)).save(tmp_path / "a.png")
    run = ("predict", tmp_path / "a.png", "-o", tmp_path / "out", *FAST, "--max-pixels")
    refused = refusal(*run, 6143)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert "a.png: has 64x96 pixels; more than 0.006143 million" in refused
    assert "--max-pixels" in refused
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    succeed(*run, 6144)


def test_debug_shows_the_error_itself(tmp_path, run_fassd):
    result = run_fassd("--debug", "predict", tmp_path / "nothing.png", "-o", tmp_path / "out")
    assert isinstance(result.exception, images.ImageError)


def test_confidence_and_probabilities(folder, tmp_path, run_fassd):
    source, out = folder[0] / "photo.jpg", tmp_path / "out"
    settings = ("--confidence", "entropy", "--probabilities", "npz")
    run_fassd("predict", source, "-o", out, *settings, *FAST)
    further = ("_confidence.png", "_probabilities.npz")
    assert files(out) == sorted(f"photo{ending}" for ending in (*OUTPUT_ENDINGS.values(), *further))
    picture, labels = images.read_image(source), opened(out / "photo_trainids.png")
    certainty = opened(out / "photo_confidence.png")
    segmenter = Segmenter("fassd_net_l2", weights="streets")
    right = segmenter.predict(picture, confidence="entropy")
    np.testing.assert_array_equal(labels, right[0])
    assert np.abs(certainty.astype(int) - right[1]).max() <= 1  # another backend
    faded = overlay(picture, labels, certainty=certainty)
    np.testing.assert_array_equal(opened(out / "photo_overlay.png"), faded)
    with np.load(out / "photo_probabilities.npz") as content:
        assert content["classes"].tolist() == [info.name for info in segmenter.classes]
        right = segmenter.probabilities(picture).numpy()
        np.testing.assert_allclose(content["probabilities"], right, atol=1e-3)

    # The results are known as such, and made anew where the options are others.
    again = run_fassd("predict", source, "-o", out, *settings, *FAST)
    assert "1 done before" in again.stderr
    assert "holds no pictures" in run_fassd("predict", out, "-o", tmp_path / "x", *FAST).stderr
    other = run_fassd("predict", source, "-o", out, "--confidence", "margin", *FAST)
    assert "done before" not in other.stderr


def test_uncertain_pixels_are_left_out(folder, tmp_path, run_fassd):
    source = folder[0] / "photo.jpg"
    settings = ("--min-confidence", "0.3", "--probabilities", "tiff")
    run_fassd("predict", source, "-o", tmp_path / "out", *settings, *FAST)
    labels = opened(tmp_path / "out/photo_trainids.png")
    certainty = opened(tmp_path / "out/photo_confidence.png")
    assert 0 < (labels == 255).sum() < labels.size
    np.testing.assert_array_equal(labels == 255, certainty < 255 * 0.3)
    with Image.open(tmp_path / "out/photo_probabilities.tif") as pages:
        assert pages.n_frames == 19
        levels = []
        for index, name in enumerate(palette_names()):
            pages.seek(index)
            assert pages.tag_v2[270] == name
            levels.append(np.asarray(pages))
    assert levels[0].dtype == np.uint16
    np.testing.assert_allclose(np.sum(levels, 0, dtype=np.int64), 65535, atol=19)


def palette_names():
    return [info.name for info in CITYSCAPES]


def test_probabilities_need_a_folder(folder, tmp_path, run_fassd):
    source = folder[0] / "photo.jpg"
    result = run_fassd("predict", source, "-o", tmp_path / "a.png", "--probabilities", "npz", *FAST)
    assert result.exit_code == 2
    assert "--probabilities writes a file beside others: give a folder" in result.stderr
