"""Graphs of exported networks, made once in a process: a conftest.py is imported twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from fassd.export import Metadata, onnx_file

MODELS: dict[tuple[Any, ...], Any] = {}


@contextmanager
def graphs_made_once() -> Iterator[None]:
    """What files of ONNX, OpenVINO, TensorRT and of 8 bits are made of is often the same graph.

    The weights that metadata name have to be the same wherever the name is.
    """

    def onnx_model(deployed: Any, data: Metadata, *settings: Any) -> Any:
        # 8 bits start in float32, and get their own metadata.
        data = replace(data, dtype="float32", calibration=None) if data.dtype == "int8" else data
        key = (data.to_json(), *settings)
        if key not in MODELS:
            MODELS[key] = onnx_file.onnx_model(deployed, data, *settings)
        return MODELS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fassd.export.write.onnx_model", onnx_model)
        yield
