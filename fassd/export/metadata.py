"""What every exported file tells about itself, in JSON, whatever its format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import fassd
from fassd.data.transforms import MEAN, STD
from fassd.palette import ClassInfo

__all__ = ["DTYPES", "FORMATS", "KEY", "OUTPUTS", "ExportError", "Metadata"]

KEY = "fassd"
"""Under which a file holds its metadata."""

FORMATS = ("onnx", "torch", "aoti", "openvino", "tensorrt")
DTYPES = ("float32", "float16", "bfloat16", "int8")
OUTPUTS = ("logits", "labels")


class ExportError(ValueError):
    """A network cannot be exported so, or a file is not what `fassd export` writes."""


@dataclass(frozen=True)
class Metadata:
    """How a file was made, and how to use it.

    Attributes:
        format: one of `FORMATS`.
        variant: a name of `fassd.list_models()`.
        alpha: DAPF's reduction.
        weights: a name, or the name of the weights' file; None for random ones.
        classes: names and colours, in the order of the labels.
        dtype: one of `DTYPES`, what it computes in; input and output are independent of it.
        output: "logits", float32 (N, classes, H, W), or "labels", uint8 (N, H, W).
        takes_pictures: whether its input is uint8 RGB (N, H, W, 3); otherwise it is float32
            normalised BGR (N, 3, H, W).
        batch: N.
        size: (H, W), or None where it takes any.
        minimum_size: the smallest H and W of any.
        backend: of `fassd_kernels`, whose library a program has to load; None for none.
        versions: of the libraries that wrote it.
    """

    format: str
    variant: str
    alpha: int
    weights: str | None
    classes: tuple[ClassInfo, ...]
    dtype: str
    output: str
    takes_pictures: bool
    batch: int
    size: tuple[int, int] | None
    minimum_size: int
    backend: str | None
    versions: dict[str, str]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the input; -1 where any size will do."""
        height, width = self.size or (-1, -1)
        if self.takes_pictures:
            return (self.batch, height, width, 3)
        return (self.batch, 3, height, width)

    def to_json(self) -> str:
        """One JSON object, for programs in any language."""
        layout = "NHWC" if self.takes_pictures else "NCHW"
        record = {
            "fassd": fassd.__version__,
            "format": self.format,
            "variant": self.variant,
            "alpha": self.alpha,
            "weights": self.weights,
            "dtype": self.dtype,
            "input": {
                "name": "image",
                "layout": layout,
                "shape": list(self.input_shape),
                "minimum_size": self.minimum_size,
                "dtype": "uint8" if self.takes_pictures else "float32",
                "channels": "RGB" if self.takes_pictures else "BGR",
                "normalized": not self.takes_pictures,
                "mean": [255 * mean for mean in MEAN],
                "std": [255 * std for std in STD],
            },
            "output": {
                "name": self.output,
                "layout": "NHW" if self.output == "labels" else "NCHW",
                "dtype": "uint8" if self.output == "labels" else "float32",
            },
            "classes": [{"name": c.name, "color": list(c.color)} for c in self.classes],
            "backend": self.backend,
            "versions": self.versions,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read what `to_json` wrote.

        Raises:
            ExportError: it is something else.
        """
        try:
            record: dict[str, Any] = json.loads(text)
            entry = record["input"]
            height, width = entry["shape"][1:3] if entry["layout"] == "NHWC" else entry["shape"][2:]
            found = cls(
                format=record["format"],
                variant=str(record["variant"]),
                alpha=int(record["alpha"]),
                weights=record["weights"],
                classes=tuple(
                    ClassInfo(str(c["name"]), (c["color"][0], c["color"][1], c["color"][2]))
                    for c in record["classes"]
                ),
                dtype=record["dtype"],
                output=record["output"]["name"],
                takes_pictures=entry["layout"] == "NHWC",
                batch=int(entry["shape"][0]),
                size=None if height == -1 else (int(height), int(width)),
                minimum_size=int(entry["minimum_size"]),
                backend=record["backend"],
                versions=dict(record["versions"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ExportError(
                f"its metadata is not what fassd {fassd.__version__} writes "
                f"({type(error).__name__}: {error})"
            ) from error
        known = found.format in FORMATS and found.dtype in DTYPES and found.output in OUTPUTS
        if not known or found.batch < 1 or not found.classes:
            raise ExportError(
                f"its metadata tells of format {found.format!r}, dtype {found.dtype!r}, output "
                f"{found.output!r}, batch {found.batch} and {len(found.classes)} classes"
            )
        return found
