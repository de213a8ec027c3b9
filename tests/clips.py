"""Clips with every trouble that tests ask for, made with PyAV, and how to look at them."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from fassd.inference.video import segment_video
from fassd.io.video import open_video

CLOCK = Fraction(1, 90000)


class Bands:
    """Stands for a network: sixteen classes by the brightness of red."""

    def predict(self, image):
        return image[..., 0] >> 4


def picture(number, size=(64, 96)):
    """A frame whose four corners differ, and which no other number has."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 40, 40)
    image[: height // 2, width // 2 :] = (40, 200, 40)
    image[height // 2 :, : width // 2] = (40, 40, 200)
    image[height // 2 :, width // 2 :] = (120, 120, 5 * number % 256)
    return image


def segmented(source, output, **settings):
    """The summary of a video that `Bands` labels."""
    return segment_video(open_video(str(source)), output, Bands(), **settings)


def write_clip(
    path,
    frames=20,
    size=(64, 96),
    *,
    codec="libx264",
    pixels="yuv420p",
    options=None,
    pts=None,
    rotation=None,
    audio=None,
    fps=25,
    draw=picture,
    prepare=lambda container, video: None,
):
    """A clip of `frames` pictures, at `pts` of `CLOCK` or `fps`; `audio` names a codec of sound.

    `rotation` is the matrix a, b, c, d that a player shows it by; `prepare` is called with the
    container and its stream of pictures before the first.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=options or {})
        video.height, video.width = size
        video.pix_fmt = pixels
        video.time_base = video.codec_context.time_base = CLOCK
        prepare(container, video)
        sound = container.add_stream(audio, rate=48000, layout="mono") if audio else None
        container.start_encoding()
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, size), "rgb24").reformat(format=pixels)
            frame.time_base = CLOCK
            frame.pts = pts[number] if pts else round(number / fps / CLOCK)
            frame.duration = round(1 / fps / CLOCK)
            container.mux(video.encode(frame))
            if sound is not None:
                container.mux(sound.encode(_noise(number, sound, 48000 // fps)))
        container.mux(video.encode())
        if sound is not None:
            container.mux(sound.encode())
    if rotation is not None:
        _turn(path, rotation)
    return path


def write_photographs(path, orientations, rotation=None):
    """A clip of JPEGs as cameras and phones send them, each with EXIF and its orientation there."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj444p"
        stream.time_base = Fraction(1, 25)
        container.start_encoding()
        for number, orientation in enumerate(orientations):
            exif = Image.Exif()
            exif[0x010F] = "Camera"
            exif[0x0112] = orientation
            jpeg = io.BytesIO()
            Image.fromarray(picture(number)).save(jpeg, "JPEG", exif=exif, subsampling=0)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base = stream, stream.time_base
            packet.pts = packet.dts = number
            packet.duration = 1
            container.mux(packet)
    if rotation is not None:
        _turn(path, rotation)
    return path


def _turn(path, matrix):
    """Write a, b, c, d into the header of an MP4's first track: x, y goes to ax + cy, bx + dy."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    place += 52 if data[place] else 40  # version 1 has longer times
    a, b, c, d = (each * 65536 for each in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def _noise(number, stream, samples):
    noise = np.random.default_rng(number).normal(scale=0.1, size=(1, samples))
    frame = av.AudioFrame.from_ndarray(noise.astype("f4"), "fltp", layout="mono")
    frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
    frame.pts = number * samples
    return frame


def decoded(path):
    """(seconds, (H, W, 3) RGB) of every frame."""
    with av.open(str(path)) as container:
        return [
            (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]


def times(path):
    return [seconds for seconds, _ in decoded(path)]


def sound(path):
    """Every packet of sound: bytes, and seconds from when to when."""
    with av.open(str(path)) as container:
        return [
            (bytes(packet), packet.pts * packet.time_base, packet.duration * packet.time_base)
            for packet in container.demux(audio=0)
            if packet.dts is not None
        ]


def psnr(one, two):
    """Decibels between two pictures."""
    assert one.shape == two.shape
    error = np.mean((one.astype(float) - two.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))
