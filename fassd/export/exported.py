"""An exported file used like a network."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd.export.metadata import (
    FORMAT_OF,
    MOST_LABELS,
    MOST_PIXELS,
    SUFFIX_OF,
    ExportError,
)
from fassd.export.network import denormalized, levels, normalized
from fassd.export.runtimes import first_line, open_runtime
from fassd.models.info import NetworkInfo, remember


def is_exported(model: object) -> TypeGuard[str | os.PathLike[str]]:
    """True if a model's name is that of an exported file."""
    return isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() in FORMAT_OF


def default_device(path: str | os.PathLike[str]) -> str:
    """The device of a file, unless one is given: the GPU for engines, the CPU for all others."""
    return "cuda" if Path(path).suffix.lower() in SUFFIX_OF["tensorrt"] else "cpu"


class ExportedNetwork(nn.Module):
    """A file of `fassd export`, called like the network that it was made from.

    >>> network = ExportedNetwork("net.onnx")
    >>> labels = fassd.Segmenter(network).predict("street.jpg")

    Args:
        path: path of the file. Loading a .pt2 file or an engine runs code from it: only open files
            that you trust.
        runtime: "onnxruntime" or "openvino" for .onnx files; "auto" for the ending's default.
        device: device to run on; `default_device` if not given.

    Attributes:
        metadata: metadata of the file.
        input_size: size (H, W) of its input; None for any.
        preprocessing: normalisation of its pictures.
        takes_pictures: True if its own input is uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ExportError: the file is damaged, not of `fassd export`, or cannot run as requested.
        ImportError: the runtime is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        runtime: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        home = torch.device(device or default_device(path))
        self.metadata, self._run = open_runtime(self.path, runtime, home)
        data = self.metadata
        self.preprocessing = data.preprocessing
        info = NetworkInfo.of(data.variant, data.alpha, data.classes)
        remember(self, replace(info, temperature=data.temperature))
        self.eval()

    @property
    def num_classes(self) -> int:
        return self.metadata.num_classes

    @property
    def input_size(self) -> tuple[int, int] | None:
        return self.metadata.size

    @property
    def takes_pictures(self) -> bool:
        return self.metadata.takes_pictures

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, classes, H, W) float32 on the CPU.

        A file that only returns labels gives 1 for the class of each pixel and 0 for the others.

        Args:
            x: normalised BGR (N, 3, H, W), or RGB if the metadata says so; or uint8 RGB
                (N, H, W, 3); or as many bands. What the file does not take is converted to what it
                takes, without loss.

        Raises:
            ValueError: the file does not take the size, or its result is broken.
        """
        result = self.run(self.prepared(x))
        if self.metadata.output == "logits":
            return result
        if self.measure is not None:
            result = result[:, 0]
        return F.one_hot(result.long(), self.num_classes).permute(0, 3, 1, 2).float()

    @property
    def measure(self) -> str | None:
        """Measure of certainty in the file's result; None if it has none."""
        return self.metadata.measure

    def predict_labels(self, x: Tensor, measure: str | None = None) -> Tensor:
        """The class of every pixel, uint8 (N, H, W); `x` as in `forward`.

        With a `measure` (N, 2, H, W): labels and their certainty.

        Raises:
            ValueError: as in `forward`; or there are more than 256 classes, or the file has another
                measure.
        """
        if measure not in (None, self.measure):
            raise ValueError(f"{self.path} gives the confidence {self.measure}, not {measure}")
        if self.num_classes > MOST_LABELS:
            raise ValueError(
                f"uint8 labels fit at most {MOST_LABELS} classes, got {self.num_classes}"
            )
        result = self.run(self.prepared(x))
        if self.metadata.output == "logits":
            return result.argmax(1).to(torch.uint8)
        return result[:, 0] if self.measure is not None and measure is None else result

    def prepared(self, x: Tensor) -> Tensor:
        """The file's own input, on the CPU, for `x` as in `forward`."""
        pictures = x.dtype == torch.uint8
        data = self.preprocessing
        own = levels(data.mean), levels(data.std), data.channels
        x = x.cpu() if pictures else x.cpu().float()
        if pictures and not self.takes_pictures:
            return normalized(x, *own)
        if self.takes_pictures and not pictures:
            return denormalized(x, *own)
        return x

    def run(self, image: Tensor) -> Tensor:
        """The file's own result for its own input: logits, labels, or labels and confidence.

        Args:
            image: result of `prepared`, contiguous or not.

        Raises:
            ValueError: as in `forward`.
        """
        size = tuple(image.shape[1:3] if self.takes_pictures else image.shape[2:])
        takes, shape = f"{self.path.name} takes pictures of", "{}x{}".format(*size)
        if self.input_size not in (None, size):
            raise ValueError(f"{takes} {'{}x{}'.format(*self.input_size or ())}, got {shape}")
        least = self.metadata.minimum_size
        if min(size) < least:
            raise ValueError(f"{takes} at least {least}x{least}, got {shape}")
        if self.metadata.batch * math.prod(size) > MOST_PIXELS:
            raise ValueError(
                f"{self.path.name} takes {self.metadata.batch} pictures at once, of "
                f"{shape} more than {MOST_PIXELS:,} pixels"
            )
        # A file takes the number of pictures that it was made for; the last group is filled up.
        groups = [self._fixed(group) for group in image.split(self.metadata.batch)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    def _fixed(self, group: Tensor) -> Tensor:
        """The results for at most one whole batch."""
        count, batch = len(group), self.metadata.batch
        if count < batch:
            group = torch.cat([group, group[-1:].expand(batch - count, *group.shape[1:])])
        image = np.ascontiguousarray(group.numpy())
        try:
            result = torch.from_numpy(self._run(image))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path.name} cannot take {tuple(image.shape)}: {first_line(error)}"
            ) from error
        self._check(result, image.shape)
        return result[:count]

    def _check(self, result: Tensor, shape: tuple[int, ...]) -> None:
        """Check that the file keeps the promises of its metadata."""
        size = shape[1:3] if self.takes_pictures else shape[2:]
        planes = {"logits": (self.num_classes,), "labels": (), "labels+confidence": (2,)}
        expected = (shape[0], *planes[self.metadata.output], *size)
        kind = torch.float32 if self.metadata.output == "logits" else torch.uint8
        if tuple(result.shape) != expected or result.dtype != kind:
            raise ExportError(
                f"{self.path.name} gave {result.dtype} of shape {tuple(result.shape)}, its "
                f"metadata promises {kind} of shape {expected}"
            )

    def extra_repr(self) -> str:
        data = self.metadata
        return f"{self.path.name}, {data.variant}, {data.format}, {data.dtype}, {data.output}"
