"""Does a backend of ours run on the stream it is given, and inside a CUDA graph?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import TOLERANCES, relative_error
from benchmarks.operators import NORMALIZE, picture_call, picture_reference
from benchmarks.subjects import DTYPES

SHAPE = (1, 256, 512, 3)
SLEEP_CYCLES = 50_000_000
"""Some 25 ms on a GPU: who does not wait for the stream reads the picture before it is there."""


def smoke(device: torch.device, backend: str) -> dict[str, Any]:
    """Run `normalize` of a backend in every way that a user may launch it.

    Returns:
        ``checks``: for each check and dtype the relative error.

    Raises:
        UnavailableError: the backend is not there.
        RuntimeError: a result is wrong; the message names the checks.
    """
    checks: list[dict[str, Any]] = []
    for name in ("float32", "float16"):
        call = picture_call(NORMALIZE, backend, DTYPES[name], device)
        ways = {"plain call": plain_call}
        if device.type == "cuda":
            ways.update({"non-default stream": on_a_stream, "CUDA graph": in_a_graph})
        for way, run in ways.items():
            output, image = run(call, device)
            error = relative_error(output, picture_reference(NORMALIZE, image))
            match = error <= TOLERANCES["operators"][name]
            check = f"{backend}, normalize, {name}, {way}"
            checks.append({"check": check, "rel_error": f"{error:.2e}", "match": match})
    wrong = [check["check"] for check in checks if not check["match"]]
    if wrong:
        raise RuntimeError(f"wrong result: {'; '.join(wrong)}")
    return {"checks": checks}


def picture(device: torch.device) -> Tensor:
    return torch.randint(256, SHAPE, dtype=torch.uint8, device=device)


def plain_call(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    image = picture(device)
    return call(image), image


def on_a_stream(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The picture arrives late, on the same side stream that the call is made on."""
    image, late = picture(device), picture(device)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        image.copy_(late)
        output = call(image)
    torch.cuda.synchronize(device)
    return output, late


def in_a_graph(call: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Captured on one picture, replayed on another."""
    image = picture(device)
    call(image)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(image)
    image.copy_(picture(device))
    output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize(device)
    return output, image
