"""`fassd predict` on videos, after a kill, and in several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from cli.conftest import FAST
from clips import decoded, picture, psnr, sound, times, write_clip
from PIL import Image

from fassd.cli import batch
from fassd.inference.segmenter import Segmenter
from fassd.io.finished import OUTPUT_ENDINGS, RECORD
from fassd.io.images import write_image
from fassd.io.palette import overlay


def seen(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()
    )


def test_one_video_to_one_file(tmp_path, succeed):
    clip = write_clip(tmp_path / "in.mp4", 6, audio="aac")
    output = tmp_path / "new" / "out.mp4"
    result = succeed("predict", clip, "-o", output, *FAST, "--opacity", 0.4)
    assert times(output) == times(clip) and sound(output) == sound(clip)
    segmenter = Segmenter("fassd_net_l2", weights="streets", backend="reference", device="cpu")
    for (_, before), (_, after) in zip(decoded(clip), decoded(output), strict=True):
        assert psnr(after, overlay(before, segmenter.predict(before), 0.4)) > 28
    header, row = result.stdout.splitlines()[-2:]
    assert header.startswith("video ") and header.endswith("decode ms network ms encode ms")
    assert row.split()[1:4] == ["64x96", "6", "libx264"]
    assert sum(int(word[:-1]) for word in row.split() if word.endswith("%")) in range(98, 103)
    assert "1 of 1 videos" in result.stderr and "streets weights" in result.stderr
    assert os.listdir(output.parent) == ["out.mp4"]


def test_a_folder_of_pictures_and_videos(tmp_path, run_fassd):
    source = tmp_path / "in"
    write_image(source / "still.png", picture(0))
    (source / "deep").mkdir()
    for name in ("a.mp4", "deep/b.mkv"):
        write_clip(source / name, 9)
    (source / "broken.mp4").write_bytes(b"no video\n" * 99)
    for _ in range(2):  # results among the sources are no sources
        result = run_fassd("predict", source, "-o", source, *FAST, "--view", "labels", "--limit", 4)
        assert result.exit_code == 1
        assert "broken.mp4: is damaged, truncated or no video" in result.stderr
        assert "3 of 4 pictures and videos" in result.stderr and "1 failed" in result.stderr
    assert "(3 done before)" in result.stderr
    still = [f"still{ending}" for ending in OUTPUT_ENDINGS.values()]
    written = ["a_labels.mp4", "deep/b_labels.mp4", *still]
    sources = ["a.mp4", "broken.mp4", "deep/b.mkv", "still.png"]
    assert seen(source) == sorted(written + sources)
    assert len(times(source / "deep/b_labels.mp4")) == 4


def test_what_is_worth_knowing_is_told(tmp_path, succeed):
    clip = write_clip(tmp_path / "in.mkv", 3, (65, 97), pixels="yuv444p10le", audio="aac")
    result = succeed("predict", clip, "-o", tmp_path / "out.webm", *FAST)
    assert "in.mkv: 10 bits per channel become 8" in result.stderr
    assert "in.mkv: without sound: .webm cannot hold aac, .mkv can" in result.stderr
    assert "libvpx-vp9" in result.stdout and "65x97" in result.stdout


def test_a_sequence_at_its_frame_rate(tmp_path, succeed):
    for number in range(3):
        write_image(tmp_path / f"f{number}.png", picture(number))
    succeed("predict", tmp_path / "f%d.png", "-o", tmp_path / "out", *FAST, "--fps", 10)
    assert [float(second) for second in times(tmp_path / "out/f_overlay.mp4")] == [0, 0.1, 0.2]


def test_a_video_too_small_for_the_network_leaves_nothing(tmp_path, refusal):
    clip = write_clip(tmp_path / "in.mp4", 2, (32, 32))
    error = refusal("predict", clip, "-o", tmp_path / "out.mp4", *FAST)
    assert "in.mp4: the input must be at least" in error
    assert seen(tmp_path) == ["in.mp4"]


def test_without_pyav_it_tells_what_to_install(tmp_path, refusal, monkeypatch):
    clip = write_clip(tmp_path / "in.mp4", 2)
    ours = ("fassd.io.video", "fassd.inference.video")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    error = refusal("predict", clip, "-o", tmp_path / "out.mp4", *FAST)
    assert "error: videos need PyAV" in error and "pip install 'fassd-net[video]'" in error


def stamps(folder, names):
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def test_finished_files_are_done_again_only_if_something_changed(tmp_path, succeed):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png"):
        write_image(source / name, picture(0))
    write_clip(source / "c.mp4", 3)

    def run(*settings):
        before = stamps(output, seen(output)) if output.exists() else {}
        result = succeed("predict", source, "-o", output, *FAST, *settings)
        assert "3 of 3 pictures and videos" in result.stderr
        after = stamps(output, seen(output))
        changed = {name.partition("_")[0] for name in after if after[name] != before.get(name)}
        told = result.stderr.rpartition("(")[2].partition(" done before")[0]
        assert told == str(3 - len(changed)) if len(changed) < 3 else "before" not in result.stderr
        return "".join(sorted(changed))

    everything = "abc"
    assert run() == everything
    assert run() == ""
    assert run("--opacity", 0.9) == everything
    assert run("--opacity", 0.9, "--view", "labels") == "c"
    assert run("--opacity", 0.9, "--size", "64x64") == everything
    assert run("--opacity", 0.9, "--size", "64x64", "--again") == everything
    same = ("--threads", 1, "--timeout", 5, "--max-pixels", 150_000_000)
    assert run("--opacity", 0.9, "--size", "64x64", *same) == ""
    write_image(source / "b.png", picture(3))
    assert run("--opacity", 0.9, "--size", "64x64") == "b"
    (output / "a_overlay.png").unlink()
    assert run("--opacity", 0.9, "--size", "64x64") == "a"


def test_a_video_that_was_stopped_while_it_was_done_again_is_not_finished(
    tmp_path, succeed, run_fassd, monkeypatch
):
    arguments = ("predict", write_clip(tmp_path / "in.mp4", 3), "-o", tmp_path / "out", *FAST)
    succeed(*arguments)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "run_video", stopped)
        assert run_fassd(*arguments, "--again").exit_code == 130
    result = run_fassd(*arguments)
    assert "1 of 1 videos" in result.stderr and "done before" not in result.stderr


def start(*arguments, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.Popen(
        list(map(str, arguments)), env=environment, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def fassd(*arguments):
    return start(sys.executable, "-m", "fassd", "predict", *arguments, *FAST)


def wait_until(condition, run):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and run.poll() is None, run.stderr.read()
        time.sleep(0.002)


def killed(condition, *arguments, after=0):
    """Run until `condition`, and some seconds, and then kill -9."""
    run = fassd(*arguments)
    wait_until(condition, run)
    time.sleep(after)
    run.kill()
    run.wait(10)


def finished(*arguments):
    """Run to the end; what it printed."""
    run = fassd(*arguments)
    assert run.wait(60) == 0
    return run.stderr.read()


def test_kill_9_in_mid_folder_and_on(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    count = 24
    for number in range(count):
        write_image(source / f"{number:02d}.png", picture(number, (128, 192)))
    killed(lambda: len(list(output.glob("*_trainids.png"))) >= 5, source, "-o", output)
    done = [path.name for path in output.glob("*_trainids.png")]
    assert 5 <= len(done) < count
    record = (output / RECORD).read_text()
    noted = record.count('"key": "') - record.count('"key": ""')  # the rest is only begun
    before = stamps(output, done)
    stderr = finished(source, "-o", output)
    assert f"{count} of {count} pictures" in stderr and f"({noted} done before)" in stderr
    # What was finished a moment before the kill may not have been noted.
    after = stamps(output, done)
    assert sum(after[name] == before[name] for name in done) == noted >= len(done) - 1
    assert len(seen(output)) == 3 * count
    with Image.open(output / "23_trainids.png") as labels:
        assert np.asarray(labels).shape == (128, 192)


def test_kill_9_in_mid_video_and_on(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_clip(source / "a.mp4", 4)
    clip = write_clip(source / "b.mp4", 150, (128, 192), audio="aac")
    killed(lambda: list(output.glob(".b_*.part")), source, "-o", output, after=0.2)
    assert seen(output) == ["a_overlay.mp4"] and len(list(output.glob(".b_*.part"))) == 1
    before = stamps(output, ["a_overlay.mp4"])
    stderr = finished(source, "-o", output)
    assert "2 of 2 videos" in stderr and "(1 done before)" in stderr
    assert stamps(output, ["a_overlay.mp4"]) == before
    assert times(output / "b_overlay.mp4") == times(clip)
    assert not list(output.glob(".*.part"))


def test_ctrl_c_in_mid_video_leaves_one_that_plays(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 300, (128, 192), audio="aac")
    run = fassd(clip, "-o", tmp_path / "out")
    wait_until(lambda: list(tmp_path.glob("out/.*.part")), run)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    stderr = run.stderr.read()
    seconds = times(tmp_path / "out/in_overlay.mp4")
    assert 0 < len(seconds) < 300 and seconds == times(clip)[: len(seconds)]
    assert f"{len(seconds)} frames written: " in stderr and "stopped" in stderr
    assert (tmp_path / "out" / RECORD).read_text().count('"key": ""') == 1  # it is not finished


def test_torchrun_shares_the_sources_and_one_process_reports(tmp_path, run_fassd):
    """Also those of which one was done before."""
    source = tmp_path / "in"
    for number in range(5):
        write_image(source / f"{number}.png", picture(number))
    write_clip(source / "a.mp4", 5)
    write_clip(source / "b.mp4", 5)
    (source / "2.png").write_bytes(b"")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    settings = (*FAST, "--threads", 1)
    run_fassd("predict", source / "0.png", "-o", tmp_path / "two", *settings)
    one = run_fassd("predict", source, "-o", tmp_path / "one", *settings)
    arguments = ("-m", "fassd", "predict", source, "-o", tmp_path / "two", *settings)
    two = start(*torchrun, 2, *arguments)
    reports = [one.stderr, two.communicate(timeout=120)[1]]
    assert [one.exit_code, two.returncode] == [1, 1]
    for report in reports:
        assert report.count("6 of 7 pictures and videos") == 1
        assert report.count("2.png: is empty") == 1
    assert "(1 done before), 1 failed" in reports[1]
    assert seen(tmp_path / "one") == seen(tmp_path / "two") != []
    for name in seen(tmp_path / "one"):
        if name.endswith(".png"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert times(tmp_path / "two/a_overlay.mp4") == times(source / "a.mp4")


def test_the_progress_tells_rate_and_shares(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 40)
    code = (
        "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'fassd', *sys.argv[1:]]) >> 8)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "predict", clip, "-o", tmp_path / "out.mp4", *FAST],
        stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "150", "TERM": "xterm"}, text=True,
        timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "frames/s  decode" in run.stdout and "network" in run.stdout and "/40" in run.stdout
    assert Path(tmp_path / "out.mp4").exists()


def test_labels_of_frames_are_exact(tmp_path, run_fassd):
    """Of odd sides, too."""
    clip = write_clip(tmp_path / "in.mkv", 4, audio="aac")
    settings = (*FAST, "--view", "trainids")
    assert run_fassd("predict", clip, "-o", tmp_path / "out", *settings).exit_code == 0
    output = tmp_path / "out" / "in_trainids.mkv"
    assert times(output) == times(clip)
    segmenter = Segmenter("fassd_net_l2", weights="streets", backend="reference", device="cpu")
    for (_, before), (_, after) in zip(decoded(clip), decoded(output), strict=True):
        right = segmenter.predict(before)
        assert len(np.unique(right)) > 1
        for channel in np.moveaxis(after, 2, 0):
            np.testing.assert_array_equal(channel, right)
    again = run_fassd("predict", tmp_path / "out", clip, "-o", tmp_path / "out", *settings)
    assert "1 done before" in again.stderr

    wrong = run_fassd("predict", clip, "-o", tmp_path / "out.webm", *settings)
    assert "a .webm file cannot hold what ffv1 encodes" in wrong.stderr
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out"]


def test_the_overlay_fades_where_labels_are_uncertain(tmp_path, succeed):
    clip = write_clip(tmp_path / "in.mp4", 3)
    output = tmp_path / "out.mp4"
    succeed("predict", clip, "-o", output, *FAST, "--confidence", "margin", "--opacity", 1)
    segmenter = Segmenter("fassd_net_l2", weights="streets", backend="reference", device="cpu")
    for (_, before), (_, after) in zip(decoded(clip), decoded(output), strict=True):
        labels, certainty = segmenter.predict(before, confidence="margin")
        faded = overlay(before, labels, 1, certainty=certainty)
        assert psnr(after, faded) > 28
        assert psnr(after, faded) > psnr(after, overlay(before, labels, 1)) + 6
