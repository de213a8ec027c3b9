"""ONNX: PyTorch's exporter on torch.export's graph, 16 bits, and ONNX Runtime's quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from fassd.export.metadata import KEY, ExportError, Metadata
from fassd.export.network import Deployed, example_input, free_sides
from fassd.io.packages import need, quiet

OPSETS = range(16, 26)
"""Versions of ONNX's operators that can be requested; the exporter's default is 20."""

SIDES = ("height", "width")
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def onnx_model(
    deployed: Deployed, metadata: Metadata, example_size: tuple[int, int], opset: int | None = None
) -> Any:
    """The network as an `onnx.ModelProto`, checked, with its metadata.

    Batch norms after convolutions are folded; those before one (MDA's) stay.

    Args:
        deployed: network of plain or accelerated modules: their graphs are equal.
        metadata: metadata for the file; its `size` is None if height and width are to be free.
        example_size: size (H, W) for tracing.
        opset: version from `OPSETS`.

    Raises:
        ExportError: the opset is not available.
        ImportError: onnx or onnxscript is missing.
    """
    onnx = need("onnx")
    need("onnxscript")
    if opset is not None and opset not in OPSETS:
        raise ExportError(
            f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}"
            + (": older ones lack operators that the network needs" if opset < OPSETS[0] else "")
        )
    example = example_input(metadata.shape_of(example_size), metadata.takes_pictures)
    free = free_sides(metadata.takes_pictures, metadata.size)
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=list(metadata.outputs),
            dynamic_shapes=free,
            opset_version=opset,
        )
    assert program is not None
    model = program.model_proto
    if free is not None:
        _name_sides(model, sorted(free[0]))
    reached = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset is not None and reached != opset:
        raise ExportError(f"opset {opset} is too low for this network, which needs {reached}")
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, metadata.to_json()
    onnx.checker.check_model(model, full_check=True)
    return model


def _name_sides(model: Any, axes: Sequence[int]) -> None:
    """Name the free sides of the input height and width, wherever they occur."""
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    names = {dims[axis].dim_param: name for axis, name in zip(axes, SIDES, strict=True)}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:  # other dimensions may be numbers
                dim.dim_param = names[dim.dim_param]


def quantized(
    model: Any,
    metadata: Metadata,
    batches: Sequence[npt.NDArray[Any]],
    *,
    symmetric: bool = False,
) -> Any:
    """Quantise a float32 model to 8-bit weights and activations (QDQ), with ONNX Runtime's tool.

    Weights are signed and symmetric, with a scale for each output channel; activations are
    unsigned, with the range of the calibration. Resizing stays in floating point.

    Args:
        model: result of `onnx_model`.
        metadata: metadata of the result, with the dtype int8.
        batches: inputs of the model, for calibration.
        symmetric: True makes activations signed with a zero point of 0, and leaves biases as they
            are, as TensorRT requires.
    """
    onnx = need("onnx")
    need("onnxruntime")
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(batches)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {"image": batch}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, target = (str(Path(folder) / f"{n}.onnx") for n in ("a", "b", "c"))
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "AveragePool", "Concat", "Add"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=SYMMETRIC if symmetric else {},
        )
        result = onnx.load(target)
    for entry in result.metadata_props:
        if entry.key == KEY:
            entry.value = metadata.to_json()
    onnx.checker.check_model(result, full_check=True)
    return result


def quiet_exporter() -> AbstractContextManager[None]:
    """Suppress the exporter's warnings: about torchvision, which is not needed here, about
    PyTorch's own code, and about failed conversions, which `onnx_model` reports."""
    return quiet(logging.CRITICAL, "torch.onnx", "onnxscript")
