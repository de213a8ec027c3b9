"""OpenVINO's IR: a .xml file with its .bin beside it, from the ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fassd.export.metadata import KEY, ExportError, Metadata
from fassd.io.packages import need


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
    converted = openvino.Core().read_model(model.SerializeToString())
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
