"""Damaged, empty and foreign files; encoders that fail; Ctrl-C; memory; threads."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Bands, decoded, picture, psnr, segmented, times, write_clip

from fassd.inference.video import DEPTH, segment_video
from fassd.io.video import VideoError, VideoSource, VideoWriter, open_video
from fassd.io.video.source import Frame


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_damage_in_the_middle_is_skipped_and_counted(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 60, options={"g": "10"})
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos is not None]
    packet = packets[32]  # its length is left and all else is noise
    noise = np.random.default_rng(0).integers(0, 256, packet.size - 4, np.uint8)
    data[packet.pos + 4 : packet.pos + packet.size] = noise.tobytes()
    clip.write_bytes(data)
    summary = segmented(clip, tmp_path / "out.mp4", opacity=0)
    assert summary.trouble.skipped >= 1
    assert summary.frames == 60 - summary.trouble.skipped
    results = decoded(tmp_path / "out.mp4")
    assert len(results) == summary.frames
    assert results[-1][0] == Fraction(59, 25) and psnr(results[-1][1], picture(59)) > 28


def test_a_truncated_file_gives_what_is_there_and_a_note(tmp_path):
    clip = write_clip(tmp_path / "in.mkv", 60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    summary = segmented(clip, tmp_path / "out.mp4")
    assert 5 < summary.frames < 45 and len(times(tmp_path / "out.mp4")) == summary.frames
    (note,) = summary.trouble.notes
    missing = float(59 / Fraction(25) - times(tmp_path / "out.mp4")[-1])
    assert note == f"ends {missing:.1f} s before the end that it announces"


NO_VIDEO = "is damaged, truncated or no video that FFmpeg reads"


def _no_index(path):
    write_clip(path, 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "must be a file, is a folder"),
        (os.mkfifo, "must be a file, is a pipe, socket or device"),
        (Path.touch, "is empty"),
        (lambda path: path.write_bytes(b"a letter, not a film\n" * 99), NO_VIDEO),
        (_no_index, NO_VIDEO),
        (
            lambda path: write_clip(path, 0),
            "holds no frame that can be decoded|holds no video|is damaged",
        ),
    ],
    ids=["missing", "folder", "pipe", "empty", "no video", "cut off", "no frames"],
)
def test_what_is_no_video_is_named_and_leaves_nothing(tmp_path, make, message):
    clip = tmp_path / "in.mp4"
    make(clip)
    with pytest.raises(VideoError, match=rf"in\.mp4: ({message})"):
        segmented(clip, tmp_path / "out" / "out.mp4")
    assert not (tmp_path / "out").exists()


def test_a_network_that_refuses_the_frames_leaves_nothing(tmp_path):
    class Refuses:
        def predict(self, image):
            raise ValueError("the input must be at least 57x57")

    clip = write_clip(tmp_path / "in.mp4", 3)
    with pytest.raises(VideoError, match=r"in\.mp4: the input must be at least 57x57"):
        segment_video(open_video(str(clip)), tmp_path / "out.mp4", Refuses())
    assert names(tmp_path) == ["in.mp4"]


def test_a_full_disk_ends_it_and_leaves_what_was_there(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "in.mp4", 200)
    (tmp_path / "out.mp4").write_text("before")
    written = []

    def write(self, image, pts, duration):
        written.append(pts)
        if len(written) == 7:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "write", write)
    with pytest.raises(OSError, match="No space left"):
        segmented(clip, tmp_path / "out.mp4")
    assert len(written) == 7
    assert names(tmp_path) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "before"


class Interrupts(Bands):
    """Ctrl-C is pressed while it labels its nth frame, and again at another."""

    def __init__(self, *at):
        self.at, self.count = at, 0

    def predict(self, image):
        self.count += 1
        if self.count in self.at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return super().predict(image)


def test_ctrl_c_closes_the_file_so_that_it_plays(tmp_path):
    clip = write_clip(tmp_path / "in.mp4", 200, audio="aac")
    before = signal.getsignal(signal.SIGINT)
    summary = segment_video(open_video(str(clip)), tmp_path / "out.mp4", Interrupts(20))
    assert summary.interrupted and summary.frames == 20
    assert times(tmp_path / "out.mp4") == times(clip)[:20]
    assert names(tmp_path) == ["in.mp4", "out.mp4"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_drops_the_file(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "in.mp4", 200)
    close = VideoWriter.close

    def slowly(self):
        time.sleep(0.3)
        close(self)

    monkeypatch.setattr(VideoWriter, "close", slowly)
    pressed = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    class Twice(Interrupts):
        def predict(self, image):
            if self.count == 5:
                pressed.start()
            return super().predict(image)

    with pytest.raises(KeyboardInterrupt):
        segment_video(open_video(str(clip)), tmp_path / "out.mp4", Twice(6))
    assert names(tmp_path) == ["in.mp4"]


class Scripted(VideoSource):
    """Frames made on the spot; `shown` counts those that were asked for."""

    def __init__(self, frames, live=False, audio=()):
        super().__init__("scripted")
        self.frames, self.live, self.shown = frames, live, 0
        self.rate, self.time_base = Fraction(25), Fraction(1, 25)
        self.moved = threading.Condition()
        self.closed = threading.Event()

    def __iter__(self):
        for number in range(self.frames):
            with self.moved:
                self.shown += 1
                self.moved.notify_all()
            yield Frame(picture(number), number, 1, [])

    def wait_for(self, shown):
        with self.moved:
            assert self.moved.wait_for(lambda: self.shown >= shown, timeout=10)

    def close(self):
        self.closed.set()


def test_decoding_runs_ahead_of_the_network_but_not_far(tmp_path):
    source = Scripted(60)
    leads = []

    class Watches(Bands):
        count = 0

        def predict(self, image):
            self.count += 1
            source.wait_for(min(self.count + 2, 60))  # would stand still if it were not decoding
            leads.append(source.shown - self.count)
            return super().predict(image)

    segment_video(source, tmp_path / "out.mp4", Watches())
    assert 2 <= max(leads) <= DEPTH + 2
    assert source.closed.wait(5)


def test_encoding_runs_beside_the_network_but_not_far_behind(tmp_path, monkeypatch):
    write = VideoWriter.write
    labelled, behind = [], []

    def slowly(self, image, pts, duration):
        deadline = time.monotonic() + 10
        # Would stand still if the network waited for the encoder.
        while len(labelled) < min(pts + 3, 30) and time.monotonic() < deadline:
            time.sleep(0.001)
        behind.append(len(labelled) - pts)
        write(self, image, pts, duration)

    class Counts(Bands):
        def predict(self, image):
            labelled.append(image)
            return super().predict(image)

    monkeypatch.setattr(VideoWriter, "write", slowly)
    segment_video(Scripted(30), tmp_path / "out.mp4", Counts())
    assert behind[0] >= 3 and max(behind) <= DEPTH + 3


def test_a_live_source_drops_the_oldest_frames_instead_of_waiting(tmp_path):
    source = Scripted(300, live=True)
    seen = []

    class Slow(Bands):
        def predict(self, image):
            # Nobody waits: all frames have come before the second is labelled.
            source.wait_for(300)
            seen.append(int(image[-1, -1, 2]))
            return super().predict(image)

    summary = segment_video(source, tmp_path / "out.mp4", Slow())
    assert summary.dropped == 300 - summary.frames and summary.frames <= DEPTH + 2
    newest = [5 * number % 256 for number in range(300 - DEPTH, 300)]
    assert seen[-DEPTH:] == newest
    assert times(tmp_path / "out.mp4")[-1] == Fraction(299, 25)


MEASURED = """
import resource, sys
from fassd.inference.video import segment_video
from fassd.io.video import open_video
from clips import Bands
def megabytes():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
early = []
segment_video(open_video(sys.argv[1]), sys.argv[2], Bands(),
              on_frame=lambda now: early.append(megabytes()) if now.frames == 30 else None)
print(megabytes() - early[0])
"""


def test_memory_does_not_grow_with_the_length(tmp_path):
    still = picture(0, (360, 640))
    clip = write_clip(
        tmp_path / "in.mp4", 300, (360, 640), options={"preset": "ultrafast"}, audio="aac",
        draw=lambda number, size: np.roll(still, number, axis=1),
    )  # fmt: skip
    command = [sys.executable, "-c", MEASURED, clip, tmp_path / "out.mp4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # The 270 frames after the first 30 are 187 MB of pixels.
    assert float(done.stdout) < 20
