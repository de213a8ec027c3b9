"""The child process that uses the GPU: reads one request per line, answers with one line each.

A request is ``{"task": NAME, "arguments": {...}, "limit_s": SECONDS}``, an answer ``{"status":
"done", "data": ...}`` or ``{"status": "failed" | "unavailable", "reason": ...}``. Past its limit
the process writes where it hangs to its log and ends; after an error that leaves the GPU unusable
it ends too. Either way the supervisor starts another.
"""

from __future__ import annotations

import faulthandler
import json
import os
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import torch

from benchmarks.camera import measure_runner
from benchmarks.cases import Bench, free_memory, measure_case
from benchmarks.ceilings import measure_ceilings
from benchmarks.environment import describe_environment
from benchmarks.launches import profile_network
from benchmarks.peers import UnavailableError, require_operators
from benchmarks.smoke import smoke
from benchmarks.subjects import Case
from benchmarks.timing import Sampling, first_line
from benchmarks.variants import measure_variants


def ceilings(
    device: str, sampling: dict[str, Any], copy_bytes: int, matrix_side: int
) -> dict[str, Any]:
    return measure_ceilings(torch.device(device), Sampling(**sampling), copy_bytes, matrix_side)


def case(
    device: str, sampling: dict[str, Any], compiler: str, group: str, **case: Any
) -> dict[str, Any]:
    bench = Bench(torch.device(device), Sampling(**sampling), compiler)
    return measure_case(Case(**case), group, bench)


def variants(device: str, sampling: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return measure_variants(torch.device(device), sampling=Sampling(**sampling), **arguments)


def backend(device: str, name: str) -> dict[str, Any]:
    """Nothing, if a backend of ours is there."""
    require_operators(name, frozenset(), torch.device(device))
    return {}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "environment": lambda device: describe_environment(torch.device(device)),
    "backend": backend,
    "smoke": lambda device, backend: smoke(torch.device(device), backend),
    "profile": lambda device, **case: profile_network(torch.device(device), **case),
    "runner": lambda device, **place: measure_runner(torch.device(device), **place),
    "variants": variants,
    "ceilings": ceilings,
    "case": case,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do a task; errors become answers."""
    try:
        data = TASKS[request["task"]](**request["arguments"])
        json.dumps(data, allow_nan=False)  # what JSON cannot hold is an error here, not later
        return {"status": "done", "data": data}
    except UnavailableError as reason:
        return {"status": "unavailable", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "reason": first_line(error)}


def usable() -> bool:
    """Whether the GPU still answers after the last task; clears up behind it."""
    try:
        free_memory()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


def serve(requests: TextIO, answers: TextIO) -> None:
    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    send({"status": "ready"})
    for line in requests:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["limit_s"], exit=True)
        reply = answer(request)
        alive = usable()
        faulthandler.cancel_dump_traceback_later()
        send(reply)
        if not alive:
            return


if __name__ == "__main__":
    # Libraries print to standard output, and compilers that they start read standard input: both
    # channels are kept apart from them.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    serve(requests, answers)
