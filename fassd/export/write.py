"""`export`: writing a network of the family to a file of any format."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import fassd
from fassd.export.metadata import (
    FORMATS,
    MEASURES,
    MOST_LABELS,
    OUTPUTS,
    CalibrationSource,
    ExportError,
    Metadata,
)
from fassd.export.network import Deployed, Pictures, groups
from fassd.export.onnx_file import onnx_model, quantized
from fassd.export.openvino_file import write_openvino
from fassd.export.program import smallest_side, traced, write_aoti, write_program
from fassd.export.tensorrt_file import build_engine, profile_of, sidecar
from fassd.io.palette import LabelClass, classes_of, labels_by_name
from fassd.models.encoder import reparameterize
from fassd.models.info import temperature_of
from fassd.models.preprocess import normalize, preprocessing_of
from fassd.models.zoo import create_model, settled
from fassd_kernels.reference.upsample import Measure

BACKENDS = ("auto", "cpu", "reference")
TRACED_AT = (512, 1024)
"""Size for tracing a network of any size."""


@dataclass(frozen=True)
class Request:
    """A network to export, and the file's options.

    Attributes:
        model: name from `fassd.list_models()`, or a full one, as in `fassd.create_model`.
        format: format from `FORMATS`.
        weights, num_classes, alpha: as in `fassd.create_model`; None is replaced by its meaning.
        size: size (H, W), or None for any size.
        batch: number of pictures per call.
        dtype: precision, one of the format's; inputs and outputs stay float32 or uint8.
        output: kind of result, from `OUTPUTS`.
        measure: measure of certainty in the output "labels+confidence", as in
            `fassd_kernels.reference.upsample_confidence`.
        preprocess: True takes uint8 RGB (N, H, W, 3), or as many bands, and normalises inside.
        backend: one of `BACKENDS`, for "torch" and "aoti". With "cpu", or "auto" where they are
            built, the operators of `fassd_kernels` stay operators, which the program that loads the
            file must have; "reference" only uses PyTorch's own, which have no int8.
        opset: version of ONNX's operators; None for the exporter's default.
        classes: names and colours, in any order if the weights' file has their names; by default
            those of the file, or Cityscapes' or numbered ones if it has none.

    Raises:
        ExportError: options do not go together; the message says which do.
        ValueError: the model is unknown.
    """

    model: str
    format: str
    weights: str | None = None
    num_classes: int | None = None
    alpha: int | None = None
    size: tuple[int, int] | None = (1024, 2048)
    batch: int = 1
    dtype: str = "float32"
    output: str = "logits"
    measure: Measure = "margin"
    preprocess: bool = False
    backend: str = "reference"
    opset: int | None = None
    classes: tuple[LabelClass, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("format", self.format, FORMATS),
            ("output", self.output, OUTPUTS),
            ("measure", self.measure, MEASURES),
        ):
            if value not in accepted:
                raise ExportError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
        _, dtypes, is_program = FORMATS[self.format]
        if self.dtype not in dtypes:
            raise ExportError(
                f"dtype must be {', '.join(dtypes)} for {self.format}, got {self.dtype!r}"
            )
        name, count, alpha = settled(self.weights, self.model, self.num_classes, self.alpha)
        object.__setattr__(self, "model", name)
        object.__setattr__(self, "num_classes", count)
        object.__setattr__(self, "alpha", alpha)
        if self.output != "logits" and count > MOST_LABELS:
            raise ExportError(
                f"labels are uint8, for at most {MOST_LABELS} classes, and the network has "
                f"{count}: export logits"
            )
        if is_program and self.backend not in BACKENDS:
            raise ExportError(
                f"backend must be {', '.join(BACKENDS)} for {self.format}, whose programs are made "
                f"for the CPU, got {self.backend!r}"
            )
        if not is_program and self.backend not in ("auto", "reference"):
            raise ExportError(
                f"backend does not apply to {self.format}, whose operators are standard ones: "
                f"leave it out, got {self.backend!r}"
            )
        if is_program and self.dtype == "int8" and self.backend == "reference":
            raise ExportError(
                f"backend must be auto or cpu for {self.format} in int8, for which PyTorch has no "
                f"operators, got {self.backend!r}"
            )
        if self.opset is not None and self.format not in ("onnx", "tensorrt"):
            raise ExportError(f"opset only applies to ONNX, and the format is {self.format}")
        if self.dtype == "int8" and self.size is None:
            raise ExportError("int8 is calibrated at one size: give it as HxW, not dynamic")
        if self.batch < 1:
            raise ExportError(f"batch must be at least 1, got {self.batch}")
        if self.classes and len(self.classes) != self.num_classes:
            raise ExportError(f"{len(self.classes)} classes for a network with {self.num_classes}")


class Exporter:
    """Builder of the network of a request, and writer of its file.

    Attributes:
        source: plain network in float32, in eval mode, to compare a file with.
        network: network to trace, in `deployed`: the source, a copy in 16 bits, or a fused one; for
            int8 a copy of the source, to be calibrated.
        traced_at: size (H, W) of the example.
        metadata: metadata for the file.

    Raises:
        ExportError: `fassd_kernels` is requested, but not available.
        ValueError, OSError: as in `fassd.create_model`.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights, without given ones, are the same in every file
            self.source = create_model(
                request.model, request.num_classes, request.alpha, weights=request.weights
            ).eval()
        minimum = self.source.minimum_size
        if request.size is not None and min(request.size) < minimum:
            height, width = request.size
            raise ExportError(f"size must be at least {minimum}x{minimum}, got {height}x{width}")
        self.traced_at = request.size or TRACED_AT
        self.network, backend = self._network()
        measure = request.measure if request.output == "labels+confidence" else None
        self.deployed = Deployed(
            self.network,
            preprocess=request.preprocess,
            output=request.output,
            measure=measure,
        ).eval()
        self.metadata = Metadata(
            format=request.format,
            variant=request.model,
            alpha=self.source.alpha,
            weights=None if request.weights is None else Path(request.weights).name,
            classes=self._classes(),
            dtype=request.dtype,
            output=request.output,
            takes_pictures=request.preprocess,
            batch=request.batch,
            size=request.size,
            minimum_size=minimum,
            backend=backend,
            versions=versions(),
            preprocessing=preprocessing_of(self.source),
            measure=measure,
            temperature=temperature_of(self.source),
        )

    def _classes(self) -> tuple[LabelClass, ...]:
        """The request's classes, in the order of the network's if its names are known."""
        wanted = self.request.classes or classes_of(self.source)
        places = labels_by_name(self.source, [info.name for info in wanted])
        return wanted if places is None else tuple(wanted[place] for place in places)

    def _network(self) -> tuple[nn.Module, str | None]:
        """The network to trace, and the backend that it calls."""
        import fassd_kernels
        from fassd_kernels.backends import meant

        request, missing = self.request, fassd_kernels.ops.CPU_MISSING
        # OpenVINO narrows the weights itself, TensorRT as it likes; int8 starts in float32.
        in_bytes = request.dtype == "int8"
        kept = in_bytes or request.format in ("openvino", "tensorrt")
        dtype = torch.float32 if kept else getattr(torch, request.dtype)
        wanted = meant(request.backend)
        fused = FORMATS[request.format].is_program and wanted != "reference"
        source = reparameterize(copy.deepcopy(self.source))
        if in_bytes and FORMATS[request.format].is_program and not (fused and missing is None):
            others = ", ".join(name for name, each in FORMATS.items() if not each.is_program)
            raise ExportError(
                f"{request.format} in int8 needs the C++ operators of fassd_kernels, which are "
                f"{'switched off' if missing is None else f'missing ({missing})'}: give another "
                f"format ({others})"
            )
        if fused and missing is not None and request.backend != "auto":
            raise ExportError(
                f"the C++ operators are missing ({missing}): give --backend reference"
            )
        if not fused or missing is not None:
            return source.to(dtype), None
        if in_bytes:
            return source, "cpu"
        fast = fassd_kernels.accelerate(source, dtype=dtype, backend=request.backend)
        example = torch.zeros(1, self.source.in_channels, *self.traced_at, dtype=dtype)
        return fassd_kernels.freeze(fast, (example,)), "cpu"

    def quantize(self, calibration: Pictures) -> None:
        """Let a program compute in bytes: put the calibrated network into `deployed`.

        Raises:
            ExportError: there are no pictures, or the network cannot compute one.
        """
        import fassd_kernels

        own = self.metadata.preprocessing
        inputs = (torch.from_numpy(normalize(picture, own))[None] for picture in calibration)
        settings: Any = {"dtype": torch.int8, "backend": self.request.backend}
        try:
            fast = fassd_kernels.accelerate(self.network, calibration=inputs, **settings)
        except ValueError as error:
            raise ExportError(f"int8: {error}") from error
        example = torch.zeros(self.request.batch, self.source.in_channels, *self.traced_at)
        self.deployed.network = fassd_kernels.freeze(fast, (example,))

    def note(self, calibration: Pictures, source: str) -> None:
        """Let the metadata tell what int8 is calibrated on.

        Raises:
            ExportError: int8 is requested without pictures.
        """
        if self.request.dtype == "int8":
            if not calibration:
                raise ExportError("int8 needs pictures for calibration: give --calibration")
            found = CalibrationSource(len(calibration), source)
            self.metadata = replace(self.metadata, calibration=found)

    def onnx(self, calibration: Pictures = (), source: str = "pictures") -> Any:
        """The network as an `onnx.ModelProto`.

        Args:
            calibration: for int8, pictures (H, W, 3) uint8 RGB, or of as many bands, of the
                request's size.
            source: name of the folder of these pictures, for the metadata.

        Raises:
            ExportError: int8 is requested without pictures, or the opset is not available.
            ImportError: a package is missing.
        """
        self.note(calibration, source)
        request = self.request
        # TensorRT makes 16 bits from a float32 graph.
        dtype = request.dtype if request.format == "onnx" or request.dtype == "int8" else "float32"
        data = replace(self.metadata, format="onnx", dtype=dtype)
        model = onnx_model(self.deployed, data, self.traced_at, request.opset)
        if request.dtype == "int8" and request.format != "openvino":
            symmetric = request.format == "tensorrt"
            model = quantized(model, data, self._batches(calibration), symmetric=symmetric)
        return model

    def _batches(self, calibration: Pictures) -> list[npt.NDArray[Any]]:
        """Inputs of the network from pictures, enough to fill whole batches."""
        pictures = self.request.preprocess
        own = self.metadata.preprocessing
        return [
            np.stack([picture if pictures else normalize(picture, own) for picture in group])
            for group in groups(calibration, self.request.batch)
        ]

    def write(self, path: Path, calibration: Pictures = (), source: str = "pictures") -> None:
        """Write the file, or files, directly; they are neither checked nor renamed.

        Args:
            path: path with an ending of the format.
            calibration, source: pictures for int8, as in `onnx`.

        Raises:
            ExportError, ImportError: as in `onnx`; or the program cannot be traced or compiled.
        """
        self.note(calibration, source)
        request, data = self.request, self.metadata
        if FORMATS[request.format].is_program:
            if request.dtype == "int8":
                self.quantize(calibration)
            program = traced(self.deployed, data, self.traced_at)
            least = max(data.minimum_size, smallest_side(program))
            data = self.metadata = replace(data, minimum_size=least)
            write = write_program if request.format == "torch" else write_aoti
            write(program, data, path)
            return
        model = self.onnx(calibration, source)
        if request.format == "onnx":
            path.write_bytes(model.SerializeToString())
        elif request.format == "openvino":
            batches = self._batches(calibration) if request.dtype == "int8" else None
            write_openvino(model, data, path, batches)
        else:
            plan = build_engine(model.SerializeToString(), request.dtype, profile_of(data))
            path.write_bytes(plan)
            sidecar(path).write_text(data.to_json())


def versions() -> dict[str, str]:
    """Versions of the packages that take part in writing a file, as far as they are installed."""
    found = {"fassd": fassd.__version__, "torch": torch.__version__}
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt", "timm"):
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found
