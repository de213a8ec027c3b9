"""Loaded networks, the bounded queue, and the one thread that runs pictures in batches.

PyTorch uses every core for one picture, so networks run in one thread, one batch after the other.
Pictures wait in a queue. The first one is always taken; later ones for the same network at the same
size join it, up to the maximum batch.

Measured at 512x1024 in float32 on two cores, milliseconds per picture alone and in batches of 4:
FASSD-Net 48.0 and 43.2, L2 13.7 and 11.5 with the fused CPU kernels; 252 and 282, 87 and 90 with
plain PyTorch. Batches consist of pictures that arrived while the network was busy, so that they do
not wait for each other.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fassd_kernels.reference.upsample import Measure

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter

LOG = logging.getLogger("fassd.serve")

Picture = npt.NDArray[np.uint8]


class BusyError(Exception):
    """The queue is full."""


class StoppingError(Exception):
    """The server is stopping; the picture will not be labelled."""


class UnsuitableError(ValueError):
    """This network cannot take this picture, or cannot run as requested; the message is public."""


class Choice(NamedTuple):
    """A network and the way to run it; all three are names, as on the command line."""

    model: str
    backend: str
    dtype: str


class LabelledPicture(NamedTuple):
    """A picture's labels, (H, W) uint8, the seconds in the queue and in the network, the size of
    the batch, and the certainty of the labels, if requested."""

    labels: Picture
    waited: float
    network: float
    batch: int
    certainty: Picture | None = None


Loader = Callable[[Choice], "Segmenter"]


# --------------------------------------------------------------------------------------- networks


def cached(load: Loader, keep: int = 4) -> Any:
    """The same function, which keeps the segmenters that were used last.

    It raises UnsuitableError if the backend cannot run a network on this device in a precision.
    """

    @functools.lru_cache(keep)
    def loaded(choice: Choice) -> Segmenter:
        try:
            return load(choice)
        except (ValueError, RuntimeError) as error:  # fassd_kernels' BackendError is the latter
            LOG.warning("%s cannot be loaded: %s", "/".join(choice), error)
            raise UnsuitableError(
                f"{choice.model} cannot run here with backend={choice.backend} and "
                f"dtype={choice.dtype}; choose others"
            ) from error

    return loaded


def label_pictures(
    segmenter: Segmenter, pictures: list[Picture], measure: Measure | None = None
) -> list[Picture]:
    """Label pictures of one size, together if the segmenter contains a PyTorch network.

    Args:
        segmenter: any segmenter of at most 256 classes.
        pictures: (H, W, 3) uint8 RGB each.
        measure: measure of certainty, as in `fassd.Segmenter.predict`.

    Returns:
        (H, W) uint8 class indices of each, equal to those of `segmenter.predict` one by one; with a
        measure (2, H, W), these and their certainty.

    Raises:
        UnsuitableError: the pictures are too small for the network, or it has no certainty.
    """
    network = getattr(segmenter, "model", None)
    try:
        if len(pictures) == 1 or not isinstance(network, torch.nn.Module):
            if measure is None:
                return [segmenter.predict(picture).astype(np.uint8) for picture in pictures]
            return [np.stack(segmenter.predict(each, confidence=measure)) for each in pictures]
        if measure is not None:
            return list(np.stack(segmenter.predict(np.stack(pictures), confidence=measure), 1))
        return list(segmenter.predict(np.stack(pictures)).astype(np.uint8))
    except ValueError as error:
        raise UnsuitableError(str(error)) from error


# ------------------------------------------------------------------------------------------ queue


@dataclass(eq=False)
class _Job:
    """A picture in the queue."""

    choice: Choice
    picture: Picture
    measure: Measure | None
    answer: Future[LabelledPicture] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)

    @property
    def kind(self) -> tuple[Choice, Measure | None, tuple[int, ...]]:
        """Jobs of one kind can share a batch."""
        return self.choice, self.measure, self.picture.shape


class Engine:
    """The queue and the thread that labels pictures in the order of arrival.

    Args:
        networks: function that loads a segmenter, by `cached`.
        queue: maximum number of waiting pictures, not counting those being processed.
        batch: maximum number of pictures in a batch.
        batch_pixels: maximum number of pixels in a batch of several pictures, so that a batch needs
            no more memory than the largest picture.
        stuck: seconds after which an unfinished batch makes the engine unhealthy.
        on_batch: function called after every batch with its choice, number of pictures, and
            seconds.
    """

    def __init__(
        self,
        networks: Any,
        *,
        queue: int = 16,
        batch: int = 4,
        batch_pixels: int = 1 << 23,
        stuck: float = 60.0,
        on_batch: Callable[[Choice, int, float], object] = lambda *_: None,
    ) -> None:
        self.networks = networks
        self._queue, self._batch, self._batch_pixels = queue, batch, batch_pixels
        self._stuck, self._on_batch = stuck, on_batch
        self._line: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._seconds = 0.0  # per picture, in the last batch
        self._thread = threading.Thread(target=self._work, name="fassd-serve", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse waiting pictures and let the current batch finish, for at most five seconds."""
        with self._changed:
            self._stopping = True
            waiting = list(self._line)
            self._line.clear()
            self._changed.notify_all()
        for job in waiting:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(StoppingError())
        if self._thread.is_alive():
            self._thread.join(5)

    def submit(
        self, choice: Choice, picture: Picture, measure: Measure | None = None
    ) -> Future[LabelledPicture]:
        """Put a picture into the queue. Cancelling the future removes it, unless it is at work.

        Args:
            choice: network, and the way to run it.
            picture: (H, W, 3) uint8 RGB.
            measure: measure of certainty, as in `fassd.Segmenter.predict`.

        Raises:
            BusyError: `queue` pictures are waiting already.
            StoppingError: `stop` was called.
        """
        job = _Job(choice, picture, measure)
        with self._changed:
            if self._stopping:
                raise StoppingError
            self._forget_cancelled()
            if len(self._line) >= self._queue:
                raise BusyError
            self._line.append(job)
            self._changed.notify_all()
        return job.answer

    @property
    def waiting(self) -> int:
        """Number of pictures in the queue."""
        with self._changed:
            self._forget_cancelled()
            return len(self._line)

    @property
    def full(self) -> bool:
        return self.waiting >= self._queue

    @property
    def patience(self) -> float:
        """Seconds in which a full queue is expected to have been served."""
        return self._queue * self._seconds

    @property
    def healthy(self) -> bool:
        """True if the thread is alive, and no batch has taken more than `stuck` seconds."""
        busy = self._busy_since
        held_up = busy is not None and time.monotonic() - busy > self._stuck
        return self._thread.is_alive() and not held_up

    def _forget_cancelled(self) -> None:
        for job in [job for job in self._line if job.answer.cancelled()]:
            self._line.remove(job)

    def _work(self) -> None:
        while jobs := self._next():
            self._busy_since = time.monotonic()
            self._run(jobs)
            self._busy_since = None

    def _next(self) -> list[_Job]:
        """The next batch, not empty; empty when the engine stops."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._stopping or self._line)
                if self._stopping:
                    return []
                jobs = self._head()
                for job in jobs:
                    self._line.remove(job)
                # From here on a job cannot be cancelled any more.
                jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
                if jobs:
                    return jobs

    def _head(self) -> list[_Job]:
        """The first picture in the queue and those that can share its batch."""
        self._forget_cancelled()
        if not self._line:
            return []
        first = self._line[0]
        height, width, _ = first.picture.shape
        most = max(1, min(self._batch, self._batch_pixels // (height * width)))
        return [job for job in self._line if job.kind == first.kind][:most]

    def _run(self, jobs: list[_Job]) -> None:
        """Label a batch; errors are passed to the futures of its pictures."""
        choice = jobs[0].choice
        try:
            segmenter = self.networks(choice)
            started = time.perf_counter()
            pictures = [job.picture for job in jobs]
            results = label_pictures(segmenter, pictures, jobs[0].measure)
            seconds = time.perf_counter() - started
            self._on_batch(choice, len(jobs), seconds)
        except BaseException as error:
            for job in jobs:
                job.answer.set_exception(error)
            return
        self._seconds = seconds / len(jobs)
        for job, result in zip(jobs, results, strict=True):
            labels, certainty = (result, None) if job.measure is None else result
            waited = started - job.since
            answer = LabelledPicture(labels, waited, seconds, len(jobs), certainty)
            job.answer.set_result(answer)
