"""OpenVINO's IR: a .xml file and its .bin, made from the ONNX model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fassd.export.metadata import KEY, ExportError, Metadata
from fassd.io.packages import need


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's `Core`, one for the lifetime of the process.

    Each core gives the thread a stack for signals, and takes it back when it is deleted. Of two
    cores, the last one to be deleted restores the other's stack, which is gone: Ctrl-C then ends
    the process with a segmentation fault, and nothing is saved (OpenVINO 2026.4).

    Raises:
        ImportError: openvino is missing.
    """
    return need("openvino").Core()


def write_openvino(
    model: Any, metadata: Metadata, path: Path, batches: Sequence[npt.NDArray[Any]] | None
) -> None:
    """Convert and write.

    Args:
        model: `onnx.ModelProto` in float32.
        metadata: metadata of the result. float16 stores the weights in that type; a device's
            precision is chosen when the file is loaded. int8 is quantised by NNCF.
        path: path of the .xml file.
        batches: inputs for calibration, for int8.

    Raises:
        ExportError: NNCF failed.
        ImportError: openvino, or nncf, is missing.
    """
    openvino = need("openvino")
    converted = openvino_core().read_model(model.SerializeToString())
    if batches is not None:
        converted = quantized(converted, batches)
    converted.set_rt_info(metadata.to_json(), [KEY])
    openvino.save_model(converted, str(path), compress_to_fp16=metadata.dtype == "float16")


def quantized(model: Any, batches: Sequence[npt.NDArray[Any]]) -> Any:
    """An `openvino.Model` in int8.

    Args:
        batches: inputs for calibration.

    Raises:
        ExportError: NNCF failed.
        ImportError: nncf is missing.
    """
    nncf = need("nncf")
    try:
        return nncf.quantize(model, nncf.Dataset(list(batches)), subset_size=len(batches))
    except Exception as error:  # its own kinds of errors
        raise ExportError(f"NNCF cannot quantise the network: {error}") from error
