"""The metadata in every exported file, in JSON, whatever its format."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

import fassd
from fassd.io.palette import LabelClass
from fassd.io.untrusted import problem, read_json, shortened, shown
from fassd.models.preprocess import MOST_BANDS, OURS, Preprocessing
from fassd_kernels.reference.upsample import Measure

KEY = "fassd"
"""Key under which a file stores its metadata."""

DTYPES = ("float32", "float16", "bfloat16", "int8")


class Format(NamedTuple):
    """A kind of file: its endings, its dtypes, and True if it is a program of PyTorch's, which can
    contain the operators of `fassd_kernels`."""

    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    is_program: bool = False


FORMATS = {
    "onnx": Format((".onnx",), ("float32", "float16", "int8")),
    "torch": Format((".pt2",), DTYPES, is_program=True),
    "aoti": Format((".pt2",), DTYPES, is_program=True),
    "openvino": Format((".xml",), ("float32", "float16", "int8")),
    "tensorrt": Format((".engine", ".plan"), DTYPES),
}
SUFFIX_OF = {name: each.suffixes for name, each in FORMATS.items()}
FORMAT_OF = {suffix: name for name in reversed(FORMATS) for suffix in SUFFIX_OF[name]}
"""The format of an ending if none is given."""

OUTPUTS = {
    "logits": ("logits",),
    "labels": ("labels",),
    "labels+confidence": ("labels", "confidence"),
}
"""Possible results of a file: the names of its outputs."""

MEASURES = get_args(Measure)

MOST_PIXELS = 1 << 27
"""Maximum pixels of a batch: 1.6 GB in float32."""

MOST_LABELS = 256
"""Maximum number of classes of labels, which have 8 bits."""

Name = Annotated[str, Field(max_length=1000)]
Side = Annotated[int, Field(strict=True, ge=1, le=65_535)]
Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Level = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LEVELS = TypeAdapter(Annotated[list[Level], Field(min_length=1, max_length=MOST_BANDS)])
CLASS = TypeAdapter(tuple[Name, tuple[Byte, Byte, Byte]])


class ExportError(ValueError):
    """A network cannot be exported as requested, or a file is not one of `fassd export`."""


def _class(entry: Any) -> LabelClass:
    return LabelClass(*CLASS.validate_python((entry["name"], entry["color"])))


Classes = Annotated[
    tuple[Annotated[LabelClass, BeforeValidator(_class)], ...],
    Field(min_length=1, max_length=65_536),
]


def _one_of(*words: str) -> Any:
    """Text that is one of some words."""
    return Field(pattern=f"^({'|'.join(map(re.escape, words))})$")


@dataclass(frozen=True)
class CalibrationSource:
    """The pictures on which the ranges of int8 were measured.

    Attributes:
        pictures: number of pictures.
        source: name of their folder, or of whatever they come from.
    """

    pictures: Annotated[int, Field(strict=True, ge=1)]
    source: Name


@dataclass(frozen=True)
class Metadata:
    """The origin of a file, and the way to use it.

    Attributes:
        format: one of `FORMATS`.
        variant: name from `fassd.list_models()`.
        alpha: DAPF's reduction.
        weights: name of the weights, or of their file; None for random ones.
        classes: names and colours of the classes, in the order of the labels.
        dtype: precision, one of `DTYPES`; input and output are independent of it.
        output: kind of result: "logits", float32 (N, classes, H, W), "labels", uint8 (N, H, W), or
            "labels+confidence", two of these.
        takes_pictures: True if its input is uint8 RGB (N, H, W, 3); otherwise it is float32
            normalised BGR (N, 3, H, W), or RGB, as `preprocessing` says. It may have other bands in
            place of three colours.
        batch: number of pictures N.
        size: size (H, W), or None if it takes any.
        minimum_size: smallest H and W, if it takes any.
        backend: backend of `fassd_kernels` whose library a program has to load; None for none.
        versions: versions of the libraries that wrote it.
        preprocessing: normalisation of pictures, in the file or before it.
        measure: measure of the confidence, on a scale of 255, as in
            `fassd_kernels.reference.upsample_confidence`; None if there is none.
        temperature: divisor of the logits before probabilities are computed.
        calibration: pictures for int8; None for another dtype, or if the file does not tell.
    """

    format: Annotated[str, _one_of(*FORMATS)]
    variant: Name
    alpha: Side
    weights: Name | None
    classes: Classes
    dtype: Annotated[str, _one_of(*DTYPES)]
    output: Annotated[str, _one_of(*OUTPUTS)]
    takes_pictures: bool
    batch: Annotated[Side, Field(le=1024)]
    size: tuple[Side, Side] | None
    minimum_size: Side
    backend: Name | None
    versions: dict[Name, Name]
    preprocessing: Preprocessing = OURS
    measure: Annotated[str, _one_of(*MEASURES)] | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    calibration: CalibrationSource | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return OUTPUTS[self.output]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, with -1 for free sides."""
        return self.shape_of(self.size or (-1, -1))

    def shape_of(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of an input whose pictures have a size."""
        channels = len(self.preprocessing.mean)
        if self.takes_pictures:
            return (self.batch, *size, channels)
        return (self.batch, channels, *size)

    def to_json(self) -> str:
        """One JSON object, for programs in any language."""
        layout, own = "NHWC" if self.takes_pictures else "NCHW", self.preprocessing
        record = {
            "fassd": fassd.__version__,
            "format": self.format,
            "variant": self.variant,
            "alpha": self.alpha,
            "weights": self.weights,
            "dtype": self.dtype,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "input": {
                "name": "image",
                "layout": layout,
                "shape": list(self.input_shape),
                "minimum_size": self.minimum_size,
                "dtype": "uint8" if self.takes_pictures else "float32",
                "channels": "RGB" if self.takes_pictures and own.bands is None else own.channels,
                "normalized": not self.takes_pictures,
                "mean": own.mean_levels,
                "std": own.std_levels,
                "mean_channels": own.channels,
            },
            "output": {
                "name": self.output,
                "names": list(self.outputs),
                "layout": "NCHW" if self.output == "logits" else "NHW",
                "dtype": "float32" if self.output == "logits" else "uint8",
            },
            "measure": self.measure,
            "temperature": self.temperature,
            "classes": [{"name": c.name, "color": list(c.color)} for c in self.classes],
            "backend": self.backend,
            "versions": self.versions,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read the result of `to_json`.

        Raises:
            ExportError: the text is something else.
        """
        try:
            record = read_json(text)
            entry, output = record["input"], record["output"]["name"]
            pictures = {"NHWC": True, "NCHW": False}[entry["layout"]]
            batch, *sides = entry["shape"]
            *size, channels = sides if pictures else (*sides[1:], sides[0])
            mean, std = (
                [round(level / 255, 12) for level in LEVELS.validate_python(entry[name])]
                for name in ("mean", "std")
            )
            found: Metadata = TypeAdapter(cls).validate_python(
                {
                    **record,
                    "output": output,
                    "takes_pictures": pictures,
                    "batch": batch,
                    "size": None if size == [-1, -1] else size,
                    "minimum_size": entry["minimum_size"],
                    # In files from before there were other encoders, it is BGR.
                    "preprocessing": Preprocessing.checked(
                        mean, std, entry.get("mean_channels", "BGR")
                    ),
                }
            )
            taken = len(mean)
            if channels != taken or found.batch * math.prod(found.size or ()) > MOST_PIXELS:
                raise ValueError(
                    f"shape must have {taken} channels and at most {MOST_PIXELS:,} pixels, "
                    f"got {shown(entry['shape'])}"
                )
            if (found.measure is None) != (output != "labels+confidence"):
                raise ValueError(f"measure is {found.measure!r} of the output {output}")
            if output != "logits" and found.num_classes > MOST_LABELS:
                raise ValueError(f"labels are of {MOST_LABELS} classes, not {found.num_classes}")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, ValidationError):
                reason = problem(error)
            raise ExportError(
                f"its metadata is not what fassd {fassd.__version__} writes ({shortened(reason)})"
            ) from error
        return found
