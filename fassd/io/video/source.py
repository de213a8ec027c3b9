"""The interface that all sources of frames share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

DEFAULT_FPS = Fraction(25)


class VideoError(ValueError):
    """A video cannot be read or written; the message names it and says why."""


class Frame(NamedTuple):
    """One frame, and the sound that comes before it.

    image: (H, W, 3) uint8 RGB, upright; None if only sound is left.
    pts, duration: time and duration of display (0 if unknown), in the source's `time_base`.
    audio: packets in the order of arrival, each with its stream's position in `VideoSource.audio`.
    """

    image: npt.NDArray[np.uint8] | None
    pts: int
    duration: int
    audio: list[tuple[int, av.Packet]]


@dataclass
class ReadStats:
    """Problems met while a source was read.

    skipped: number of damaged frames that were skipped.
    resized: number of frames resized to the first one's size.
    reconnections: number of times that a stream dropped and came back.
    notes: other messages for the user, each once.
    """

    skipped: int = 0
    resized: int = 0
    reconnections: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class VideoSource(ABC):
    """Frames in the order in which they are shown, all of one size; iterate over it once.

    name: name of the source in errors.
    live: True if it does not wait for its reader: a camera or an endless stream.
    time_base: seconds of one unit of `Frame.pts`.
    rate: frames per second, on average, as far as known.
    expected: number of frames, if known.
    pixel_aspect: width over height of a pixel, upright.
    audio: streams of sound, as templates for those of a copy.
    waited: seconds spent waiting for a live source, which do not count as work.
    stopped: set it to True to end the frames soon.
    """

    name: str
    live: bool = False
    time_base: Fraction
    rate: Fraction
    expected: int | None = None
    pixel_aspect: Fraction = Fraction(1)
    audio: Sequence[av.AudioStream] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.trouble = ReadStats()
        self.waited = 0.0
        self.stopped = threading.Event()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def close(self) -> None:
        """Release the file or device."""
