"""Child processes that cannot eat the run: each is asked with a time limit, and killed past it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT

LAUNCH = ROOT / "benchmarks" / "launch.py"
START_LIMIT_S = 90.0
GRACE_S = 5.0
"""A worker ends itself at its limit; so much later it is killed."""


class TimeLimitError(Exception):
    """The child was still at work at its limit, and was killed."""


class WorkerDiedError(Exception):
    """The child ended without an answer."""


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started, if it is still running; it leads its process group."""
    if child.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)


def run_logged(
    command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]
) -> int:
    """Run `command` in the repository, output to `log`; return its exit code.

    Raises:
        TimeLimitError: it took longer than `limit_s` seconds.
    """
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TimeLimitError(f"killed after {limit_s:.0f} s") from None
        finally:
            kill(child)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


class Worker:
    """`benchmarks.worker`, started when it is first asked, and again after it died.

    Args:
        log: gets what the worker prints, appended.
        environment: variables added to its environment.
    """

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._environment = {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def with_environment(self, more: Mapping[str, str]) -> Worker:
        """Another one, not started yet, with variables besides."""
        return Worker(self.log, {**self._environment, **more})

    def ask(self, task: str, arguments: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The worker's answer; see `benchmarks.worker`.

        Raises:
            TimeLimitError: no answer within `limit_s` seconds, the start of a worker not counted.
            WorkerDiedError: the worker ended; the message holds the end of its log.
        """
        child = self._start()
        request = {"task": task, "arguments": arguments, "limit_s": limit_s}
        started = time.monotonic()
        try:
            self._write(child, request)
            return self._read(child, started + limit_s + GRACE_S)
        except (TimeLimitError, WorkerDiedError) as error:
            self.close()
            if time.monotonic() - started >= limit_s:
                raise TimeLimitError(f"killed after {limit_s:.0f} s") from None
            raise error

    def close(self) -> None:
        if self._child is not None:
            kill(self._child)
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._child = None
        self._pending = b""

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        with self.log.open("ab") as stream:
            self._child = subprocess.Popen(
                [sys.executable, str(LAUNCH), "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=self.log.parent,  # not the repository: see benchmarks/launch.py
                env=self._environment,
                start_new_session=True,
            )
        try:
            self._read(self._child, time.monotonic() + START_LIMIT_S)
        except (TimeLimitError, WorkerDiedError):
            self.close()
            raise
        return self._child

    def _write(self, child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._death(child) from None

    def _read(self, child: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert child.stdout is not None
        channel = child.stdout.fileno()
        while b"\n" not in self._pending:
            if time.monotonic() > deadline:
                raise TimeLimitError("no answer")
            # In slices: a grandchild may hold the pipe open after the worker died.
            if select.select([channel], [], [], 0.5)[0]:
                chunk = os.read(channel, 1 << 16)
                if not chunk:
                    raise self._death(child)
                self._pending += chunk
            elif child.poll() is not None:
                raise self._death(child)
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _death(self, child: subprocess.Popen[bytes]) -> WorkerDiedError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        return WorkerDiedError(
            f"the process ended with code {child.returncode}: {tail(self.log, 6)}"
        )
