"""Networks as files for other runtimes: ONNX, torch.export, AOTInductor, OpenVINO, TensorRT."""

from fassd.export.exported import ExportedNetwork, default_device, is_exported
from fassd.export.metadata import DTYPES, FORMATS, OUTPUTS, ExportError, Metadata
from fassd.export.verify import Verification, verify
from fassd.export.write import FORMAT_OF, SUFFIX_OF, Exporter, Request, staged

__all__ = [
    "DTYPES",
    "FORMATS",
    "FORMAT_OF",
    "OUTPUTS",
    "SUFFIX_OF",
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
