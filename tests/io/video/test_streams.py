"""Streams that drop, hang and end; cameras."""

import itertools
import sys
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import pytest
from clips import Bands, sound, times, write_clip

from fassd.inference.video import segment_video
from fassd.io.video import VideoError, VideoReader
from fassd.io.video import reader as readers


class Server:
    """Serves one file on loopback; what goes wrong is told by request, from 0.

    cut: share of the file after which the connection closes. hang: share after which nothing comes.
    refuse: answers 503. endless: without a length, as a camera does it.
    """

    def __init__(self, data, troubles=(), ranges=True, endless=False):
        self.requests, release = 0, threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                number, server.requests = server.requests, server.requests + 1
                kind, share = troubles[number] if number < len(troubles) else ("cut", 1)
                if kind == "refuse":
                    self.send_error(503)
                    return
                wanted = self.headers.get("Range") if ranges else None
                start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                if not endless:
                    self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start : int(share * len(data))])
                if kind == "hang":
                    self.wfile.flush()
                    release.wait(30)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._release = release
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def address(self, name):
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def close(self):
        self._release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **settings):
        servers.append(Server(*arguments, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("kind", ["cut", "hang"])
def test_a_file_from_a_server_goes_on_where_it_dropped(tmp_path, serve, kind, ranges):
    clip = write_clip(tmp_path / "in.mkv", 120, (128, 192), audio="aac", options={"g": "12"})
    server = serve(clip.read_bytes(), [(kind, 0.6)], ranges=ranges)
    source = VideoReader(server.address("in.mkv"), timeout=0.5, delays=(0.05, 0.05))
    assert not source.live
    summary = segment_video(source, tmp_path / "out.mkv", Bands())
    assert summary.trouble.reconnections == 1 and server.requests >= 2
    assert summary.trouble.skipped == 0 and not summary.trouble.notes
    assert len(times(tmp_path / "out.mkv")) == 120
    assert times(tmp_path / "out.mkv") == times(clip)
    assert [packet for packet, *_ in sound(tmp_path / "out.mkv")] == [
        packet for packet, *_ in sound(clip)
    ]


def test_pauses_between_attempts_are_kept_and_refusals_count_as_attempts(tmp_path, serve):
    clip = write_clip(tmp_path / "in.mkv", 120, (128, 192))
    server = serve(clip.read_bytes(), [("cut", 0.6), ("refuse", 0), ("refuse", 0)], ranges=False)
    source = VideoReader(server.address("in.mkv"), timeout=2, delays=(0.1, 0.2, 0.3))
    started = time.monotonic()
    summary = segment_video(source, tmp_path / "out.mp4", Bands())
    assert time.monotonic() - started >= 0.6
    assert summary.frames == 120 and summary.trouble.reconnections == 1


def test_a_stream_that_stays_away_gives_a_file_and_a_note(tmp_path, serve):
    clip = write_clip(tmp_path / "in.mkv", 120, (128, 192))
    server = serve(clip.read_bytes(), [("cut", 0.6), *[("refuse", 0)] * 9], ranges=False)
    source = VideoReader(server.address("in.mkv"), timeout=2, delays=(0.01, 0.01))
    summary = segment_video(source, tmp_path / "out.mp4", Bands())
    (note,) = summary.trouble.notes
    assert note.startswith("lost, and 2 attempts to reconnect failed (")
    assert 10 < summary.frames < 120 and len(times(tmp_path / "out.mp4")) == summary.frames
    assert server.requests == 3


def test_an_endless_stream_goes_on_with_the_time_that_passed(tmp_path, serve):
    """A camera that sends MPEG-TS without an end, and drops twice."""
    clip = write_clip(tmp_path / "in.ts", 50, (128, 192), audio="aac", options={"g": "10"})
    server = serve(clip.read_bytes(), ranges=False, endless=True)
    source = VideoReader(server.address("live.ts"), timeout=2, delays=(0.3, 0.3))
    assert source.live
    stops = _stops_after(source, requests=3, server=server)
    summary = segment_video(source, tmp_path / "out.mp4", stops)
    assert summary.trouble.reconnections >= 2
    seconds = times(tmp_path / "out.mp4")
    assert seconds == sorted(set(seconds)) and len(seconds) == summary.frames
    gaps = [after - before for before, after in itertools.pairwise(seconds)]
    assert sum(gap > Fraction(3, 10) for gap in gaps) >= 2  # the pauses
    with av.open(str(tmp_path / "out.mp4")) as container:
        starts = [packet.dts for packet in container.demux(audio=0) if packet.dts is not None]
    assert starts == sorted(set(starts)) and len(starts) > 50


def _stops_after(source, requests, server):
    """A network that ends the stream some frames after so many connections."""

    class Stops(Bands):
        rest = 20

        def predict(self, image):
            if source.trouble.reconnections >= requests - 1:
                self.rest -= 1
            if self.rest == 0:
                source.stopped.set()
            return super().predict(image)

    return Stops()


def test_a_server_that_says_nothing_is_left_after_the_timeout(serve, tmp_path):
    server = serve(b"", [("hang", 0)], ranges=False, endless=True)
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"in\.mp4: no video came for 0\.3 seconds"):
        VideoReader(server.address("in.mp4"), timeout=0.3)
    assert time.monotonic() - started < 5


def test_nobody_there():
    with pytest.raises(VideoError, match=r"rtsp://127\.0\.0\.1:9/x: Connection refused"):
        VideoReader("rtsp://127.0.0.1:9/x", timeout=2)


@pytest.mark.parametrize(
    ("system", "name", "format_", "options"),
    [
        ("linux", "/dev/video2", "v4l2", {"framerate": "15"}),
        ("darwin", "2", "avfoundation", {"framerate": "15"}),
        ("win32", "video=third", "dshow", {"framerate": "15"}),
    ],
)
def test_a_camera_is_opened_by_its_number_and_is_live(
    tmp_path, monkeypatch, system, name, format_, options
):
    clip = write_clip(tmp_path / "in.ts", 5)
    real, asked = av.open, []

    def opened(file, *arguments, **settings):
        if arguments:  # a file to write
            return real(file, *arguments, **settings)
        asked.append((file, settings))
        container = real(str(clip))
        return _Endless(container)

    class _Endless:
        """A container that does not know how long it is, as that of a camera."""

        duration = None

        def __init__(self, container):
            self._container = container

        def __getattr__(self, attribute):
            return getattr(self._container, attribute)

    device = type("Device", (), {"media_types": ["video"]})
    devices = [device(), device(), device()]
    for each, title in zip(devices, ("first", "second", "third"), strict=True):
        each.name = title
    monkeypatch.setattr(readers.av.device, "enumerate_input_devices", lambda _: devices)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(readers.av, "open", opened)
    source = VideoReader("camera:2", fps=Fraction(15), timeout=3)
    source.close()
    assert source.live
    settings = {"format": format_, "options": options, "timeout": (3, 3)}
    assert asked == [(name, {**settings, "metadata_errors": "replace"})]


def test_rtsp_goes_over_tcp(monkeypatch):
    asked = []

    def opened(file, **settings):
        asked.append((file, settings["options"]))
        raise av.FFmpegError(1, "no")

    monkeypatch.setattr(readers.av, "open", opened)
    with pytest.raises(VideoError, match="rtsp://camera/1: no"):
        VideoReader("rtsp://camera/1")
    assert asked == [("rtsp://camera/1", {"rtsp_transport": "tcp"})]
