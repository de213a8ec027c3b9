"""Requests and answers of the HTTP interface, as described by OpenAPI."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from fassd.io import palette
from fassd_kernels.reference.upsample import Measure

SIZE_PATTERN = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"


class Failure(BaseModel):
    """Any answer that is not a success."""

    detail: str = Field(description="What is wrong, and what is accepted.")


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "stuck"]


class ClassInfo(BaseModel):
    """A class; its id is the label of its pixels."""

    id: int
    name: str
    color: tuple[int, int, int] = Field(description="Red, green, blue, 0 to 255.")


class ClassShare(ClassInfo):
    """A class that occurs in the picture."""

    share: float = Field(description="Of the picture's pixels, above 0, up to 1.")
    confidence: float | None = Field(
        None, description="The mean of its pixels, 0 to 1, if it was asked for."
    )


class Timing(BaseModel):
    """Times in milliseconds; `total` is the whole time inside the server."""

    read: float = Field(description="Until the upload was there.")
    decode: float = Field(description="The picture's file, and resizing.")
    queue: float = Field(description="Waiting in line.")
    network: float = Field(description="The network, with the whole batch.")
    encode: float = Field(description="Labels to PNG or runs.")
    total: float


class Segmentation(BaseModel):
    """Labels as run lengths."""

    height: int
    width: int
    classes: list[ClassShare] = Field(description="Those that occur, by id.")
    counts: list[tuple[int, int]] = Field(
        description="Runs of equal labels, [label, length], row by row from the top left. A run "
        "goes on from the end of a row to the beginning of the next. Lengths add up to "
        "height * width: numpy.repeat(*numpy.array(counts).T).reshape(height, width)."
    )
    timing_ms: Timing
    batch: int = Field(description="Pictures that the network took at once, this one among them.")


class ModelInfo(BaseModel):
    """A network that the server offers."""

    name: str
    title: str
    weights: str = Field(
        description="streets, synthetic, cityscapes, random, or own: the server's."
    )
    classes: list[ClassInfo] | None = Field(
        None, description="Its classes, where they are not those of the default network."
    )
    bands: int | None = Field(
        None,
        description="Bands of the pictures that it takes, as a TIFF or as an array (H, W, bands) "
        "in NumPy's .npy format; null for three colours.",
    )


class Defaults(BaseModel):
    """Default choices of a request."""

    model: str
    backend: str
    dtype: str


class Limits(BaseModel):
    """Largest accepted values."""

    max_bytes: int = Field(description="Of an upload's file.")
    max_pixels: int = Field(description="Height times width of a picture, and of `size`.")
    queue: int = Field(description="Pictures that may wait; more are answered 429.")
    batch: int = Field(description="Pictures that the network takes at once.")
    timeout_s: float = Field(description="For the upload, and again for the answer.")


class Catalog(BaseModel):
    """Available choices."""

    models: list[ModelInfo]
    backends: list[str]
    dtypes: list[str]
    defaults: Defaults
    classes: list[ClassInfo] = Field(description="Those of the default network.")
    formats: list[str] = Field(description="Of pictures.")
    range: str | None = Field(
        default=None,
        description="LOW:HIGH or auto: values that become 0 and 255 in pictures of more than 8 "
        "bits; all that a file can hold if null.",
    )
    limits: Limits

    def classes_of(self, model: str) -> list[ClassInfo]:
        """Classes of a network, by its name."""
        own = next(info.classes for info in self.models if info.name == model)
        return self.classes if own is None else own

    def bands_of(self, model: str) -> int | None:
        """Bands that a network takes, by its name; None for three colours."""
        return next(info.bands for info in self.models if info.name == model)


def class_table(classes: int | Sequence[palette.LabelClass]) -> list[ClassInfo]:
    """Names and colours of classes, in order; a number stands for `palette.default_classes`."""
    if isinstance(classes, int):
        classes = palette.default_classes(classes)
    return [
        ClassInfo(id=index, name=name, color=color) for index, (name, color) in enumerate(classes)
    ]


def options_model(catalog: Catalog) -> Any:
    """The query of ``/v1/segment``: a model whose choices are those of this server."""
    models = tuple(model.name for model in catalog.models)
    defaults = catalog.defaults
    fields: dict[str, Any] = {
        "model": (Literal[models], Field(defaults.model, description="The network.")),
        "backend": (
            Literal[tuple(catalog.backends)],
            Field(
                defaults.backend,
                description="reference: plain PyTorch; auto: the fastest fused kernels here.",
            ),
        ),
        "dtype": (Literal[tuple(catalog.dtypes)], Field(defaults.dtype, description="Precision.")),
        "format": (
            Literal["png", "rle"],
            Field("png", description="png: 8-bit grey levels are class ids; rle: run lengths."),
        ),
        "confidence": (
            Measure | None,
            Field(
                None,
                description="How certain labels are: the largest probability, its margin before "
                "the second largest, or entropy. A PNG is RGB then, red the class id and green 255 "
                "times the certainty; run lengths come with each class's mean.",
            ),
        ),
        "size": (
            str | None,
            Field(
                None,
                pattern=SIZE_PATTERN,
                description="HEIGHTxWIDTH that the picture is resized to first, bilinear; the "
                "labels have this size. The picture's own without it.",
            ),
        ),
    }
    return create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
