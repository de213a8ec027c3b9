"""Queues of work: streams of a GPU, and what stands for one on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Queue:
    """Work that is done in order, beside that of other queues; on a CPU, at once.

    A *mark* is a place in a queue; its ``synchronize`` waits until everything before it is done.
    """

    def run(self, work: Callable[[], object]) -> None:
        """Queue what `work` launches; it may be done any time later."""
        work()

    def record(self) -> Any:
        """A mark behind what is queued by now."""
        return self  # everything is done

    def wait(self, mark: Any) -> None:
        """Do nothing of what is queued from now on before `mark`, of another queue, is reached."""

    def follow(self) -> None:
        """Do nothing of what is queued from now on before the caller's own work so far."""

    def synchronize(self) -> None:
        """Wait until it is empty."""


class CudaQueue(Queue):
    """A :class:`Queue` as a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self.stream):  # makes its device the current one too
            work()

    def record(self) -> torch.cuda.Event:
        return self.stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        self.stream.wait_event(mark)

    def follow(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def synchronize(self) -> None:
        self.stream.synchronize()
