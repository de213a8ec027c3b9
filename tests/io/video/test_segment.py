"""What goes in comes out: frames, times, sound, sizes and colours."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import (
    CLOCK,
    Bands,
    decoded,
    picture,
    psnr,
    segmented,
    sound,
    times,
    write_clip,
    write_photographs,
)
from PIL import Image, ImageOps

from fassd.inference.video import segment_video
from fassd.io.images import write_image
from fassd.io.palette import colorize, overlay
from fassd.io.video import VideoError, open_video

UNEVEN = [0, 3000, 7000, 12000, 12600, 20000, 30000, 40000, 41000, 60000]


def length(path):
    """Seconds that the track of pictures lasts."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.duration * stream.time_base


def test_uneven_times_and_sound_are_kept(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 10, pts=UNEVEN, audio="aac", options={"bf": "0"})
    summary = segmented(clip, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [pts * CLOCK for pts in UNEVEN]
    assert length(tmp_path / "out.mp4") == length(clip) == (UNEVEN[-1] + 3600) * CLOCK
    assert len(sound(clip)) > 15 and sound(tmp_path / "out.mp4") == sound(clip)
    assert summary.frames == len(UNEVEN) and summary.codec == "libx264"
    assert summary.size == (64, 96) and not summary.trouble.notes and not summary.silent
    assert set(summary.busy) == {"decode", "network", "encode"} and min(summary.busy.values()) > 0
    assert sum(summary.shares.values()) == pytest.approx(1)
    assert summary.fps == summary.frames / summary.seconds


def test_the_colours_are_the_segmenters(tmp_path):
    segmenter = Bands()
    segmenter.palette = np.full((16, 3), (200, 100, 50), np.uint8)
    clip = write_clip(tmp_path / "in.mp4", 2)
    segment_video(open_video(str(clip)), tmp_path / "out.mp4", segmenter, view="labels")
    for _, frame in decoded(tmp_path / "out.mp4"):
        assert np.abs(frame.astype(np.int16) - (200, 100, 50)).max() < 8


def test_frame_rate_and_last_frame_are_kept(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 12, fps=Fraction(30000, 1001))
    segmented(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert stream.duration * stream.time_base == 12 * Fraction(1001, 30000)


@pytest.mark.parametrize("ending", [".mkv", ".mov", ".m4v", ".webm"])
def test_other_containers_keep_times_to_their_unit(tmp_path, ending):
    clip = write_clip(tmp_path / "in.mp4", len(UNEVEN), pts=UNEVEN)
    output = tmp_path / f"out{ending}"
    segmented(clip, output)
    # Matroska counts milliseconds.
    for ours, theirs in zip(times(output), UNEVEN, strict=True):
        assert abs(ours - theirs * CLOCK) <= Fraction(1, 2000)


def test_the_three_views(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 5)
    expected = {
        "overlay": lambda image, labels: overlay(image, labels, 0.3),
        "labels": lambda image, labels: colorize(labels),
        "side-by-side": lambda image, labels: np.hstack([image, colorize(labels)]),
    }
    for view, draw in expected.items():
        segmented(clip, tmp_path / "out.mp4", view=view, opacity=0.3)
        results = decoded(tmp_path / "out.mp4")
        for (_, before), (_, after) in zip(decoded(clip), results, strict=True):
            assert psnr(after, draw(before, Bands().predict(before))) > 28, view
    with pytest.raises(ValueError, match="view must be one of overlay, labels, side-by-side"):
        segmented(clip, tmp_path / "out.mp4", view="outlines")


def test_odd_sides_repeat_the_last_row_and_column(tmp_path):
    clip = write_clip(tmp_path / "in.mkv", 3, (65, 97), codec="ffv1", pixels="bgr0")
    summary = segmented(clip, tmp_path / "out.mp4", opacity=0)
    assert summary.size == (65, 97)
    for number, (_, image) in enumerate(decoded(tmp_path / "out.mp4")):
        assert image.shape == (66, 98, 3)
        padded = np.pad(picture(number, (65, 97)), ((0, 1), (0, 1), (0, 0)), mode="edge")
        assert psnr(image, padded) > 28


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        ((0, -1, 1, 0), lambda image: np.rot90(image)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
    ],
    ids=["90", "180", "270", "mirrored", "upside down"],
)
def test_rotated_video_comes_out_upright(tmp_path, rotation, turn):
    clip = write_clip(tmp_path / "in.mp4", 3, rotation=rotation)
    segmented(clip, tmp_path / "out.mp4", opacity=0)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0
    for number, (_, image) in enumerate(decoded(tmp_path / "out.mp4")):
        assert psnr(image, turn(picture(number))) > 28


@pytest.mark.parametrize("name", ["in.avi", "in.mkv", "in.mp4", "in.mjpeg"])
def test_frames_with_exif_come_out_as_their_pictures_would(tmp_path, name):
    """PyAV has no name for EXIF; a frame of other orientation than the one before counts, too."""
    orientations = [1, 4, 2, 3, 1]
    clip = write_photographs(tmp_path / name, orientations)
    frames = [frame.image for frame in open_video(str(clip))]
    assert len(frames) == 5
    for number, (image, orientation) in enumerate(zip(frames, orientations, strict=True)):
        photograph = Image.fromarray(picture(number))
        photograph.getexif()[0x0112] = orientation
        assert psnr(image, np.asarray(ImageOps.exif_transpose(photograph))) > 30, orientation


def test_exif_goes_before_the_rotation_of_the_track(tmp_path):
    quarter = (0, 1, -1, 0)
    upright = write_photographs(tmp_path / "1.mp4", [1, 1], quarter)
    turned = write_photographs(tmp_path / "6.mp4", [6, 6])
    assert psnr(next(iter(open_video(str(upright)))).image, picture(0)) > 30
    assert psnr(next(iter(open_video(str(turned)))).image, np.rot90(picture(0), -1)) > 30


def test_titles_in_another_encoding_do_not_matter(tmp_path):
    def titled(container, video):
        container.metadata["title"] = "caf@@"
        video.metadata["handler_name"] = "@@"

    clip = write_clip(tmp_path / "in.mp4", 1, prepare=titled)
    data = clip.read_bytes()
    assert data.count(b"@@") == 2
    clip.write_bytes(data.replace(b"@@", b"\xe9\xff"))
    assert segmented(clip, tmp_path / "out.mp4").frames == 1


def test_ten_bits_become_eight_and_are_told_once(tmp_path):
    clip = write_clip(tmp_path / "in.mkv", 4, pixels="yuv420p10le")
    summary = segmented(clip, tmp_path / "out.mp4", opacity=0)
    assert summary.trouble.notes == ["10 bits per channel become 8"]
    assert psnr(decoded(tmp_path / "out.mp4")[2][1], picture(2)) > 28


def test_frames_of_another_size_are_brought_to_the_first(tmp_path):
    one = write_clip(tmp_path / "1.ts", 6)
    later = [36000 + 3600 * number for number in range(5)]
    two = write_clip(tmp_path / "2.ts", 5, (96, 160), pts=later)
    clip = tmp_path / "in.ts"
    clip.write_bytes(one.read_bytes() + two.read_bytes())
    summary = segmented(clip, tmp_path / "out.mp4", opacity=0)
    assert summary.frames == 11 and summary.trouble.resized == 5
    images = [image for _, image in decoded(tmp_path / "out.mp4")]
    assert all(image.shape == (64, 96, 3) for image in images)
    assert psnr(images[8], picture(2)) > 25


def test_sound_that_a_container_cannot_hold_is_told(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 5, audio="aac")
    summary = segmented(clip, tmp_path / "out.webm")
    assert summary.silent == ["aac"] and summary.codec == "libvpx-vp9"
    assert len(times(tmp_path / "out.webm")) == 5


def test_the_encoder_of_a_pyav_without_others_and_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("av.codecs_available", {"mpeg4"})
    clip = write_clip(tmp_path / "in.mp4", 9, audio="aac")
    summary = segmented(clip, tmp_path / "out.mp4", limit=4)
    assert summary.codec == "mpeg4" and summary.frames == 4
    # MPEG-4 counts in 65535ths of a second.
    for ours, theirs in zip(times(tmp_path / "out.mp4"), times(clip)[:4], strict=True):
        assert abs(ours - theirs) < Fraction(1, 60000)


@pytest.mark.parametrize(
    ("view", "name", "message"),
    [
        ("trainids", "out.webm", "a .webm file cannot hold what ffv1 encodes"),
        ("labels", "out.avi", "must end in .mp4, .m4v, .mov, .mkv, .webm, got '.avi'"),
    ],
)
def test_unusable_endings(tmp_path, view, name, message):
    clip = write_clip(tmp_path / "in.mp4", 3)
    with pytest.raises(VideoError, match=message):
        segmented(clip, tmp_path / name, view=view)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_clock_that_begins_anew_goes_on(tmp_path):
    one = write_clip(tmp_path / "1.ts", 40, pts=[9000 + 3600 * number for number in range(40)])
    clip = tmp_path / "in.ts"
    clip.write_bytes(one.read_bytes() * 2)
    summary = segmented(clip, tmp_path / "out.mp4")
    seconds = times(tmp_path / "out.mp4")
    steps = {after - before for before, after in itertools.pairwise(seconds)}
    assert summary.frames == 80 and steps == {Fraction(1, 25)}


def test_pixels_that_are_not_square_stay_so(tmp_path):
    def wide(_, video):
        video.codec_context.sample_aspect_ratio = Fraction(4, 3)

    segmented(write_clip(tmp_path / "in.mp4", 1, prepare=wide), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_a_numbered_sequence(tmp_path):
    """Any first number, a gap, a damaged picture, another size; other files are left alone."""
    for number in (7, 8, 10, 11, 12):
        write_image(tmp_path / f"f{number:04d}.png", picture(number))
    (tmp_path / "f0011.png").write_bytes(b"no picture")
    Image.fromarray(picture(12, (32, 48))).save(tmp_path / "f0012.png")
    write_image(tmp_path / "g0009.png", picture(9))
    source = open_video(str(tmp_path / "f%04d.png"), fps=Fraction(10))
    assert source.expected == 5
    summary = segment_video(source, tmp_path / "out.mp4", Bands(), opacity=0)
    results = decoded(tmp_path / "out.mp4")
    assert [seconds * 10 for seconds, _ in results] == [0, 1, 3, 5]
    assert psnr(results[2][1], picture(10)) > 28 and psnr(results[3][1], picture(12)) > 25
    assert (summary.trouble.skipped, summary.trouble.resized) == (1, 1)
    assert "f0011.png" in summary.trouble.notes[0]


def test_a_sequence_of_12_bits_is_read_by_its_range(tmp_path):
    grey = picture(3)[..., 0]
    for number in range(3):
        write_image(tmp_path / f"f{number}.png", (grey.astype(np.uint16) << 4) + number)
    dark = open_video(str(tmp_path / "f%d.png"))
    assert max(frame.image.max() for frame in dark) < 16
    assert len(dark.trouble.notes) == 2 and "upper 4 of 16 bits are empty" in dark.trouble.notes[0]
    source = open_video(str(tmp_path / "f%d.png"), range=(0, 4095))
    for frame in source:
        np.testing.assert_array_equal(frame.image, np.repeat(grey[..., None], 3, 2))
    assert source.trouble.notes == [
        "more than 8 bits per channel: values from 0 to 4095 became 0 to 255"
    ]
    small = open_video(str(tmp_path / "f%d.png"), max_pixels=100)
    assert list(small) == [] and "more than 0.0001 million pixels" in small.trouble.notes[0]


def test_sound_alone_is_no_video(tmp_path):
    clip = tmp_path / "in.mp4"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), "fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip.write_bytes(buffer.getvalue())
    with pytest.raises(VideoError, match=r"in\.mp4: holds no video"):
        open_video(str(clip))
