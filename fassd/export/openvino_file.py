"""OpenVINO's IR: a .xml file with its .bin beside it, from the ONNX model."""

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
    """OpenVINO's `Core`, one for as long as the process lives.

    Each gives the thread a stack for signals, and takes it back when it goes. Of two, the one that
    goes last gives back the stack of the other, which is gone: then Ctrl-C ends the process with a
    segmentation fault, and nothing is saved (OpenVINO 2026.4).

    Raises:
        ImportError: openvino is missing.
    """
    return need("openvino").Core()


def write_openvino(
    model: Any, metadata: Metadata, path: Path, batches: Sequence[npt.NDArray[Any]] | None
) -> None:
    """Convert and write.

    Args:
        model: an `onnx.ModelProto`, of float32.
        metadata: of the result. float16 stores the weights so; what a device computes in is chosen
            where it is loaded. int8 is quantised by NNCF.
        path: of the .xml file.
        batches: inputs to calibrate with, for int8.

    Raises:
        ExportError: NNCF failed.
        ImportError: openvino, or nncf, is missing.
    """
    openvino = need("openvino")
    converted = openvino_core().read_model(model.SerializeToString())
    if batches is not None:
        nncf = need("nncf")
        try:
            converted = nncf.quantize(
                converted, nncf.Dataset(list(batches)), subset_size=len(batches)
            )
        except Exception as error:  # its own kinds
            raise ExportError(f"NNCF cannot quantise the network: {error}") from error
    converted.set_rt_info(metadata.to_json(), [KEY])
    openvino.save_model(converted, str(path), compress_to_fp16=metadata.dtype == "float16")
