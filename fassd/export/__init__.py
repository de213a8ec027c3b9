"""Networks as files for other runtimes: ONNX, torch.export, AOTInductor, OpenVINO, TensorRT."""

from fassd.export.exported import ExportedNetwork, default_device, is_exported
from fassd.export.metadata import (
    DTYPES,
    FORMAT_OF,
    FORMATS,
    OUTPUTS,
    SUFFIX_OF,
    CalibrationSource,
    ExportError,
    Metadata,
)
from fassd.export.verify import Verification, verify
from fassd.export.write import Exporter, Request
from fassd.io.files import staged

__all__ = [
    "DTYPES",
    "FORMATS",
    "FORMAT_OF",
    "OUTPUTS",
    "SUFFIX_OF",
    "CalibrationSource",
    "ExportError",
    "ExportedNetwork",
    "Exporter",
    "Metadata",
    "Request",
    "Verification",
    "default_device",
    "is_exported",
    "staged",
    "verify",
]
