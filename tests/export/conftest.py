"""Small networks and pictures for every test of exported files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fassd.export import SUFFIX_OF, Exporter, Metadata, Request, onnx_file, staged
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


MODELS: dict[tuple[Any, ...], Any] = {}


@contextmanager
def graphs_made_once() -> Iterator[None]:
    """What files of ONNX, OpenVINO, TensorRT and of 8 bits are made of is often the same graph.

    The weights that metadata name have to be the same wherever the name is.
    """

    def onnx_model(deployed: Any, data: Metadata, *settings: Any) -> Any:
        # 8 bits start in float32, and get their own metadata.
        data = replace(data, dtype="float32") if data.dtype == "int8" else data
        key = (data.to_json(), *settings)
        if key not in MODELS:
            MODELS[key] = onnx_file.onnx_model(deployed, data, *settings)
        return MODELS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fassd.export.write.onnx_model", onnx_model)
        yield


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
