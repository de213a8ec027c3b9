from pathlib import Path

import numpy as np
import pytest
import skimage
import tifffile
import typer
from PIL import Image

from fassd.cli.strips import parse_bytes
from fassd.inference import steps
from fassd.inference.large import predict_file
from fassd.inference.segmenter import Segmenter
from fassd.io.finished import RECORD, STRIP_ENDINGS

PHOTO = Path(skimage.__file__).parent / "data" / "rocket.jpg"
# The kernels of the CPU, whose results do not depend on the place: all labels are equal.
FUSED = ("--model", "fassd_net_l2", "--device", "cpu")


@pytest.fixture
def source(tmp_path):
    with Image.open(PHOTO) as photo:
        pixels = np.asarray(photo.resize((150, 260)))
    path = tmp_path / "in" / "slide.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    return path


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_results_are_those_of_the_whole_picture(source, tmp_path, succeed, run_fassd):
    whole, done = tmp_path / "whole", tmp_path / "strips"
    succeed("predict", source, "-o", whole, *FUSED)
    succeed("predict", source, "-o", done, *FUSED, "--strips", "--memory", "12MiB")
    assert {path.name for path in done.iterdir()} == {
        RECORD,
        *(f"slide{ending}" for ending in STRIP_ENDINGS.values()),
    }
    for what in ("trainids", "overlay"):
        made, expected = done / f"slide_{what}.tif", whole / f"slide_{what}.png"
        np.testing.assert_array_equal(opened(made), opened(expected))
    with Image.open(done / "slide_trainids.tif") as image:
        colors = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colors, opened(whole / "slide_color.png"))
    # Results are no sources, and what is finished is passed over.
    again = run_fassd("predict", source.parent, done, "-o", done, *FUSED, "--strips")
    assert "1 of 1 pictures" in again.stderr and "(1 done before)" in again.stderr
    assert "skipped 2 results of earlier runs" in again.stderr


def test_certainty_and_ids_are_those_of_the_whole_picture(source, tmp_path, succeed, run_fassd):
    whole, done = tmp_path / "whole", tmp_path / "strips"
    words = ("--confidence", "margin", "--min-confidence", "0.3", "--label-ids", "cityscapes")
    succeed("predict", source, "-o", whole, *FUSED, *words)
    words = (*words, "--strips", "--memory", "12MiB")
    succeed("predict", source, "-o", done, *FUSED, *words)
    kinds = ("trainids", "overlay", "labelids", "confidence")
    assert {path.name for path in done.iterdir()} == {RECORD, *(f"slide_{k}.tif" for k in kinds)}
    for what in kinds:
        made, expected = opened(done / f"slide_{what}.tif"), opened(whole / f"slide_{what}.png")
        np.testing.assert_array_equal(made, expected)
    assert (opened(done / "slide_trainids.tif") == 255).any()
    again = run_fassd("predict", source, done, "-o", done, *FUSED, *words)
    assert "(1 done before)" in again.stderr and "skipped 4 results" in again.stderr
    without = run_fassd("predict", source, "-o", done, *FUSED, "--strips", "--memory", "12MiB")
    assert "done before" not in without.stderr


@pytest.mark.parametrize("view", ["overlay", "labels", "side-by-side"])
def test_one_file(view, source, tmp_path, succeed):
    plain, made = tmp_path / "whole.png", tmp_path / "one.tif"
    succeed("predict", source, "-o", plain, *FUSED, "--view", view)
    scratch = tmp_path / "scratch"
    words = ("--strips", "--scratch", scratch, "--view", view)
    succeed("predict", source, "-o", made, *FUSED, *words)
    with Image.open(made) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), opened(plain))
    assert not list(scratch.iterdir())


def test_a_new_folder_with_a_dot_and_scratch_elsewhere(source, tmp_path, succeed):
    out, scratch = tmp_path / "new" / "results.v2", tmp_path / "scratch"
    succeed("predict", source, "-o", out, *FUSED, "--strips", "--scratch", scratch)
    assert (out / "slide_trainids.tif").exists() and not list(scratch.iterdir())


def test_further_pages_are_told_of(source, tmp_path, succeed):
    with tifffile.TiffWriter(source) as file:
        for _ in range(3):
            file.write(np.zeros((140, 140), np.uint8), photometric="minisblack", metadata=None)
    result = succeed("predict", source, "-o", tmp_path / "out", *FUSED, "--strips")
    told = " ".join(result.stderr.split())
    assert told.count("only the first of several pages or frames is read") == 1


def test_ctrl_c_leaves_no_result_and_the_next_run_goes_on(source, tmp_path, run_fassd, monkeypatch):
    out, done = tmp_path / "out", []

    def do(step, first, last, do=steps.MapStep.do):
        do(step, first, last)
        done.append((step.name, first))
        if len(done) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps.MapStep, "do", do)
    words = ("predict", source, "-o", out, *FUSED, "--strips", "--memory", "12MiB")
    assert run_fassd(*words).exit_code == 130
    assert [path.name for path in out.iterdir()] == [".slide_trainids.tif.strips"]
    assert run_fassd(*words).exit_code == 0
    # The strip that was done but not noted is done again, and no other.
    assert len(done) == 1 + len(set(done)) and done[3] == done[4]
    labels = Segmenter("fassd_net_l2", weights="streets", device="cpu").predict(source)
    np.testing.assert_array_equal(opened(out / "slide_trainids.tif"), labels)
    assert not (out / ".slide_trainids.tif.strips").exists()


def test_a_damaged_picture_leaves_nothing(source, tmp_path, run_fassd):
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 3 // 4])
    out = tmp_path / "out"
    result = run_fassd("predict", source, "-o", out, *FUSED, "--strips", "--memory", "12MiB")
    assert result.exit_code == 2
    assert "slide.tif: is truncated: tile" in " ".join(result.stderr.split())
    assert not list(out.iterdir())


def test_a_file_from_python(source, tmp_path):
    segmenter = Segmenter("fassd_net_l2", weights="streets", device="cpu")
    shares = []
    made = tmp_path / "made" / "labels.tif"
    size = predict_file(segmenter, source, made, memory=12 << 20, progress=shares.append)
    assert size == (260, 150) and shares[-1] == 1
    np.testing.assert_array_equal(opened(made), segmenter.predict(source))
    assert [path.name for path in made.parent.iterdir()] == ["labels.tif"]
    certainty = tmp_path / "made" / "certainty.tif"
    own = {"memory": 12 << 20, "certainty": certainty}
    with pytest.raises(ValueError, match="need a confidence, got None"):
        predict_file(segmenter, source, made, **own)
    predict_file(segmenter, source, made, confidence="probability", **own)
    expected = segmenter.predict(source, confidence="probability")
    np.testing.assert_array_equal((opened(made), opened(certainty)), expected)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--memory", "1GiB"), "--memory works only with --strips"),
        (("--scratch", "x"), "--scratch works only with --strips or --tiles"),
        (("--strips", "--tiles", "128"), "--strips and --tiles exclude each other"),
        (("--tiles", "128", "--probabilities", "npz"), "leave out --probabilities"),
        (("--strips", "--size", "64x64"), "leave out --size"),
        (("--strips", "--flip", "--probabilities", "npz"), "leave out --flip, --probabilities"),
        (("--strips", "--memory", "much"), "'much' is not an amount of memory"),
        (("--strips", "--memory", "0"), "'0' is not an amount of memory"),
        (("--strips", "--memory", "1KB"), "is not enough for a strip"),
        (("--strips", "-o", "x.png"), "must be a folder or end in .tif, .tiff"),
        (("--strips", "--range", "auto"), "a range of auto needs the whole picture"),
    ],
)
def test_what_does_not_go_together(words, told, source, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refusal("predict", source, "-o", "out", *FUSED, *words)


def test_videos_are_refused(tmp_path, refusal):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"")
    told = refusal("predict", video, "-o", tmp_path / "out", *FUSED, "--strips")
    assert "--strips takes pictures" in told


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("1.5gib", 3 << 29), ("500 MB", 500_000_000), ("77", 77)]
)
def test_sizes_of_memory(text, size):
    assert parse_bytes(text) == size
    assert parse_bytes(size) == size


def test_no_size_of_memory():
    with pytest.raises(typer.BadParameter):
        parse_bytes("-1GB")


def test_tiles(source, tmp_path, succeed, run_fassd):
    whole, done = tmp_path / "whole", tmp_path / "tiles"
    succeed("predict", source, "-o", whole, *FUSED)
    succeed("predict", source, "-o", done, *FUSED, "--tiles", 128)
    right, found = opened(whole / "slide_trainids.png"), opened(done / "slide_trainids.tif")
    assert found.shape == right.shape and 0.5 < (found == right).mean() < 1
    # Other tiles are another result, and the file that tells of it stays out of the sources.
    other = run_fassd("predict", source, "-o", done, *FUSED, "--tiles", 260)
    assert "done before" not in other.stderr
    np.testing.assert_array_equal(opened(done / "slide_trainids.tif"), right)
    assert sorted(path.name for path in done.iterdir()) == sorted(
        [RECORD, *(f"slide{ending}" for ending in STRIP_ENDINGS.values())]
    )
