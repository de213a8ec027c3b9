"""Queues of work: streams of a GPU, and a replacement for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Queue:
    """Work that is done in order, concurrently with other queues; on a CPU, at once.

    A *mark* is a position in a queue; its ``synchronize`` waits until everything before it is done.
    """

    def run(self, work: Callable[[], object]) -> None:
        """Queue what `work` launches; it may be executed at any later time."""
        work()

    def record(self) -> Any:
        """Return a mark after the work queued so far."""
        return self  # everything is done

    def wait(self, mark: Any) -> None:
        """Make the work queued from now on wait for `mark`, of another queue."""

    def follow(self) -> None:
        """Make the work queued from now on wait for the caller's own work so far."""

    def synchronize(self) -> None:
        """Wait until the queue is empty."""


class CudaQueue(Queue):
    """A :class:`Queue` as a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self.stream):  # also makes its device the current one
            work()

    def record(self) -> torch.cuda.Event:
        return self.stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        self.stream.wait_event(mark)

    def follow(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def synchronize(self) -> None:
        self.stream.synchronize()
