"""Ctrl-C and SIGTERM as requests, which training follows at a point where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SAME_REQUEST_S = 1.0  # `timeout`, schedulers and torchrun may signal a process twice at once


class StopRequest:
    """A request to stop, made by a signal.

    `made` is True after the request; `tell` is then called with a message.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.made = False
        self._tell = tell

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Treat the first Ctrl-C or SIGTERM as a request; a later one acts as usual.

        Only the main thread gets signals: in other threads this does nothing.
        """
        self.made = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        first: dict[int, float] = {}

        def handle(number: int, frame: Any) -> None:
            again = number in first
            if time.monotonic() - first.setdefault(number, time.monotonic()) >= SAME_REQUEST_S:
                signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
                signal.raise_signal(number)
            self.made = True
            if not again:
                # The signal may come in the middle of a report, whose stream cannot be written to
                # again.
                with contextlib.suppress(Exception):
                    self._tell("stopping after this step; once more stops at once, without saving")

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
