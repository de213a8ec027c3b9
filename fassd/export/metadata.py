"""What every exported file tells about itself, in JSON, whatever its format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import fassd
from fassd.io.palette import ClassInfo
from fassd.io.untrusted import read_json, shortened, shown
from fassd.models.preprocess import MEAN, STD

__all__ = ["DTYPES", "FORMATS", "KEY", "MOST_PIXELS", "OUTPUTS", "ExportError", "Metadata"]

KEY = "fassd"
"""Under which a file holds its metadata."""

FORMATS = ("onnx", "torch", "aoti", "openvino", "tensorrt")
DTYPES = ("float32", "float16", "bfloat16", "int8")
OUTPUTS = ("logits", "labels")

MOST_BATCH = 1024
MOST_SIDE = 65_535
MOST_PIXELS = 1 << 27
"""Of a batch: 1.6 GB where they are float32."""
MOST_CLASSES = 65_536
MOST_TEXT = 1000
"""Characters of a name."""


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
            found = cls._from_record(read_json(text))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ExportError(
                f"its metadata is not what fassd {fassd.__version__} writes "
                f"({type(error).__name__}: {shortened(str(error))})"
            ) from error
        known = found.format in FORMATS and found.dtype in DTYPES and found.output in OUTPUTS
        if not known:
            raise ExportError(
                f"its metadata tells of format {shown(found.format)}, dtype {shown(found.dtype)} "
                f"and output {shown(found.output)}"
            )
        return found

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> Metadata:
        entry, output = record["input"], _text(record["output"], "name")
        pictures = _text(entry, "layout") == "NHWC"
        batch, *sides = entry["shape"]
        height, width, channels = sides if pictures else (*sides[1:], sides[0])
        size = None
        if [height, width] != [-1, -1]:
            size = (_whole(height, "height", MOST_SIDE), _whole(width, "width", MOST_SIDE))
        batch = _whole(batch, "batch", MOST_BATCH)
        if channels != 3 or (size and batch * size[0] * size[1] > MOST_PIXELS):
            raise ValueError(
                f"shape must have 3 channels and at most {MOST_PIXELS:,} pixels, "
                f"got {shown(entry['shape'])}"
            )
        for name in ("mean", "std"):
            if len(entry[name]) != 3 or not all(_is_level(level) for level in entry[name]):
                raise ValueError(f"{name} must be three finite numbers, got {shown(entry[name])}")
        most = 256 if output == "labels" else MOST_CLASSES
        _whole(len(record["classes"]), "the number of classes", most)
        return cls(
            format=_text(record, "format"),
            variant=_text(record, "variant"),
            alpha=_whole(record["alpha"], "alpha", MOST_SIDE),
            weights=None if record["weights"] is None else _text(record, "weights"),
            classes=tuple(
                ClassInfo(_text(entry, "name"), _color(entry["color"]))
                for entry in record["classes"]
            ),
            dtype=_text(record, "dtype"),
            output=output,
            takes_pictures=pictures,
            batch=batch,
            size=size,
            minimum_size=_whole(entry["minimum_size"], "minimum_size", MOST_SIDE),
            backend=None if record["backend"] is None else _text(record, "backend"),
            versions={name: _text(record["versions"], name) for name in record["versions"]},
        )


def _text(record: dict[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(
            f"{shortened(name, 40)} must be text of at most {MOST_TEXT:,} characters, "
            f"got {shown(value)}"
        )
    return value


def _whole(value: object, name: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}, got {shown(value)}")
    return value


def _is_level(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _color(levels: list[int]) -> tuple[int, int, int]:
    if len(levels) != 3 or not all(type(it) is int and 0 <= it <= 255 for it in levels):
        raise ValueError(f"color must be three whole numbers of 0 to 255, got {shown(levels)}")
    red, green, blue = levels
    return red, green, blue
