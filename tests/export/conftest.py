"""Small networks and pictures for every test of exported files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from export.graphs import graphs_made_once

from fassd.export import SUFFIX_OF, Exporter, Request, staged
from fassd.synth import render_street

SIZE = (128, 256)
LABELS = {"output": "labels", "preprocess": True}
CERTAIN = {"output": "labels+confidence", "measure": "entropy", "preprocess": True}
OLD_BATCH = {"dtype": "float16", "batch": 2, "preprocess": True, "opset": 16}


@functools.cache
def streets(
    count: int, size: tuple[int, int] = SIZE, split: str = "val"
) -> list[npt.NDArray[np.uint8]]:
    return [render_street(*size, seed=seed, split=split)[0] for seed in range(count)]


@pytest.fixture(scope="session")
def pictures() -> list[npt.NDArray[np.uint8]]:
    return streets(3)


Export = Callable[..., tuple[Path, Exporter]]


@pytest.fixture(scope="package")
def graphs() -> Iterator[None]:
    with graphs_made_once():
        yield


@pytest.fixture(scope="package")
def export(graphs: None, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """``export("onnx", dtype="float16", ...)`` -> the file, and what made it; made once."""
    done: dict[Request, tuple[Path, Exporter]] = {}

    def made(kind: str, **settings: object) -> tuple[Path, Exporter]:
        given = {"model": "fassd_net_l2", "weights": "streets", "size": SIZE, **settings}
        request = Request(format=kind, **given)  # type: ignore[arg-type]
        if request not in done:
            path = tmp_path_factory.mktemp(kind) / f"net{SUFFIX_OF[kind][0]}"
            exporter = Exporter(request)
            calibration = streets(12, split="train") if request.dtype == "int8" else ()
            with staged(path) as unnamed:
                exporter.write(unnamed, calibration)
            done[request] = (path, exporter)
        return done[request]

    return made
