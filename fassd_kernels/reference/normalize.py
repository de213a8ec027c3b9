"""From a uint8 picture to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fassd_kernels.checks import FLOATING, check, check_storage, checked, shape
from fassd_kernels.reference.conv_act import channels_last


def check_normalize(image, mean, std, dtype):
    """Check the arguments of :func:`normalize` and return the shape of its result."""
    return check_picture("normalize", image, mean, std, dtype)


def check_picture(
    op: str, image: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[int, int, int, int]:
    """Check a picture and its normalisation to a type; return the shape of the result."""
    check(
        image.dim() == 4 and image.shape[3] == 3,
        f"{op}: image has shape {shape(image)}; expected N x H x W x 3",
    )
    check(image.dtype == torch.uint8, f"{op}: image has dtype {image.dtype}; expected torch.uint8")
    check_storage(op, "image", image)
    for name, values in (("mean", mean), ("std", std)):
        check(len(values) == 3, f"{op}: {name} has {len(values)} values; expected 3")
    check(all(value != 0 for value in std), f"{op}: std is {list(std)}; expected no zeros")
    check(
        dtype in FLOATING,
        f"{op}: dtype is {dtype}; expected float32, float16, bfloat16 or float64",
    )
    return image.shape[0], 3, image.shape[1], image.shape[2]


@checked(check_normalize, differentiable=False)
def normalize(
    image: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """``(image[..., ::-1] - mean) / std``, computed in float64 and cast once.

    Args:
        image: N x H x W x 3 pictures, uint8, RGB.
        mean, std: three values each, on the scale 0..255, in the order of the result: blue, green,
            red.
        dtype: floating type of the result.

    Returns:
        N x 3 x H x W, BGR, channels_last.

    Raises:
        RuntimeError: a shape or dtype is not as described above; the message names the argument.
    """
    shift, scale = (
        # Not torch.tensor, which exporters cannot trace when they decompose operators.
        torch.stack([torch.full((), v, dtype=torch.float64, device=image.device) for v in values])
        for values in (mean, std)
    )
    pixels = image.flip(-1).to(torch.float64)
    return channels_last(((pixels - shift) / scale).to(dtype).permute(0, 3, 1, 2))
