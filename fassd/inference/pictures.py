"""Objects that represent a picture in Python, and their pixels."""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from fassd.io.bands import array_to_bands, read_picture
from fassd.io.images import Content, ImageError, array_to_rgb, pil_to_rgb
from fassd.io.levels import Range

ImageLike: TypeAlias = (
    str | os.PathLike[str] | Content | Image.Image | npt.NDArray[Any] | torch.Tensor
)
Batch: TypeAlias = list[ImageLike] | tuple[ImageLike, ...]
Order: TypeAlias = Literal["RGB", "BGR"]

ACCEPTED = (
    "an image must be a path, a file's bytes, a Pillow image, a NumPy array or a torch tensor"
)


def to_picture(
    image: ImageLike,
    range: Range = None,
    order: Order = "RGB",
    max_pixels: int | None = None,
    bands: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Convert anything that `Segmenter.predict` accepts to uint8 RGB, (H, W, 3), or (H, W, bands).

    Raises:
        ImageError: it cannot be read or converted, or has other bands.
        ValueError: `order` does not apply to it.
        ImportError: as in `fassd.io.bands.read_picture`.
    """
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
    if order != "RGB" and bands is not None:
        raise ValueError(f"order is for three colours; the network takes {bands} bands as they are")
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image, bands)
    if isinstance(image, np.ndarray):
        if bands is not None:
            return array_to_bands(image, bands, range)
        if order == "BGR" and image.ndim == 3 and image.shape[2] in (3, 4):
            image = image[..., [2, 1, 0, 3][: image.shape[2]]]
        return array_to_rgb(image, range)
    if order != "RGB":
        raise ImageError(
            f"order {order!r} is for arrays and tensors; a {type(image).__name__} has its own"
        )
    if isinstance(image, (str, os.PathLike, Content)):
        return read_picture(image, bands, range, max_pixels)
    if not isinstance(image, Image.Image):
        raise ImageError(f"{ACCEPTED}, got {type(image).__name__}")
    try:
        if bands is None:
            return pil_to_rgb(image, range)
        image.load()
        upright = ImageOps.exif_transpose(image)
    except OSError as error:  # its file is only read now
        raise ImageError(f"the Pillow image cannot be decoded: {error}") from error
    values = np.asarray(upright.convert("RGB") if upright.mode == "P" else upright)
    return array_to_bands(values, bands, range)


def tensor_to_array(tensor: torch.Tensor, bands: int | None = None) -> npt.NDArray[Any]:
    """A tensor, or a batch of four dimensions, with its channels last.

    Args:
        tensor: tensor with channels first, last, or none.
        bands: permitted number of channels; None for 1, 3 and 4.
    """
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    accepted = (1, 3, 4) if bands is None else (bands,)
    if tensor.ndim in (3, 4) and tensor.shape[-3] in accepted:
        tensor = tensor.movedim(-3, -1)
    return tensor.numpy()
